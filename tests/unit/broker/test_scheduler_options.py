"""Options of requests (token ids, truncation), limits of API keys, and states of models that are loading.

Each call of the scheduler is followed by a check of all invariants; see `tests/harness/core.py`.
"""

import pytest

from broker.core.jobs import TOKENIZE_DISCOUNT
from broker.core.limits import Limits
from broker.core.model_loading import FAILED_S, MAX_REMEMBERED
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Availability, Option
from tests.harness.core import DIMENSION, EPOCH, KEY, Core, row, vector

#: More open jobs than any of these tests has.
PLENTY = 10_000


def test_batch_has_options_and_origins_of_jobs(core: Core) -> None:
    core.submit(1, ["busy"])
    (busy,) = core.batches()
    core.submit(3, ["aa", "bb"], options=Option.TRUNCATE_END)
    core.submit(4, ["cc"])
    core.submit(5, ["dd"], options=Option.TOKENIZE)
    core.answer(busy)
    ((_, batch, _),) = core.take(wire.Batch)
    assert list(batch.options) == [1, 1, 0, 8]
    assert [origin.request_id for origin in batch.origins] == ["request 3", "request 4", "request 5"]


def test_batch_without_options_has_empty_column(core: Core) -> None:
    core.submit(1, ["a", "b"])
    ((_, batch, _),) = core.take(wire.Batch)
    assert (batch.options, len(batch.origins)) == (b"", 1)


# --- token ids -------------------------------------------------------------------------------------------------------


def dispatch_mixed(core: Core) -> tuple[bytes, int, list[str]]:
    """Return the worker's only batch: jobs of two frontends, some of which are only tokenized."""
    core.submit(1, ["busy"])
    (busy,) = core.batches()
    core.frontend(b"F2")
    core.submit(2, ["vector"])
    core.submit(3, ["a longer text", "b"], options=Option.TOKENIZE)
    core.submit(4, ["of another"], b"F2", options=Option.TOKENIZE)
    core.submit(5, ["too"], b"F2")
    core.answer(busy)
    core.answers()
    (batch,) = core.batches()
    assert len(batch[2]) == 5
    return batch


def test_one_batch_answers_token_ids_and_vectors(core: Core) -> None:
    core.answer(dispatch_mixed(core))
    assert core.answers() == {
        (2, 0): vector("vector"),
        (3, 0): row("a longer text", Option.TOKENIZE),
        (3, 1): row("b", Option.TOKENIZE),
    }
    assert core.answers(b"F2") == {(4, 0): row("of another", Option.TOKENIZE), (5, 0): vector("too")}


def test_rows_of_cancelled_and_failed_jobs_are_dropped(core: Core) -> None:
    batch = dispatch_mixed(core)
    core.handle(b"F1", wire.Cancel(wire.pack_u64([3])))
    position = batch[2].index("of another")
    core.answer(batch, failures=[wire.JobFailure(position, ErrorCode.INVALID_INPUT, "no")])
    assert core.answers() == {(2, 0): vector("vector")}
    assert core.answers(b"F2") == {(5, 0): vector("too")}
    assert core.failures(b"F2") == [(4, 0, ErrorCode.INVALID_INPUT)]


@pytest.mark.parametrize("wrong", ["vector for ids", "short row", "too many ids"])
def test_rows_of_wrong_size_are_not_served(core: Core, wrong: str) -> None:
    core.submit(1, ["abc"], options=Option.TOKENIZE)
    core.tick(1.0)
    core.submit(2, ["abc"])
    tokenized, embedded = core.batches()
    if wrong == "short row":
        result = wire.BatchResult(
            EPOCH, embedded[1], DIMENSION, wire.pack_u32([5]), [], 5, 2, 1, sizes=wire.pack_u32([8])
        )
        core.handle(b"W1", result, bytes(8))
    elif wrong == "too many ids":
        result = wire.BatchResult(
            EPOCH, tokenized[1], DIMENSION, wire.pack_u32([5]), [], 5, 2, 1, sizes=wire.pack_u32([24])
        )
        core.handle(b"W1", result, bytes(24))
    else:
        result = wire.BatchResult(EPOCH, tokenized[1], DIMENSION, wire.pack_u32([5]), [], 5, 2, 1)
        core.handle(b"W1", result, bytes(4 * DIMENSION))
    assert core.answers() == {}
    ((_, goodbye, _),) = core.take(wire.Goodbye)
    assert "invalid result" in goodbye.text


def test_tokenizing_is_cheap_and_changes_no_throughput(core: Core) -> None:
    core.submit(1, ["x" * 100 * TOKENIZE_DISCOUNT], options=Option.TOKENIZE)
    assert core.scheduler.state.ledger.tokens <= 100
    worker = core.scheduler.state.pool.workers[b"W1"]
    before = worker.models[KEY].throughput.tokens_per_s
    core.tick(0.001)
    core.answer(*core.batches())
    assert worker.models[KEY].throughput.tokens_per_s == before


def test_truncated_tokens_are_reported_and_counted(core: Core) -> None:
    model = core.model()
    core.submit(1, ["x" * 40, "y"], options=Option.TRUNCATE_END)
    before = model.tokens_per_byte
    result = wire.BatchResult(
        EPOCH, 1, DIMENSION, wire.pack_u32([20, 3]), [], 5, 2, 1, truncated=wire.pack_u32([22, 0])
    )
    core.handle(b"W1", result, bytes(2 * 4 * DIMENSION))
    ((_, answers, _),) = core.take(wire.Answers)
    assert list(wire.unpack_u32(answers.truncated)) == [22, 0]
    # 42 and 3 tokens, 2 of which are special in each text, from 41 bytes.
    assert model.tokens_per_byte == pytest.approx(before + 0.1 * (1 - before))


# --- keys ------------------------------------------------------------------------------------------------------------


def test_open_jobs_of_key_are_limited(core: Core) -> None:
    core.submit(1, ["a", "b"], client="key", client_jobs=3)
    core.submit(2, ["c", "d"], client="key", client_jobs=3)
    assert core.failures() == [(2, -1, ErrorCode.QUOTA)]
    core.submit(3, ["c"], client="key", client_jobs=3)
    core.submit(4, ["c", "d"], client="another", client_jobs=3)
    assert core.failures() == []


def test_request_larger_than_key_limit_is_invalid(core: Core) -> None:
    core.submit(1, ["a", "b"], client="key", client_jobs=1)
    ((_, message, _),) = core.take(wire.Failures)
    assert message.failures[0].code == ErrorCode.INVALID_INPUT
    assert message.failures[0].text == "the request has 2 inputs, but its key may have 1 open at once; split it"


def test_tokens_of_key_refill_with_time() -> None:
    core = Core(Limits(liveness_s=1000, lease_s=1000))
    core.frontend()
    core.worker()
    # 28 bytes are 10 tokens by the first estimate.
    core.submit(1, ["x" * 28], client="key", client_tokens=15)
    core.submit(2, ["x" * 28], client="key", client_tokens=15)
    ((_, message, _),) = core.take(wire.Failures)
    assert message.failures[0].code == ErrorCode.QUOTA
    # 5 tokens are missing, and 15 are refilled per minute.
    assert message.failures[0].retry_after_ms == pytest.approx(20_000, abs=1)
    core.tick(19.0)
    core.submit(3, ["x" * 28], client="key", client_tokens=15)
    assert core.failures() == [(1, -1, ErrorCode.DEADLINE), (3, -1, ErrorCode.QUOTA)]
    core.tick(1.1)
    core.submit(4, ["x" * 28], client="key", client_tokens=15)
    core.submit(5, ["x" * 28], client="another", client_tokens=15)
    core.submit(6, ["x" * 28])
    assert core.failures() == []


def test_exact_tokens_replace_estimate_in_quota(core: Core) -> None:
    core.submit(1, ["x" * 28], client="key", client_tokens=40)
    core.answer(*core.batches())
    assert core.scheduler.state.quotas.find_wait_s("key", 10, 40, core.now) == 0
    # The bucket had 30 tokens left.
    assert core.scheduler.state.quotas.find_wait_s("key", 11, 40, core.now) > 0


def test_tokenizing_keeps_its_estimate_in_quota(core: Core) -> None:
    core.submit(1, ["x" * 28], client="key", client_tokens=40, options=Option.TOKENIZE)
    core.answer(*core.batches())
    assert core.scheduler.state.quotas.find_wait_s("key", 39, 40, core.now) == 0
    assert core.scheduler.state.quotas.find_wait_s("key", 40, 40, core.now) > 0


# --- loading ---------------------------------------------------------------------------------------------------------


def build_notice(name: str = "new", failure: str = "", process: bytes = b"L") -> wire.WorkerLoading:
    """Return the notice of a process that is loading a model, or failed to."""
    return wire.WorkerLoading(process.ljust(16, b"."), "host", 1, name, failure)


def take_states(core: Core) -> dict[str, tuple[Availability, str]]:
    """Take the model lists sent to the frontend, and return each model's state from the latest."""
    *_, (_, models, _) = core.take(wire.Models, b"F1")
    return {state.name: (state.state, state.text) for state in models.states}


def test_loading_model_becomes_available(core: Core) -> None:
    core.handle(b"Wx", build_notice())
    assert take_states(core) == {"m": (Availability.AVAILABLE, ""), "new": (Availability.LOADING, "")}
    core.handle(b"Wx", build_notice())
    assert core.take(wire.Models) == []
    assert core.take(wire.Who) == []
    core.worker(b"W2", model="new", uuid=b"L")
    assert take_states(core)["new"] == (Availability.AVAILABLE, "")
    core.handle(b"W2", wire.WorkerGoodbye())
    assert take_states(core)["new"] == (Availability.END, "")


def test_load_failure_is_reported_until_model_is_served(core: Core) -> None:
    core.handle(b"Wx", build_notice(failure="no such folder"))
    assert take_states(core)["new"] == (Availability.FAILED, "no such folder")
    core.handle(b"Wy", build_notice(process=b"M"))
    assert take_states(core)["new"] == (Availability.LOADING, "")
    core.worker(b"W2", model="new", uuid=b"M")
    core.handle(b"W2", wire.WorkerGoodbye())
    assert take_states(core)["new"] == (Availability.END, "")


def test_old_loading_notices_are_dropped(core: Core) -> None:
    core.handle(b"Wx", build_notice())
    core.handle(b"Wy", build_notice("other", "broken", b"M"))
    for _ in range(4):
        core.tick(1.0)
        core.handle(b"F1", wire.FrontendHeartbeat())
        core.handle(b"W1", wire.WorkerHeartbeat(2, 0))
    assert take_states(core) == {"m": (Availability.AVAILABLE, ""), "other": (Availability.FAILED, "broken")}
    assert core.scheduler.next_deadline() is not None
    assert core.scheduler.state.loading.drop_expired(core.now + FAILED_S)
    assert core.scheduler.state.loading.next_deadline() is None


def test_loading_of_served_model_is_ignored(core: Core) -> None:
    core.handle(b"Wx", build_notice("m"))
    assert take_states(core) == {"m": (Availability.AVAILABLE, "")}


def test_model_of_draining_worker_is_unloading(core: Core) -> None:
    core.handle(b"W1", wire.WorkerDrain(b""))
    assert take_states(core) == {"m": (Availability.UNLOADING, "")}


def test_remembered_loading_processes_are_bounded(core: Core) -> None:
    for number in range(MAX_REMEMBERED + 5):
        core.handle(b"W%d" % number, build_notice(str(number), process=str(number).encode()))
    known = [state.name for state in core.scheduler.state.loading.list_states()]
    assert len(known) == MAX_REMEMBERED
    assert "0" not in known


def test_peer_has_one_loading_notice_at_most(core: Core) -> None:
    core.handle(b"Wx", build_notice("honest", "broken", b"H"))
    for number in range(9):
        core.handle(b"Wy", build_notice(str(number), process=str(number).encode()))
    assert take_states(core).keys() == {"m", "honest", "8"}


def test_notice_on_new_connection_replaces_old(core: Core) -> None:
    core.handle(b"Wx", build_notice())
    core.take(wire.Models)
    core.handle(b"Wy", build_notice())
    assert core.take(wire.Models) == []
    assert core.scheduler.trusted_peers == {b"F1", b"W1", b"Wy"}


def test_revoked_peer_loses_notice_and_session(core: Core) -> None:
    core.handle(b"Wx", build_notice(failure="a text for all users"))
    core.lost(b"Wx")
    assert "new" in take_states(core)
    core.revoke(b"Wx")
    core.revoke(b"W1")
    assert take_states(core) == {"m": (Availability.END, "")}
    core.revoke(b"F1")
    assert core.scheduler.trusted_peers == set()


def test_request_without_key_has_no_limit() -> None:
    core = Core(Limits(max_jobs=PLENTY))
    core.frontend()
    core.worker()
    core.submit(1, ["a"] * 5)
    assert core.failures() == []
