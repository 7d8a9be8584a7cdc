"""Requests without a complete answer, and recent refusals."""

import math

import msgspec
import numpy as np
import pytest

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Kind, Lane, ModelInfo, Option, Source
from frontend.session.pending import (
    MAX_REFUSALS,
    NOT_FINITE,
    REFUSAL_TTL_S,
    Pending,
    PendingRequests,
    RefusalCache,
)


@pytest.fixture
def requests() -> PendingRequests:
    return PendingRequests()


def add_request(
    requests: PendingRequests,
    *inputs: bytes,
    client: str = "",
    per_item: bool = False,
    max_tokens: float = 100,
    dimension: int = 0,
    options: int = 0,
) -> Pending:
    lengths = wire.pack_u32(map(len, inputs))
    submission = wire.Submission(0, "m", Lane.INTERACTIVE, client, 0, Kind.TEXT, lengths, options)
    model = ModelInfo("m", "r", dimension, 100) if dimension else None
    return requests.add_request(
        submission, b"".join(inputs), 10.0, per_item=per_item, max_tokens=max_tokens, model_info=model
    )


def make_answers(*rows: tuple[int, int, float], tokens: int = 3, revision: str = "r") -> tuple[wire.Answers, bytes]:
    """Return answers with vectors of first value; each row is (request, position, value)."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    message = wire.Answers(
        wire.pack_u64(int(value) for value in columns[0]),
        wire.pack_u32(int(value) for value in columns[1]),
        wire.pack_u32([tokens] * len(rows)),
        1,
        5,
        6,
        revision,
    )
    return message, np.array(columns[2], "<f4").tobytes()


def list_values(pending: Pending) -> list[float]:
    return [float(np.frombuffer(row, "<f4")[0]) for row in pending.rows if row is not None]


def test_rows_of_several_messages_are_placed(requests: PendingRequests) -> None:
    first, second = add_request(requests, b"a", b"b"), add_request(requests, b"c")
    assert requests.apply_answers(*make_answers((first.number, 1, 1.5), (second.number, 0, 2.5))) == [second]
    assert requests.apply_answers(*make_answers((first.number, 0, 3.5))) == [first]
    assert (list_values(first), list_values(second)) == ([3.5, 1.5], [2.5])
    assert (first.tokens, second.tokens) == (6, 3)


def test_repeated_and_unknown_rows_are_ignored(requests: PendingRequests) -> None:
    first = add_request(requests, b"a", b"b")
    assert (
        requests.apply_answers(
            *make_answers((first.number, 0, 1.0), (first.number, 0, 9.0), (first.number, 7, 9.0), (99, 0, 9.0))
        )
        == []
    )
    assert repr(first) == "<Pending 1 'm': 1 of 2 inputs missing>"
    assert list_values(first) == [1.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_row_that_is_not_finite_fails(requests: PendingRequests, value: float) -> None:
    first, second = add_request(requests, b"a", b"b", per_item=True), add_request(requests, b"c")
    ended = requests.apply_answers(
        *make_answers((first.number, 0, value), (second.number, 0, value), (first.number, 1, 2.0))
    )
    assert ended == [second, first]
    assert list_values(first) == [2.0]
    assert first.failures == {0: wire.Failure(first.number, 0, ErrorCode.DEVICE, NOT_FINITE)}
    assert second.failure == wire.Failure(second.number, 0, ErrorCode.DEVICE, NOT_FINITE)


def test_token_ids_may_look_infinite(requests: PendingRequests) -> None:
    first = add_request(requests, b"a", dimension=9, options=Option.TOKENIZE)
    assert requests.apply_answers(*make_answers((first.number, 0, math.inf))) == [first]
    assert first.failure is None


def test_vector_of_another_dimension_fails_its_request(requests: PendingRequests) -> None:
    first, second = (add_request(requests, b"a", dimension=dimension) for dimension in (1, 2))
    assert requests.apply_answers(*make_answers((first.number, 0, 1.0), (second.number, 0, 1.0))) == [first, second]
    assert first.failure is None
    assert second.failure
    assert second.failure.code == ErrorCode.NO_WORKER
    assert "was replaced while the request ran" in second.failure.text


def test_first_failure_ends_request(requests: PendingRequests) -> None:
    first = add_request(requests, b"a", b"b")
    failure = wire.Failure(first.number, 1, ErrorCode.TOO_LONG, "long")
    assert requests.apply_failures(
        [
            failure,
            wire.Failure(first.number, 0, ErrorCode.TOO_LONG, "also"),
            wire.Failure(99, 0, ErrorCode.TOO_LONG, ""),
        ]
    ) == [first]
    assert first.failure is failure
    assert requests.apply_answers(*make_answers((first.number, 0, 1.0))) == []


def test_failed_input_leaves_others_with_per_item(requests: PendingRequests) -> None:
    first = add_request(requests, b"a", b"b", b"c", per_item=True)
    failure = wire.Failure(first.number, 1, ErrorCode.TOO_LONG, "long")
    assert requests.apply_failures([failure, wire.Failure(first.number, 1, ErrorCode.POISON, "again")]) == []
    assert requests.apply_answers(*make_answers((first.number, 1, 9.0), (first.number, 0, 1.0))) == []
    assert requests.apply_failures([wire.Failure(first.number, 0, ErrorCode.TOO_LONG, "late")]) == []
    assert requests.apply_answers(*make_answers((first.number, 2, 3.0))) == [first]
    assert first.failure is None
    assert first.failures == {1: failure}
    assert list_values(first) == [1.0, 3.0]


def test_failed_request_ignores_per_item(requests: PendingRequests) -> None:
    first = add_request(requests, b"a", per_item=True)
    assert not first.ended_by_broker
    assert requests.apply_failures([wire.Failure(first.number, -1, ErrorCode.DEADLINE, "late")]) == [first]
    assert first.ended_by_broker


def test_request_with_too_many_tokens_ends_early(requests: PendingRequests) -> None:
    first = add_request(requests, b"a", b"b", b"c", max_tokens=5)
    assert requests.apply_answers(*make_answers((first.number, 0, 1.0))) == []
    assert requests.apply_answers(*make_answers((first.number, 1, 1.0))) == [first]
    assert first.failure
    assert first.failure.code == ErrorCode.TOO_MANY_TOKENS
    # Therefore the other inputs are cancelled.
    assert not first.ended_by_broker


def test_rows_have_own_sizes_and_truncated_tokens(requests: PendingRequests) -> None:
    first, second = add_request(requests, b"a", b"b"), add_request(requests, b"c")
    message, _ = make_answers((first.number, 0, 0), (second.number, 0, 0), (first.number, 1, 0))
    message.sizes, message.truncated = wire.pack_u32([4, 0, 8]), wire.pack_u32([0, 0, 9])
    assert requests.apply_answers(message, b"aaaabbbbbbbb") == [second, first]
    assert [[bytes(row or b"-") for row in pending.rows] for pending in (first, second)] == [
        [b"aaaa", b"bbbbbbbb"],
        [b"-"],
    ]
    assert second.rows[0] is not None
    assert (first.truncated, second.truncated) == ({1: 9}, {})


def test_rows_are_counted_by_their_source(requests: PendingRequests) -> None:
    pending = add_request(requests, b"a", b"b", b"c", b"d")
    message, frame = make_answers((1, 0, 1.0), (1, 1, 2.0), (1, 2, 3.0))
    requests.apply_answers(msgspec.structs.replace(message, sources=bytes([Source.CACHE, 0, Source.COALESCED])), frame)
    requests.apply_answers(*make_answers((1, 3, 4.0)))
    assert pending.sources == [2, 1, 1]
    pending.clear_rows()
    assert pending.sources == [0, 0, 0]


def test_times_are_maxima_over_batches(requests: PendingRequests) -> None:
    first = add_request(requests, b"a", b"b")
    message, frame = make_answers((first.number, 0, 1.0))
    requests.apply_answers(message, frame)
    message.positions, message.queue_us, message.inference_us = wire.pack_u32([1]), 1, 9
    requests.apply_answers(message, frame)
    assert (first.queue_us, first.inference_us) == (5, 9)


def test_unanswered_requests_are_listed_oldest_first(requests: PendingRequests) -> None:
    first, second, third = add_request(requests, b"a"), add_request(requests, b"b"), add_request(requests, b"c")
    requests.apply_answers(*make_answers((second.number, 0, 1.0)))
    assert requests.list_unanswered() == [first, third]
    requests.remove(first)
    assert requests.list_unanswered() == [third]
    assert len(requests) == 2


def test_submission_has_lengths_of_inputs(requests: PendingRequests) -> None:
    first = add_request(requests, b"ab", b"", b"c")
    assert first.frame == b"abc"
    assert list(wire.unpack_u32(first.submission.lengths)) == [2, 0, 1]


def test_request_never_mixes_two_revisions(requests: PendingRequests) -> None:
    first = add_request(requests, b"a", b"b", b"c")
    assert requests.apply_answers(*make_answers((first.number, 0, 1.0))) == []
    assert requests.apply_answers(*make_answers((first.number, 1, 2.0), (first.number, 2, 2.0), revision="new")) == [
        first
    ]
    assert first.failure
    assert first.failure.code == ErrorCode.NO_WORKER


def refuse(requests: PendingRequests, code: ErrorCode, wait_s: float) -> Pending:
    pending = add_request(requests, b"a")
    requests.apply_failures([wire.Failure(pending.number, -1, code, "no", int(wait_s * 1000))])
    return pending


def test_recent_refusal_is_repeated(requests: PendingRequests) -> None:
    cache = RefusalCache()
    cache.max_wait_s = 30.0
    assert cache.find_wait("m", Lane.INTERACTIVE, "", 60.0, 100.0) is None
    cache.record_answer(refuse(requests, ErrorCode.OVERLOADED, 31.0), 100.0)
    assert cache.find_wait("m", Lane.INTERACTIVE, "", 60.0, 100.0) == 31.0
    assert cache.find_wait("m", Lane.BULK, "", 60.0, 100.0) is None
    assert cache.find_wait("m", Lane.INTERACTIVE, "another", 60.0, 100.0) is None
    assert cache.find_wait("n", Lane.INTERACTIVE, "", 60.0, 100.0) is None
    assert cache.find_wait("m", Lane.INTERACTIVE, "", 60.0, 100.0 + REFUSAL_TTL_S) is None


def test_own_refusal_reason_does_not_refuse_others(requests: PendingRequests) -> None:
    """Its size, its deadline, its key's quota or its content was the reason."""
    cache = RefusalCache()
    cache.max_wait_s = 30.0
    cache.record_answer(refuse(requests, ErrorCode.OVERLOADED, 2.0), 100.0)
    assert cache.find_wait("m", Lane.INTERACTIVE, "", 60.0, 100.0) is None
    assert cache.find_wait("m", Lane.INTERACTIVE, "", 1.0, 100.0) == 2.0
    for code in (ErrorCode.QUOTA, ErrorCode.TOO_LONG):
        other = RefusalCache()
        other.record_answer(refuse(requests, code, 99.0), 100.0)
        assert other.find_wait("m", Lane.INTERACTIVE, "", 1.0, 100.0) is None


def test_remembered_refusals_are_bounded(requests: PendingRequests) -> None:
    cache = RefusalCache()
    for number in range(3 * MAX_REFUSALS):
        pending = add_request(requests, b"a", client=str(number))
        requests.apply_failures([wire.Failure(pending.number, -1, ErrorCode.OVERLOADED, "no", 1000)])
        cache.record_answer(pending, 100.0)
    assert len(cache._waits) <= MAX_REFUSALS + 1
