"""The frontend's table of unanswered requests."""

import numpy as np
import pytest

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Kind, Lane
from frontend.session.pending import MAX_NOTED, NOTED_S, Pending, PendingRequests, RefusalCache


@pytest.fixture
def table() -> PendingRequests:
    return PendingRequests()


def add(
    table: PendingRequests, *inputs: bytes, client: str = "", per_item: bool = False, max_tokens: float = 100
) -> Pending:
    lengths = wire.pack_u32(map(len, inputs))
    submission = wire.Submission(0, "m", Lane.INTERACTIVE, client, 0, Kind.TEXT, lengths)
    return table.add(submission, b"".join(inputs), 10.0, per_item=per_item, max_tokens=max_tokens)


def answers(*rows: tuple[int, int, float], tokens: int = 3, revision: str = "r") -> tuple[wire.Answers, bytes]:
    """Answers of one value a row: (request, position, value)."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    message = wire.Answers(
        wire.pack_u64(int(one) for one in columns[0]),
        wire.pack_u32(int(one) for one in columns[1]),
        wire.pack_u32([tokens] * len(rows)),
        1,
        5,
        6,
        revision,
    )
    return message, np.array(columns[2], "<f4").tobytes()


def values(pending: Pending) -> list[float]:
    return [float(np.frombuffer(row, "<f4")[0]) for row in pending.rows if row is not None]


def test_rows_of_several_messages_find_their_places(table: PendingRequests) -> None:
    one, two = add(table, b"a", b"b"), add(table, b"c")
    assert table.answered(*answers((one.number, 1, 1.5), (two.number, 0, 2.5))) == [two]
    assert table.answered(*answers((one.number, 0, 3.5))) == [one]
    assert (values(one), values(two)) == ([3.5, 1.5], [2.5])
    assert (one.tokens, two.tokens) == (6, 3)


def test_second_answer_and_foreign_answers_are_dropped(table: PendingRequests) -> None:
    one = add(table, b"a", b"b")
    assert (
        table.answered(*answers((one.number, 0, 1.0), (one.number, 0, 9.0), (one.number, 7, 9.0), (99, 0, 9.0))) == []
    )
    assert one.missing == 1
    assert values(one) == [1.0]


def test_first_failure_ends_a_request(table: PendingRequests) -> None:
    one = add(table, b"a", b"b")
    first = wire.Failure(one.number, 1, ErrorCode.TOO_LONG, "long")
    assert table.failed(
        [first, wire.Failure(one.number, 0, ErrorCode.TOO_LONG, "also"), wire.Failure(99, 0, ErrorCode.TOO_LONG, "")]
    ) == [one]
    assert one.failure is first
    assert table.answered(*answers((one.number, 0, 1.0))) == []


def test_failed_inputs_leave_the_others_where_that_is_asked_for(table: PendingRequests) -> None:
    one = add(table, b"a", b"b", b"c", per_item=True)
    first = wire.Failure(one.number, 1, ErrorCode.TOO_LONG, "long")
    assert table.failed([first, wire.Failure(one.number, 1, ErrorCode.POISON, "again")]) == []
    assert table.answered(*answers((one.number, 1, 9.0), (one.number, 0, 1.0))) == []
    assert table.failed([wire.Failure(one.number, 0, ErrorCode.TOO_LONG, "late")]) == []
    assert table.answered(*answers((one.number, 2, 3.0))) == [one]
    assert one.failure is None
    assert one.failures == {1: first}
    assert values(one) == [1.0, 3.0]


def test_whole_request_fails_whatever_is_asked_for(table: PendingRequests) -> None:
    one = add(table, b"a", per_item=True)
    assert not one.ended_by_broker
    assert table.failed([wire.Failure(one.number, -1, ErrorCode.DEADLINE, "late")]) == [one]
    assert one.ended_by_broker


def test_request_with_too_many_tokens_ends_as_soon_as_that_is_known(table: PendingRequests) -> None:
    one = add(table, b"a", b"b", b"c", max_tokens=5)
    assert table.answered(*answers((one.number, 0, 1.0))) == []
    assert table.answered(*answers((one.number, 1, 1.0))) == [one]
    assert one.failure
    assert one.failure.code == ErrorCode.TOO_MANY_TOKENS
    # So that the rest is cancelled.
    assert not one.ended_by_broker


def test_rows_may_have_sizes_of_their_own_and_tell_what_was_cut(table: PendingRequests) -> None:
    one, two = add(table, b"a", b"b"), add(table, b"c")
    message, _ = answers((one.number, 0, 0), (two.number, 0, 0), (one.number, 1, 0))
    message.sizes, message.cut = wire.pack_u32([4, 0, 8]), wire.pack_u32([0, 0, 9])
    assert table.answered(message, b"aaaabbbbbbbb") == [two, one]
    assert [[bytes(row or b"-") for row in pending.rows] for pending in (one, two)] == [[b"aaaa", b"bbbbbbbb"], [b"-"]]
    assert two.rows[0] is not None
    assert (one.truncated, two.truncated) == ({1: 9}, {})


def test_longest_times_of_its_batches_are_a_requests(table: PendingRequests) -> None:
    one = add(table, b"a", b"b")
    message, frame = answers((one.number, 0, 1.0))
    table.answered(message, frame)
    message.positions, message.queue_us, message.inference_us = wire.pack_u32([1]), 1, 9
    table.answered(message, frame)
    assert (one.queue_us, one.inference_us) == (5, 9)


def test_unanswered_requests_are_what_a_new_broker_needs(table: PendingRequests) -> None:
    one, two, three = add(table, b"a"), add(table, b"b"), add(table, b"c")
    table.answered(*answers((two.number, 0, 1.0)))
    assert table.unanswered() == [one, three]
    table.remove(one)
    assert table.unanswered() == [three]
    assert len(table) == 2


def test_submission_says_how_its_frame_is_cut(table: PendingRequests) -> None:
    one = add(table, b"ab", b"", b"c")
    assert one.frame == b"abc"
    assert list(wire.unpack_u32(one.submission.lengths)) == [2, 0, 1]


def test_request_does_not_mix_the_vectors_of_two_revisions(table: PendingRequests) -> None:
    one = add(table, b"a", b"b", b"c")
    assert table.answered(*answers((one.number, 0, 1.0))) == []
    assert table.answered(*answers((one.number, 1, 2.0), (one.number, 2, 2.0), revision="new")) == [one]
    assert one.failure
    assert one.failure.code == ErrorCode.NO_WORKER


def refused(table: PendingRequests, code: ErrorCode, wait_s: float) -> Pending:
    pending = add(table, b"a")
    table.failed([wire.Failure(pending.number, -1, code, "no", int(wait_s * 1000))])
    return pending


def test_flood_is_refused_for_the_wait_that_the_broker_has_just_told(table: PendingRequests) -> None:
    door = RefusalCache()
    door.max_wait_s = 30.0
    assert door.refuses("m", Lane.INTERACTIVE, "", 60.0, 100.0) is None
    door.note(refused(table, ErrorCode.OVERLOADED, 31.0), 100.0)
    assert door.refuses("m", Lane.INTERACTIVE, "", 60.0, 100.0) == 31.0
    assert door.refuses("m", Lane.BULK, "", 60.0, 100.0) is None
    assert door.refuses("m", Lane.INTERACTIVE, "another", 60.0, 100.0) is None
    assert door.refuses("n", Lane.INTERACTIVE, "", 60.0, 100.0) is None
    assert door.refuses("m", Lane.INTERACTIVE, "", 60.0, 100.0 + NOTED_S) is None


def test_one_requests_own_reason_shuts_the_door_to_no_other(table: PendingRequests) -> None:
    """It was too large for what room there was, too hurried, over its caller's quota, or bad."""
    door = RefusalCache()
    door.max_wait_s = 30.0
    door.note(refused(table, ErrorCode.OVERLOADED, 2.0), 100.0)
    assert door.refuses("m", Lane.INTERACTIVE, "", 60.0, 100.0) is None
    assert door.refuses("m", Lane.INTERACTIVE, "", 1.0, 100.0) == 2.0
    for code in (ErrorCode.QUOTA, ErrorCode.TOO_LONG):
        other = RefusalCache()
        other.note(refused(table, code, 99.0), 100.0)
        assert other.refuses("m", Lane.INTERACTIVE, "", 1.0, 100.0) is None


def test_remembered_waits_are_bounded(table: PendingRequests) -> None:
    door = RefusalCache()
    for number in range(3 * MAX_NOTED):
        pending = add(table, b"a", client=str(number))
        table.failed([wire.Failure(pending.number, -1, ErrorCode.OVERLOADED, "no", 1000)])
        door.note(pending, 100.0)
    assert len(door._waits) <= MAX_NOTED + 1
