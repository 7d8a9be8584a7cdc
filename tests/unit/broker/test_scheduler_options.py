"""What jobs may want beside a vector: token ids, cut inputs. What keys may have. What workers are loading.

The pure scheduler: messages and time in, messages out. Every step checks all invariants (see tests/harness/core.py).
"""

import pytest

from broker.core.jobs import TOKENISE_DISCOUNT
from broker.core.limits import Limits
from broker.core.model_loading import FAILED_S, MAX_REMEMBERED
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Availability, Option
from tests.harness.core import DIMENSION, EPOCH, Core, row, vector

#: More than any text of these tests has tokens.
PLENTY = 10_000


def test_options_and_origins_travel_with_their_jobs(core: Core) -> None:
    core.submit(1, ["busy"])
    (busy,) = core.batches()
    core.submit(3, ["aa", "bb"], options=Option.TRUNCATE_END)
    core.submit(4, ["cc"])
    core.submit(5, ["dd"], options=Option.TOKENISE)
    core.answer(busy)
    ((_, batch, _),) = core.take(wire.Batch)
    assert list(batch.options) == [1, 1, 0, 8]
    assert [origin.request_id for origin in batch.origins] == ["request 3", "request 4", "request 5"]


def test_batch_without_options_has_no_column_for_them(core: Core) -> None:
    core.submit(1, ["a", "b"])
    ((_, batch, _),) = core.take(wire.Batch)
    assert (batch.options, len(batch.origins)) == (b"", 1)


# --- token ids -------------------------------------------------------------------------------------------------------


def mixed(core: Core) -> tuple[bytes, int, list[str]]:
    """A batch of two frontends' jobs, some of which are to be tokenised; the worker holds nothing else."""
    core.submit(1, ["busy"])
    (busy,) = core.batches()
    core.frontend(b"F2")
    core.submit(2, ["vector"])
    core.submit(3, ["a longer text", "b"], options=Option.TOKENISE)
    core.submit(4, ["of another"], b"F2", options=Option.TOKENISE)
    core.submit(5, ["too"], b"F2")
    core.answer(busy)
    core.answers()
    (batch,) = core.batches()
    assert len(batch[2]) == 5
    return batch


def test_token_ids_and_vectors_come_back_from_one_batch(core: Core) -> None:
    core.answer(mixed(core))
    assert core.answers() == {
        (2, 0): vector("vector"),
        (3, 0): row("a longer text", Option.TOKENISE),
        (3, 1): row("b", Option.TOKENISE),
    }
    assert core.answers(b"F2") == {(4, 0): row("of another", Option.TOKENISE), (5, 0): vector("too")}


def test_rows_of_other_sizes_are_cut_out_where_jobs_were_cancelled_or_failed(core: Core) -> None:
    batch = mixed(core)
    core.handle(b"F1", wire.Cancel(wire.pack_u64([3])))
    position = batch[2].index("of another")
    core.answer(batch, failures=[wire.JobFailure(position, ErrorCode.INVALID_INPUT, "no")])
    assert core.answers() == {(2, 0): vector("vector")}
    assert core.answers(b"F2") == {(5, 0): vector("too")}
    assert core.failures(b"F2") == [(4, 0, ErrorCode.INVALID_INPUT)]


@pytest.mark.parametrize("wrong", ["all vectors", "a row too short", "ids too many"])
def test_rows_that_nobody_asked_for_are_not_served(core: Core, wrong: str) -> None:
    core.submit(1, ["abc"], options=Option.TOKENISE)
    core.tick(1.0)
    core.submit(2, ["abc"])
    tokenised, embedded = core.batches()
    if wrong == "a row too short":
        result = wire.BatchResult(
            EPOCH, embedded[1], DIMENSION, wire.pack_u32([5]), [], 5, 2, 1, sizes=wire.pack_u32([8])
        )
        core.handle(b"W1", result, bytes(8))
    elif wrong == "ids too many":
        result = wire.BatchResult(
            EPOCH, tokenised[1], DIMENSION, wire.pack_u32([5]), [], 5, 2, 1, sizes=wire.pack_u32([24])
        )
        core.handle(b"W1", result, bytes(24))
    else:
        result = wire.BatchResult(EPOCH, tokenised[1], DIMENSION, wire.pack_u32([5]), [], 5, 2, 1)
        core.handle(b"W1", result, bytes(4 * DIMENSION))
    assert core.answers() == {}
    ((_, goodbye, _),) = core.take(wire.Goodbye)
    assert "invalid result" in goodbye.text


def test_tokenising_is_cheap_and_teaches_no_speed(core: Core) -> None:
    core.submit(1, ["x" * 100 * TOKENISE_DISCOUNT], options=Option.TOKENISE)
    assert core.scheduler.state.ledger.tokens <= 100
    worker = core.scheduler.state.pool.workers[b"W1"]
    before = worker.throughput.tokens_per_s
    core.tick(0.001)
    core.answer(*core.batches())
    assert worker.throughput.tokens_per_s == before


def test_cut_tokens_are_told_and_count_for_the_length_of_texts(core: Core) -> None:
    model = core.scheduler.state.models["m"]
    core.submit(1, ["x" * 40, "y"], options=Option.TRUNCATE_END)
    before = model.tokens_per_byte
    result = wire.BatchResult(EPOCH, 1, DIMENSION, wire.pack_u32([20, 3]), [], 5, 2, 1, cut=wire.pack_u32([22, 0]))
    core.handle(b"W1", result, bytes(2 * 4 * DIMENSION))
    ((_, answers, _),) = core.take(wire.Answers)
    assert list(wire.unpack_u32(answers.cut)) == [22, 0]
    # 42 and 3 tokens, of which 2 are special each, of 41 bytes.
    assert model.tokens_per_byte == pytest.approx(before + 0.1 * (1 - before))


# --- keys ------------------------------------------------------------------------------------------------------------


def test_keys_jobs_in_flight_are_bounded_even_when_nothing_else_is_open(core: Core) -> None:
    core.submit(1, ["a", "b"], client="key", client_jobs=3)
    core.submit(2, ["c", "d"], client="key", client_jobs=3)
    assert core.failures() == [(2, -1, ErrorCode.QUOTA)]
    core.submit(3, ["c"], client="key", client_jobs=3)
    core.submit(4, ["c", "d"], client="another", client_jobs=3)
    assert core.failures() == []


def test_request_of_more_inputs_than_its_key_may_have_is_told_so(core: Core) -> None:
    core.submit(1, ["a", "b"], client="key", client_jobs=1)
    ((_, message, _),) = core.take(wire.Failures)
    assert message.failures[0].code == ErrorCode.INVALID_INPUT
    assert message.failures[0].text == "the request has 2 inputs, but its key may have 1 open at once; split it"


def test_keys_tokens_come_back_with_time() -> None:
    core = Core(Limits(liveness_s=1000, lease_s=1000))
    core.frontend()
    core.worker()
    # 28 bytes are 10 tokens by the first estimate.
    core.submit(1, ["x" * 28], client="key", client_tokens=15)
    core.submit(2, ["x" * 28], client="key", client_tokens=15)
    ((_, message, _),) = core.take(wire.Failures)
    assert message.failures[0].code == ErrorCode.QUOTA
    # 5 of 15 a minute are missing.
    assert message.failures[0].retry_after_ms == pytest.approx(20_000, abs=1)
    core.tick(19.0)
    core.submit(3, ["x" * 28], client="key", client_tokens=15)
    assert core.failures() == [(1, -1, ErrorCode.DEADLINE), (3, -1, ErrorCode.QUOTA)]
    core.tick(1.1)
    core.submit(4, ["x" * 28], client="key", client_tokens=15)
    core.submit(5, ["x" * 28], client="another", client_tokens=15)
    core.submit(6, ["x" * 28])
    assert core.failures() == []


def test_exact_tokens_replace_the_estimate_in_the_quota(core: Core) -> None:
    core.submit(1, ["x" * 28], client="key", client_tokens=40)
    core.answer(*core.batches())
    assert core.scheduler.state.quotas.find_wait_s("key", 10, 40, core.now) == 0
    # It had 30.
    assert core.scheduler.state.quotas.find_wait_s("key", 11, 40, core.now) > 0


# --- loading ---------------------------------------------------------------------------------------------------------


def loading(name: str = "new", failure: str = "", process: bytes = b"L") -> wire.WorkerLoading:
    """What a process says that is no worker yet."""
    return wire.WorkerLoading(process.ljust(16, b"."), "host", 1, name, failure)


def states(core: Core) -> dict[str, tuple[Availability, str]]:
    """What the frontend has been told last of each model."""
    *_, (_, models, _) = core.take(wire.Models, b"F1")
    return {one.name: (one.state, one.text) for one in models.states}


def test_model_that_is_loaded_is_told_and_then_served(core: Core) -> None:
    core.handle(b"Wx", loading())
    assert states(core) == {"m": (Availability.AVAILABLE, ""), "new": (Availability.LOADING, "")}
    core.handle(b"Wx", loading())
    assert core.take(wire.Models) == []
    assert core.take(wire.Who) == []
    core.worker(b"W2", model="new", uuid=b"L")
    assert states(core)["new"] == (Availability.AVAILABLE, "")
    core.handle(b"W2", wire.WorkerGoodbye())
    assert states(core)["new"] == (Availability.END, "")


def test_failure_to_load_is_told_until_somebody_serves_the_model(core: Core) -> None:
    core.handle(b"Wx", loading(failure="no such folder"))
    assert states(core)["new"] == (Availability.FAILED, "no such folder")
    core.handle(b"Wy", loading(process=b"M"))
    assert states(core)["new"] == (Availability.LOADING, "")
    core.worker(b"W2", model="new", uuid=b"M")
    core.handle(b"W2", wire.WorkerGoodbye())
    assert states(core)["new"] == (Availability.END, "")


def test_failures_and_silent_processes_are_forgotten(core: Core) -> None:
    core.handle(b"Wx", loading())
    core.handle(b"Wy", loading("other", "broken", b"M"))
    for _ in range(4):
        core.tick(1.0)
        core.handle(b"F1", wire.FrontendHeartbeat())
        core.handle(b"W1", wire.WorkerHeartbeat(2, 0))
    assert states(core) == {"m": (Availability.AVAILABLE, ""), "other": (Availability.FAILED, "broken")}
    assert core.scheduler.next_deadline() is not None
    assert core.scheduler.state.loading.drop_expired(core.now + FAILED_S)
    assert core.scheduler.state.loading.next_deadline() is None


def test_loading_beside_a_live_worker_changes_nothing(core: Core) -> None:
    core.handle(b"Wx", loading("m"))
    assert states(core) == {"m": (Availability.AVAILABLE, "")}


def test_model_whose_last_worker_drains_is_unloading(core: Core) -> None:
    core.handle(b"W1", wire.WorkerDrain(b""))
    assert states(core) == {"m": (Availability.UNLOADING, "")}


def test_processes_that_load_are_remembered_up_to_a_bound(core: Core) -> None:
    for number in range(MAX_REMEMBERED + 5):
        core.handle(b"Wx", loading(str(number), process=str(number).encode()))
    known = core.scheduler.state.loading.list_states()
    assert len(known) == MAX_REMEMBERED
    assert "0" not in known


def test_limits_of_a_key_do_not_hold_for_requests_without_one() -> None:
    core = Core(Limits(max_jobs=PLENTY))
    core.frontend()
    core.worker()
    core.submit(1, ["a"] * 5)
    assert core.failures() == []
