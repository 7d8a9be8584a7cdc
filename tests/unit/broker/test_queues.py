"""Order in which inputs leave the queue of a model."""

from broker.core.jobs import Job, Request
from broker.core.queues import AGEING_S, QUANTUM, ModelQueue
from broker.wire.protocol import Kind, Lane
from tests.harness.core import make_request


def build_request(*tokens: int, arrived: float = 0.0, client: str = "a", lane: Lane = Lane.BULK) -> Request:
    """Return a request of inputs that have these numbers of tokens."""
    inputs = [bytes(4 * count) for count in tokens]
    return make_request(inputs, arrived, client=client, lane=lane, kind=Kind.TOKENS)


def build_queue(*requests: Request) -> ModelQueue:
    waiting = ModelQueue()
    for request in requests:
        waiting.push(request)
    return waiting


def take_batch(waiting: ModelQueue, tokens: int, now: float = 0.0, lane: Lane = Lane.BULK) -> list[Job]:
    """Return the next batch: a suspect, or jobs of a lane."""
    return waiting.take_suspect() if waiting.has_suspect else waiting.take(lane, tokens, now)


def take_requests(waiting: ModelQueue, tokens: int, now: float = 0.0) -> list[Request]:
    """Return the requests of the next batch's jobs."""
    return [job.request for job in take_batch(waiting, tokens, now)]


def take_lanes(waiting: ModelQueue, tokens: int, now: float, batches: int) -> list[Lane]:
    """Return the lanes of the next batches, each taken as soon as it may leave."""
    taken = []
    for _ in range(batches):
        taken.append(waiting.list_lanes(tokens)[0])
        waiting.take(taken[-1], tokens, now)
    return taken


def make_suspects(request: Request) -> list[Job]:
    """Return the jobs of a request as if their batch had crashed a worker."""
    assert request.tokens
    jobs = [request.make_job(position) for position in range(request.inputs)]
    for job in jobs:
        job.suspect = True
    return jobs


def test_requests_leave_in_order_of_arrival() -> None:
    requests = [build_request(tokens, arrived=tokens / 1000) for tokens in (100, 101, 5, 99, 6)]
    waiting = build_queue(*requests)
    assert take_requests(waiting, 210, 3.0) == requests[:3]
    assert take_requests(waiting, 210, 3.0) == requests[3:]


def test_inputs_of_one_request_leave_by_position() -> None:
    waiting = build_queue(build_request(100, 5, 99, 5, 101))
    assert [job.position for job in take_batch(waiting, 205)] == [0, 1, 2]
    assert [job.position for job in take_batch(waiting, 300)] == [3, 4]


def test_requeued_inputs_are_not_overtaken() -> None:
    long, short = build_request(100, arrived=0.0), build_request(30, arrived=0.1)
    late = build_request(100, 100, arrived=1.0)
    waiting = build_queue(long, short)
    jobs = take_batch(waiting, 100) + take_batch(waiting, 30)
    waiting.push(late)
    assert take_requests(waiting, 100, 1.0) == [late]
    waiting.push_back(jobs)
    assert take_requests(waiting, 1000, 1.0) == [long, short, late]


def test_first_input_may_exceed_batch_size() -> None:
    waiting = build_queue(build_request(1000))
    assert len(take_batch(waiting, 10, 0.0)) == 1
    assert not waiting


def test_clients_take_turns_in_tokens() -> None:
    flood, few = build_request(*[QUANTUM // 4] * 100, client="flood"), build_request(*[QUANTUM // 4] * 4, client="few")
    batch = take_requests(build_queue(flood, few), QUANTUM * 2)
    assert batch.count(few) == 4


def test_long_and_short_inputs_get_equal_tokens() -> None:
    waiting = build_queue(build_request(*[QUANTUM * 2] * 50, client="long"), build_request(*[8] * 5000, client="short"))
    taken = {"long": 0, "short": 0}
    while waiting.tokens > 60 * QUANTUM:
        for job in take_batch(waiting, QUANTUM * 4):
            taken[str(job.request.client)] += job.tokens
    assert 0.8 < taken["short"] / taken["long"] < 1.25


def test_lanes_share_by_weight() -> None:
    waiting = build_queue(*(build_request(*[10] * 1000, lane=lane) for lane in Lane))
    taken = take_lanes(waiting, 100, 0.0, 50)
    assert taken.count(Lane.INTERACTIVE) == 40
    assert Lane.BULK in taken[:5]


def test_interactive_lead_over_bulk_is_bounded() -> None:
    waiting = build_queue(*(build_request(*[10] * 1000, lane=lane) for lane in Lane))
    for allowed in (True, True, False, False):
        assert (Lane.INTERACTIVE in waiting.list_lanes(100)) == allowed
        take_batch(waiting, 100, lane=Lane.INTERACTIVE)
    take_batch(waiting, 100, lane=Lane.BULK)
    assert Lane.INTERACTIVE in waiting.list_lanes(100)


def test_empty_lane_saves_no_share() -> None:
    waiting = build_queue(build_request(*[10] * 1000))
    assert take_lanes(waiting, 100, 0.0, 50) == [Lane.BULK] * 50
    waiting.push(build_request(*[10] * 1000, lane=Lane.INTERACTIVE))
    assert take_lanes(waiting, 100, 0.0, 50).count(Lane.BULK) == 10


def test_lone_lane_fills_whole_batch() -> None:
    assert len(take_batch(build_queue(build_request(*[10] * 200)), 1000)) == 100


def test_lane_share_grows_with_age() -> None:
    now = 100.0
    bulk = build_request(*[10] * 1000, arrived=now - 100 * AGEING_S, lane=Lane.BULK)
    fresh = build_request(*[10] * 1000, arrived=now, lane=Lane.INTERACTIVE)
    assert take_lanes(build_queue(fresh, bulk), 100, now, 50).count(Lane.BULK) > 45


def test_suspects_leave_one_by_one() -> None:
    waiting = build_queue(build_request(1))
    suspects = make_suspects(build_request(1, 1))
    waiting.push_back(suspects)
    assert waiting.has_suspect
    assert [take_batch(waiting, 100, 0.0) for _ in range(2)] == [[suspects[0]], [suspects[1]]]
    assert len(take_batch(waiting, 100, 0.0)) == 1


def test_requeued_jobs_leave_first_in_old_order() -> None:
    first, second = build_request(10, 11, arrived=0.0), build_request(10, arrived=1.0)
    third = build_request(10, arrived=2.0)
    waiting = build_queue(first, second)
    jobs = take_batch(waiting, 15) + take_batch(waiting, 20)
    waiting.push(third)
    waiting.push_back(reversed(jobs))
    assert take_batch(waiting, 25, 2.0) == jobs[:2]
    assert take_requests(waiting, 100, 2.0) == [second, third]


def test_requeued_jobs_rejoin_their_request() -> None:
    request = build_request(10, 10, 10)
    waiting = build_queue(request)
    jobs = take_batch(waiting, 10)
    waiting.push_back(jobs)
    assert [job.position for job in take_batch(waiting, 100)] == [0, 1, 2]
    assert not waiting


def test_returned_inputs_come_before_later_ones() -> None:
    request = build_request(10, 10, 10, 10)
    waiting = build_queue(request)
    jobs = take_batch(waiting, 30)
    waiting.push_back([jobs[2], jobs[0]])
    assert [job.position for job in take_batch(waiting, 20)] == [0, 2]
    assert [job.position for job in take_batch(waiting, 20)] == [3]


def test_discarded_requests_leave_every_queue() -> None:
    first, second = build_request(10, arrived=0.0), build_request(10, arrived=1.0)
    third = build_request(10, arrived=2.0, client="b")
    suspect = build_request(10)
    waiting = build_queue(first, second, third)
    waiting.push_back(make_suspects(suspect))
    for request in (suspect, first, third):
        waiting.discard(request)
    assert [(request, list(positions)) for request, positions in waiting.list_waiting()] == [(second, [0])]
    assert take_requests(waiting, 100, 2.0) == [second]
    assert not waiting.has_suspect
    assert waiting.list_lanes(100) == []
    assert (waiting.jobs, waiting.tokens, waiting.count_tokens_ahead(Lane.BULK, "a", 1)) == (0, 0, 0)


def test_partly_dispatched_request_is_discarded() -> None:
    request, other = build_request(10, 200, 10, 200), build_request(10)
    waiting = build_queue(request, other)
    assert len(take_batch(waiting, 10)) == 1
    waiting.discard(request)
    assert (waiting.jobs, waiting.tokens) == (1, 10)
    assert take_requests(waiting, 100) == [other]


def test_tokens_ahead_include_other_lanes_share() -> None:
    waiting = build_queue(build_request(400, lane=Lane.INTERACTIVE), build_request(*[1000] * 10, lane=Lane.BULK))
    assert waiting.count_tokens_ahead(Lane.INTERACTIVE, "a", 10) == 500
    assert waiting.count_tokens_ahead(Lane.BULK, "a", 10) == 10_400


def test_tokens_ahead_are_bounded_by_clients_turns() -> None:
    waiting = build_queue(build_request(*[100] * 100), build_request(10, 10, 10, client="few"))
    assert waiting.count_tokens_ahead(Lane.BULK, "new", 20) == 5 * (20 + 20)
    assert waiting.count_tokens_ahead(Lane.BULK, "few", 20) == 5 * (50 + 30)
    assert waiting.count_tokens_ahead(Lane.BULK, "a", 20) == waiting.tokens
