"""The order in which jobs leave."""

from broker.protocol import Kind, Lane
from broker.queues import AGEING_S, MAX_CLOSED, OVERTAKE_S, QUANTUM, Job, ModelQueue


def job(tokens: int, arrived: float = 0.0, *, client: str = "a", lane: Lane = Lane.BULK) -> Job:
    return Job(
        b"F", 1, 0, model="m", lane=lane, client=client, kind=Kind.TEXT, payload=b"x", tokens=tokens, arrived=arrived
    )


def queue(*jobs: Job) -> ModelQueue:
    made = ModelQueue()
    for one in jobs:
        made.push(one)
    return made


def take(waiting: ModelQueue, tokens: int, now: float = 0.0, lane: Lane = Lane.BULK) -> list[Job]:
    """The next batch, a suspect or of a lane."""
    return waiting.take_suspect() if waiting.suspected else waiting.take(lane, tokens, now)


def lanes(waiting: ModelQueue, tokens: int, now: float, batches: int) -> list[Lane]:
    """The lanes of the next batches, each as soon as it may leave."""
    left = []
    for _ in range(batches):
        left.append(waiting.lanes(tokens)[0])
        waiting.take(left[-1], tokens, now)
    return left


def test_jobs_of_similar_length_leave_together_with_the_oldest() -> None:
    long, short = [job(100, 0.0), job(99, 0.2)], [job(5, 0.1), job(5, 0.3)]
    waiting = queue(long[0], short[0], long[1], short[1])
    assert take(waiting, 210, 3.0) == [*long, *short]
    waiting = queue(long[0], short[0], long[1], short[1])
    assert take(waiting, 199, 3.0) == long
    assert take(waiting, 199, 3.0) == short


def test_jobs_of_similar_length_overtake_only_those_that_came_soon_before_them() -> None:
    first, odd = job(100, 0.0), job(5, 0.1)
    soon, late = job(100, 0.1 + OVERTAKE_S), job(100, 0.2 + OVERTAKE_S)
    waiting = queue(first, odd, soon, late)
    assert take(waiting, 300, 1.0) == [first, soon, odd]
    assert take(waiting, 300, 1.0) == [late]


def test_first_job_is_taken_whatever_its_size() -> None:
    waiting = queue(job(1000))
    assert len(take(waiting, 10, 0.0)) == 1
    assert not waiting


def test_clients_take_turns_in_tokens() -> None:
    flood = [job(QUANTUM // 4, client="flood") for _ in range(100)]
    few = [job(QUANTUM // 4, client="few") for _ in range(4)]
    batch = take(queue(*flood, *few), QUANTUM * 2)
    assert [one.client for one in batch].count("few") == 4


def test_client_of_long_jobs_gets_no_more_tokens_than_one_of_short_ones() -> None:
    waiting = queue(
        *(job(QUANTUM * 2, client="long") for _ in range(50)), *(job(8, client="short") for _ in range(5000))
    )
    taken = {"long": 0, "short": 0}
    while waiting.tokens > 60 * QUANTUM:
        for one in take(waiting, QUANTUM * 4):
            taken[str(one.client)] += one.tokens
    assert 0.8 < taken["short"] / taken["long"] < 1.25


def test_lanes_share_by_weight() -> None:
    waiting = queue(*(job(10, lane=lane) for lane in Lane for _ in range(1000)))
    left = lanes(waiting, 100, 0.0, 50)
    assert left.count(Lane.INTERACTIVE) == 40
    assert Lane.BULK in left[:5]


def test_interactive_jobs_may_be_a_batch_ahead_but_not_more() -> None:
    waiting = queue(*(job(10, lane=lane) for lane in Lane for _ in range(1000)))
    for allowed in (True, True, False, False):
        assert (Lane.INTERACTIVE in waiting.lanes(100)) == allowed
        take(waiting, 100, lane=Lane.INTERACTIVE)
    take(waiting, 100, lane=Lane.BULK)
    assert Lane.INTERACTIVE in waiting.lanes(100)


def test_lane_that_was_empty_has_no_claim_on_the_time_before() -> None:
    waiting = queue(*(job(10) for _ in range(1000)))
    assert lanes(waiting, 100, 0.0, 50) == [Lane.BULK] * 50
    for _ in range(1000):
        waiting.push(job(10, lane=Lane.INTERACTIVE))
    assert lanes(waiting, 100, 0.0, 50).count(Lane.BULK) == 10


def test_one_lane_alone_has_the_whole_batch() -> None:
    assert len(take(queue(*(job(10) for _ in range(200))), 1000)) == 100


def test_lanes_share_grows_with_the_age_of_its_oldest_job() -> None:
    now = 100.0
    bulk = [job(10, now - 100 * AGEING_S, lane=Lane.BULK) for _ in range(1000)]
    fresh = [job(10, now, lane=Lane.INTERACTIVE) for _ in range(1000)]
    assert lanes(queue(*fresh, *bulk), 100, now, 50).count(Lane.BULK) > 45


def test_suspects_leave_one_by_one() -> None:
    waiting = queue(job(1))
    suspects = [job(1), job(1)]
    for one in suspects:
        one.suspect = True
    waiting.push_back(suspects)
    assert waiting.suspected
    assert [take(waiting, 100, 0.0) for _ in range(2)] == [[suspects[0]], [suspects[1]]]
    assert len(take(waiting, 100, 0.0)) == 1


def test_returned_jobs_stand_at_the_head_in_their_old_order() -> None:
    first, second, third = job(10, 0.0), job(10, 1.0), job(10, 2.0)
    waiting = queue(third)
    waiting.push_back([first, second])
    assert take(waiting, 100, 2.0) == [first, second, third]


def test_discarded_jobs_are_passed_over() -> None:
    first, second, third = job(10, 0.0), job(10, 1.0), job(10, 2.0, client="b")
    suspect = job(10)
    suspect.suspect = True
    waiting = queue(first, second, third)
    waiting.push_back([suspect])
    for one in (suspect, first, third):
        waiting.discard(one)
    assert waiting.waiting() == [second]
    assert take(waiting, 100, 2.0) == [second]
    assert not waiting.suspected
    assert waiting.lanes(100) == []
    assert (waiting.jobs, waiting.tokens, waiting.tokens_ahead(Lane.BULK, "a", 1)) == (0, 0, 0)


def test_discarded_jobs_are_let_go_before_there_are_too_many() -> None:
    suspect = job(1)
    suspect.suspect = True
    waiting = queue(job(10, client="stays"))
    waiting.push_back([suspect])
    gone = [job(10) for _ in range(3 * MAX_CLOSED)]
    for one in gone:
        waiting.push(one)
    for one in gone:
        waiting.discard(one)
    assert sum(1 for lane in waiting._lanes.values() for client in lane._clients.values()
               for bucket in client._buckets.values() for _ in bucket) <= MAX_CLOSED + 10  # fmt: skip
    assert [len(take(waiting, 100, 0.0)) for _ in range(2)] == [1, 1]
    assert not waiting


def test_tokens_ahead_of_a_job_are_its_lanes_and_the_others_share() -> None:
    waiting = queue(job(400, lane=Lane.INTERACTIVE), *(job(1000, lane=Lane.BULK) for _ in range(10)))
    assert waiting.tokens_ahead(Lane.INTERACTIVE, "a", 10) == 500
    assert waiting.tokens_ahead(Lane.BULK, "a", 10) == 10_400


def test_tokens_ahead_of_another_client_are_no_more_than_its_own_turns_let_leave() -> None:
    waiting = queue(*(job(100) for _ in range(100)), *(job(10, client="few") for _ in range(3)))
    assert waiting.tokens_ahead(Lane.BULK, "new", 20) == 5 * (20 + 20)
    assert waiting.tokens_ahead(Lane.BULK, "few", 20) == 5 * (50 + 30)
    assert waiting.tokens_ahead(Lane.BULK, "a", 20) == waiting.tokens
