"""Cache in the scheduler: which inputs are answered from memory, and under which conditions."""

from typing import Any

import msgspec
import pytest

from broker.core import dispatch, reuse
from broker.core.limits import Limits
from broker.core.result_cache import ENTRY_BYTES, Row
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Caching, Kind, Lane, Option, Source
from tests.harness.core import DIMENSION, EPOCH, Core, vector

ENTRY = ENTRY_BYTES + 4 * DIMENSION


def start(limits: Limits | None = None, *, workers: int = 1) -> Core:
    core = Core(limits, cache=True)
    core.frontend()
    for number in range(1, workers + 1):
        core.worker(b"W%d" % number)
    return core


def answer_all(core: Core) -> list[str]:
    """Answer batches until there are none, and return their texts."""
    texts: list[str] = []
    while batches := core.batches():
        for batch in batches:
            texts += batch[2]
            core.answer(batch)
    return texts


def compute(core: Core, *texts: str, number: int = 900, options: int = 0, **others: Any) -> list[str]:
    """Submit a request, answer its batches, check its vectors, and return the texts that a worker got."""
    core.submit(number, texts, options=options, **others)
    computed = answer_all(core)
    if not options & Option.TOKENIZE:
        assert core.answers() == {(number, at): vector(text) for at, text in enumerate(texts)}
    return computed


def sources(core: Core) -> dict[tuple[int, int], Source]:
    """Take the rows sent to the frontend, and return where each comes from."""
    found: dict[tuple[int, int], Source] = {}
    for _, message, _ in core.take(wire.Answers):
        columns = zip(wire.unpack_u64(message.requests), wire.unpack_u32(message.positions), strict=True)
        found.update(zip(columns, map(Source, message.sources or bytes(len(message.positions) // 4)), strict=True))
    return found


def count(core: Core) -> dict[str, int]:
    totals = core.scheduler.count_totals()
    return {name: totals[f"cache_{name}"] for name in ("hits", "coalesced", "misses", "evictions")}


def test_equal_input_is_answered_without_a_worker() -> None:
    core = start()
    assert compute(core, "aa") == ["aa"]
    core.submit(2, ["aa"])
    assert core.batches() == []
    assert core.answers() == {(2, 0): vector("aa")}
    assert count(core) == {"hits": 1, "coalesced": 0, "misses": 1, "evictions": 0}
    assert core.scheduler.open_jobs == 0
    assert "equal input (cache)" in core.scheduler.describe_job(b"F1".ljust(16, b"."), 2, 0)[-1]


def test_mixed_request_keeps_the_order_of_its_inputs() -> None:
    """LiteLLM's fault: the vector of a known input for an unknown one (BerriAI/litellm#29284)."""
    core = start()
    compute(core, "a")
    core.submit(2, ["b", "a", "c"])
    found = sources(core)
    assert found == {(2, 1): Source.CACHE}
    (batch,) = core.batches()
    assert batch[2] == ["b", "c"]
    core.answer(batch)
    assert core.answers() == {(2, 0): vector("b"), (2, 2): vector("c")}


def test_answer_has_tokens_and_truncated_tokens() -> None:
    core = start()
    core.submit(1, ["long"], options=Option.TRUNCATE_END)
    ((peer, batch, _),) = core.batches()
    packed = wire.pack_u32
    result = wire.BatchResult(EPOCH, batch, DIMENSION, packed([3]), [], 5, 2, batch, truncated=packed([7]))
    core.handle(peer, result, vector("long"))
    core.submit(2, ["long"], options=Option.TRUNCATE_END)
    (first, second) = (message for _, message, _ in core.take(wire.Answers))
    assert second.truncated == first.truncated == packed([7])
    assert second.tokens == first.tokens == packed([3])
    assert (second.revision, second.inference_us, second.dimension) == ("r", 0, DIMENSION)


def test_hit_does_not_wait_for_a_busy_worker() -> None:
    core = start()
    compute(core, "aa")
    core.submit(2, ["xxx"] * 1)
    core.submit(3, [f"bulk {number}" for number in range(500)], lane=Lane.BULK)
    core.submit(4, ["aa"], lane=Lane.BULK)
    assert core.answers() == {(4, 0): vector("aa")}


def test_hit_needs_no_worker() -> None:
    core = start()
    compute(core, "aa")
    core.lost(b"W1")
    core.submit(2, ["aa"])
    assert core.answers() == {(2, 0): vector("aa")}


@pytest.mark.parametrize(
    ("changes", "hit"),
    [
        ({}, True),
        ({"options": Option.TRUNCATE_END}, False),
        ({"options": Option.RAW}, False),
        ({"options": Option.PROMPT}, False),
        ({"lane": Lane.BULK}, True),
        ({"client": "key two"}, False),
        ({"model": "n"}, False),
    ],
    ids=["same", "truncated", "raw", "prompt", "lane", "other key", "other model"],
)
def test_only_equal_requests_share_a_result(changes: dict[str, Any], hit: bool) -> None:
    core = start()
    core.worker(b"W2", model="n")
    compute(core, "aa", client="key one")
    assert compute(core, "aa", number=2, **{"client": "key one", **changes}) == ([] if hit else ["aa"])


def test_requests_of_one_message_have_their_own_keys() -> None:
    core = start()
    differing = [(0, "one"), (Option.RAW, "one"), (0, "two"), (0, "one")]
    submissions = [
        wire.Submission(number, "m", Lane.BULK, client, 1000, Kind.TEXT, wire.pack_u32([2]), options)
        for number, (options, client) in enumerate(differing, 1)
    ]
    core.handle(b"F1", wire.Submit(submissions), *[b"aa"] * len(submissions))
    assert answer_all(core) == ["aa"] * 3


def test_another_kind_is_another_input() -> None:
    core = start()
    compute(core, "aaaa")
    submission = wire.Submission(2, "m", Lane.BULK, "", 1000, Kind.TOKENS, wire.pack_u32([4]))
    core.handle(b"F1", wire.Submit([submission]), b"aaaa")
    assert answer_all(core) == ["aaaa"]


def test_another_revision_is_another_model() -> None:
    core = start()
    compute(core, "aa")
    core.lost(b"W1")
    core.worker(b"W2", revision="s")
    assert compute(core, "aa", number=2) == ["aa"]


def test_all_keys_share_results_in_scope_all() -> None:
    core = start(Limits(cache_scope="all"))
    compute(core, "aa", client="key one")
    assert compute(core, "aa", number=2, client="key two") == []


def test_clients_without_keys_share_results() -> None:
    core = start()
    core.frontend(b"F2")
    for number, peer in enumerate((b"F1", b"F2")):
        lengths = wire.pack_u32([2])
        submission = wire.Submission(number, "m", Lane.BULK, f"c{number}", 1000, Kind.TEXT, lengths, address="hash")
        core.handle(peer, wire.Submit([submission]), b"aa")
        assert answer_all(core) == (["aa"] if number == 0 else [])
        assert core.answers(peer) == {(number, 0): vector("aa")}


def test_clients_with_keys_of_two_frontends_share_results() -> None:
    core = start()
    core.frontend(b"F2")
    compute(core, "aa", client="key one")
    core.submit(2, ["aa"], b"F2", client="key one")
    assert core.answers(b"F2") == {(2, 0): vector("aa")}


@pytest.mark.parametrize(
    ("first", "second", "computed"),
    [
        (Caching.SKIP, Caching.USE, ["aa"]),
        (Caching.USE, Caching.SKIP, ["aa"]),
        (Caching.USE, Caching.REFRESH, ["aa"]),
        (Caching.REFRESH, Caching.USE, []),
    ],
)
def test_request_chooses_how_results_are_used(first: Caching, second: Caching, computed: list[str]) -> None:
    core = start()
    compute(core, "aa", number=1, caching=first)
    assert compute(core, "aa", number=2, caching=second) == computed


def test_token_ids_of_texts_are_not_stored() -> None:
    core = start()
    for number in (1, 2):
        assert compute(core, "aa", number=number, options=Option.TOKENIZE) == ["aa"]
    assert core.scheduler.state.coalescing.cache.bytes == 0


def test_zero_bytes_switch_cache_and_coalescing_off() -> None:
    core = start(Limits(cache_bytes=0))
    assert compute(core, "aa", "aa", number=1) == ["aa", "aa"]
    assert compute(core, "aa", number=2) == ["aa"]
    assert set(count(core).values()) == {0}


def test_failed_input_is_not_stored() -> None:
    core = start()
    core.submit(1, ["aa", "bb"])
    (batch,) = core.batches()
    core.answer(batch, failures=[wire.JobFailure(0, ErrorCode.TOO_LONG, "long")])
    core.take(wire.Answers)
    assert compute(core, "aa", "bb", number=2) == ["aa"]


def test_vector_with_nan_is_not_stored() -> None:
    core = start()
    core.submit(1, ["aa"])
    ((peer, batch, _),) = core.batches()
    result = wire.BatchResult(EPOCH, batch, DIMENSION, wire.pack_u32([3]), [], 5, 2, batch)
    core.handle(peer, result, b"\xff" * 4 * DIMENSION)
    core.take(wire.Answers)
    assert compute(core, "aa", number=2) == ["aa"]


def test_result_of_a_suspect_is_not_stored() -> None:
    core = start(workers=2)
    core.submit(1, ["aa"])
    ((peer, *_),) = core.batches()
    core.lost(peer)
    assert answer_all(core) == ["aa"]
    assert core.answers() == {(1, 0): vector("aa")}
    assert compute(core, "aa", number=2) == ["aa"]


def test_result_of_a_cancelled_job_is_stored() -> None:
    core = start()
    core.submit(1, ["aa"])
    batches = core.batches()
    core.handle(b"F1", wire.Cancel(wire.pack_u64([1])))
    core.answer(batches[0])
    assert compute(core, "aa", number=2) == []


def test_full_cache_drops_the_oldest_results() -> None:
    core = start(Limits(cache_bytes=2 * ENTRY))
    compute(core, "aa", "bb", "cc", number=1)
    assert count(core)["evictions"] == 1
    assert compute(core, "bb", "cc", number=2) == []
    assert compute(core, "aa", number=3) == ["aa"]


def test_quotas_count_computed_inputs_only() -> None:
    core = start()
    limits: dict[str, Any] = {"client": "key one", "client_tokens": 1000}
    compute(core, "aaaa", number=1, **limits)
    quotas = core.scheduler.state.quotas

    def find_wait() -> float:
        return quotas.find_wait_s("key one", 1000, 1000, core.now)

    before = find_wait()
    compute(core, "aaaa", number=2, **limits)
    assert before > 0
    assert find_wait() == pytest.approx(before)
    compute(core, "bbbb", number=3, **limits)
    assert find_wait() > before


def test_unread_bytes_of_hits_count() -> None:
    core = start()
    compute(core, "aa")
    sent = core.scheduler.state.ledger.by_peer[b"F1"].sent
    compute(core, "aa", number=2)
    assert core.scheduler.state.ledger.by_peer[b"F1"].sent == sent + 4 * DIMENSION


def test_hits_of_several_requests_share_a_message() -> None:
    core = start()
    compute(core, "aa", "bb")
    payloads = [b"aa", b"bb", b"aa"]
    submissions = [
        wire.Submission(number, "m", Lane.INTERACTIVE, "", 1000, Kind.TEXT, wire.pack_u32([2])) for number in (1, 2, 3)
    ]
    core.handle(b"F1", wire.Submit(submissions), *payloads)
    (message,) = [message for _, message, _ in core.take(wire.Answers)]
    assert list(wire.unpack_u64(message.requests)) == [1, 2, 3]


# --- limits of a call ------------------------------------------------------------------------------------------------


def test_large_request_is_looked_up_in_parts() -> None:
    core = start()
    texts = [f"{number:04}" for number in range(600)]
    core.worker(b"W1", batch_tokens=10**6, credit=0)
    core.submit(1, texts, lane=Lane.BULK)
    state = core.scheduler.state
    (request,) = core.frontend_requests()
    first = len(request.list_unknown())
    assert 300 < first < 600
    assert core.scheduler.next_deadline() == state.coalescing.due == core.now
    # Their places in the queue count before they are looked up.
    assert core.model().queue.jobs == 600
    calls = 0
    while request.list_unknown():
        core.tick()
        calls += 1
    assert 1 <= calls <= 3
    assert state.coalescing.due is None
    assert core.scheduler.next_deadline() != core.now


def test_small_requests_are_looked_up_between_parts() -> None:
    core = start()
    compute(core, "aa")
    core.submit(1, [f"{number:04}" for number in range(2000)], lane=Lane.BULK)
    for number, lane in ((2, Lane.BULK), (3, Lane.INTERACTIVE)):
        core.submit(number, ["aa"], lane=lane)
        assert core.answers() == {(number, 0): vector("aa")}
    assert core.scheduler.state.coalescing.due == core.now


def test_large_inputs_use_up_the_share_sooner() -> None:
    core = start()
    core.worker(b"W1", credit=0)
    core.submit(1, ["x" * 300_000, "y" * 300_000, "z" * 300_000, "w" * 300_000], lane=Lane.INTERACTIVE)
    (request,) = core.frontend_requests()
    assert len(request.list_unknown()) == 1
    core.tick()
    assert len(request.list_unknown()) == 0


def test_input_above_the_limit_is_computed() -> None:
    core = start()
    core.submit(1, ["x" * (1024 * 1024 + 1)])
    ((peer, batch, _),) = core.batches()
    result = wire.BatchResult(EPOCH, batch, DIMENSION, wire.pack_u32([3]), [], 5, 2, batch)
    core.handle(peer, result, vector("x"))
    assert core.scheduler.state.coalescing.cache.bytes == 0
    assert count(core)["misses"] == 0


def test_cancelled_request_is_not_looked_up_further() -> None:
    core = start()
    core.submit(1, [f"{number:04}" for number in range(2000)], lane=Lane.BULK)
    core.handle(b"F1", wire.Cancel(wire.pack_u64([1])))
    assert core.scheduler.state.coalescing.due is None
    assert core.model().queue.jobs == 0


def test_request_that_ends_before_its_first_look_up_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "SHARES", {Lane.INTERACTIVE: 0, Lane.BULK: 0})
    core = start()
    core.submit(1, ["aa"])
    assert core.waiting() == [(1, 0)]
    core.handle(b"F1", wire.Cancel(wire.pack_u64([1])))
    assert core.waiting() == []


def test_inputs_computed_meanwhile_are_dropped_at_dispatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "MAX_DROPPED", 4)
    core = Core(cache=True)
    core.frontend()
    core.worker(b"W1", batch_tokens=1, credit=1)
    core.submit(1, ["first"])
    core.submit(2, [f"{number}" for number in range(6)], lane=Lane.BULK)
    # All of them become known while they wait.
    (request,) = [request for request in core.frontend_requests() if request.number == 2]
    coalescing = core.scheduler.state.coalescing
    assert request.keys
    for position in range(6):
        row = Row(vector(str(position)), 3, 0)
        coalescing.cache.add_row(request.keys.compute(request.read_inputs(position, position)), row)
    ((_, first, _),) = core.batches()
    core.answer((b"W1", first, ["first"]), credit=1)
    assert len(core.answers()) == 5
    assert coalescing.due == core.now
    core.tick()
    assert len(core.answers()) == 2
    assert core.batches() == []
    assert coalescing.due is None


def test_settings_of_the_cache_are_checked() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"cache_bytes": -1}, Limits)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"cache_scope": "host"}, Limits)


def test_late_tick_answers_requests_that_came_before() -> None:
    """The time of a tick may be from before the last messages were read."""
    core = start(Limits(), workers=1)
    compute(core, "a")
    core.now += 5
    many = ["a"] * 300
    core.submit(1, many, lane=Lane.BULK)
    for send in core.scheduler.tick(core.now - 1):
        if isinstance(send.message, wire.Answers):
            assert send.message.queue_us >= 0
            assert wire.encode(send.message, send.frames)
    core.tick()
