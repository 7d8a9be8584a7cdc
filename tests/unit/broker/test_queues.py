"""The order in which inputs leave."""

import pytest

from broker.core.client_queue import MAX_BATCH_JOBS, MAX_SORTED, OVERTAKE_S
from broker.core.jobs import Job, Request
from broker.core.queues import AGEING_S, QUANTUM, ModelQueue
from broker.wire.protocol import Kind, Lane
from tests.harness.core import make_request


def ask(*tokens: int, arrived: float = 0.0, client: str = "a", lane: Lane = Lane.BULK) -> Request:
    """Return a request whose inputs have so many tokens."""
    inputs = [bytes(4 * count) for count in tokens]
    return make_request(inputs, arrived, client=client, lane=lane, kind=Kind.TOKENS)


def queue(*requests: Request) -> ModelQueue:
    made = ModelQueue()
    for one in requests:
        made.push(one)
    return made


def take(waiting: ModelQueue, tokens: int, now: float = 0.0, lane: Lane = Lane.BULK) -> list[Job]:
    """The next batch, a suspect or of a lane."""
    return waiting.take_suspect() if waiting.has_suspect else waiting.take(lane, tokens, now)


def take_requests(waiting: ModelQueue, tokens: int, now: float = 0.0) -> list[Request]:
    """The requests of the next batch's jobs."""
    return [job.request for job in take(waiting, tokens, now)]


def lanes(waiting: ModelQueue, tokens: int, now: float, batches: int) -> list[Lane]:
    """The lanes of the next batches, each as soon as it may leave."""
    left = []
    for _ in range(batches):
        left.append(waiting.list_lanes(tokens)[0])
        waiting.take(left[-1], tokens, now)
    return left


def make_suspects(request: Request) -> list[Job]:
    """The jobs of a request that was dispatched and came back."""
    request.sort_inputs()
    jobs = [request.make_job(position) for position in range(request.inputs)]
    for job in jobs:
        job.suspect = True
    return jobs


def test_inputs_of_similar_length_leave_together_with_the_oldest() -> None:
    def made() -> tuple[ModelQueue, list[Request], list[Request]]:
        long, short = [ask(100, arrived=0.0), ask(99, arrived=0.2)], [ask(5, arrived=0.1), ask(5, arrived=0.3)]
        return queue(long[0], short[0], long[1], short[1]), long, short

    waiting, long, short = made()
    assert take_requests(waiting, 210, 3.0) == [*long, *short]
    waiting, long, short = made()
    assert take_requests(waiting, 199, 3.0) == long
    assert take_requests(waiting, 199, 3.0) == short


def test_inputs_of_one_request_leave_by_length_too() -> None:
    waiting = queue(ask(100, 5, 99, 5, 101))
    assert [job.tokens for job in take(waiting, 300)] == [100, 99, 101]
    assert [job.position for job in take(waiting, 300)] == [1, 3]


def test_inputs_of_similar_length_overtake_only_those_that_came_soon_before_them() -> None:
    first, odd = ask(100, arrived=0.0), ask(5, arrived=0.1)
    soon, late = ask(100, arrived=0.1 + OVERTAKE_S), ask(100, arrived=0.2 + OVERTAKE_S)
    waiting = queue(first, odd, soon, late)
    assert take_requests(waiting, 300, 1.0) == [first, soon, odd]
    assert take_requests(waiting, 300, 1.0) == [late]


def test_inputs_that_came_back_are_not_overtaken_by_later_ones_of_similar_length() -> None:
    long, short, late = ask(100, arrived=0.0), ask(30, arrived=0.0), ask(100, 100, arrived=1.0)
    waiting = queue(long, short)
    jobs = take(waiting, 100) + take(waiting, 30)
    waiting.push(late)
    assert take_requests(waiting, 100, 1.0) == [late]
    waiting.push_back(jobs)
    assert take_requests(waiting, 1000, 1.0) == [long, short, late]


def test_first_input_is_taken_whatever_its_size() -> None:
    waiting = queue(ask(1000))
    assert len(take(waiting, 10, 0.0)) == 1
    assert not waiting


def test_clients_take_turns_in_tokens() -> None:
    flood, few = ask(*[QUANTUM // 4] * 100, client="flood"), ask(*[QUANTUM // 4] * 4, client="few")
    batch = take_requests(queue(flood, few), QUANTUM * 2)
    assert batch.count(few) == 4


def test_client_of_long_inputs_gets_no_more_tokens_than_one_of_short_ones() -> None:
    waiting = queue(ask(*[QUANTUM * 2] * 50, client="long"), ask(*[8] * 5000, client="short"))
    taken = {"long": 0, "short": 0}
    while waiting.tokens > 60 * QUANTUM:
        for one in take(waiting, QUANTUM * 4):
            taken[str(one.request.client)] += one.tokens
    assert 0.8 < taken["short"] / taken["long"] < 1.25


def test_lanes_share_by_weight() -> None:
    waiting = queue(*(ask(*[10] * 1000, lane=lane) for lane in Lane))
    left = lanes(waiting, 100, 0.0, 50)
    assert left.count(Lane.INTERACTIVE) == 40
    assert Lane.BULK in left[:5]


def test_interactive_inputs_may_be_a_batch_ahead_but_not_more() -> None:
    waiting = queue(*(ask(*[10] * 1000, lane=lane) for lane in Lane))
    for allowed in (True, True, False, False):
        assert (Lane.INTERACTIVE in waiting.list_lanes(100)) == allowed
        take(waiting, 100, lane=Lane.INTERACTIVE)
    take(waiting, 100, lane=Lane.BULK)
    assert Lane.INTERACTIVE in waiting.list_lanes(100)


def test_lane_that_was_empty_has_no_claim_on_the_time_before() -> None:
    waiting = queue(ask(*[10] * 1000))
    assert lanes(waiting, 100, 0.0, 50) == [Lane.BULK] * 50
    waiting.push(ask(*[10] * 1000, lane=Lane.INTERACTIVE))
    assert lanes(waiting, 100, 0.0, 50).count(Lane.BULK) == 10


def test_one_lane_alone_has_the_whole_batch() -> None:
    assert len(take(queue(ask(*[10] * 200)), 1000)) == 100


def test_lanes_share_grows_with_the_age_of_its_oldest_input() -> None:
    now = 100.0
    bulk = ask(*[10] * 1000, arrived=now - 100 * AGEING_S, lane=Lane.BULK)
    fresh = ask(*[10] * 1000, arrived=now, lane=Lane.INTERACTIVE)
    assert lanes(queue(fresh, bulk), 100, now, 50).count(Lane.BULK) > 45


def test_suspects_leave_one_by_one() -> None:
    waiting = queue(ask(1))
    suspects = make_suspects(ask(1, 1))
    waiting.push_back(suspects)
    assert waiting.has_suspect
    assert [take(waiting, 100, 0.0) for _ in range(2)] == [[suspects[0]], [suspects[1]]]
    assert len(take(waiting, 100, 0.0)) == 1


def test_returned_jobs_stand_at_the_head_in_their_old_order() -> None:
    first, second, third = ask(10, 11, arrived=0.0), ask(10, arrived=1.0), ask(10, arrived=2.0)
    waiting = queue(first, second)
    jobs = take(waiting, 15) + take(waiting, 20)
    waiting.push(third)
    waiting.push_back(reversed(jobs))
    assert take(waiting, 25, 2.0) == jobs[:2]
    assert take_requests(waiting, 100, 2.0) == [second, third]


def test_rest_of_a_request_and_what_came_back_of_it_are_one() -> None:
    request = ask(10, 10, 10)
    waiting = queue(request)
    first = take(waiting, 10)
    waiting.push_back(first)
    assert [job.position for job in take(waiting, 100)] == [0, 1, 2]
    assert request.queued_in == set()


def test_discarded_requests_are_gone_wherever_they_wait() -> None:
    first, second, third = ask(10, arrived=0.0), ask(10, arrived=1.0), ask(10, arrived=2.0, client="b")
    suspect = ask(10)
    waiting = queue(first, second, third)
    waiting.push_back(make_suspects(suspect))
    for one in (suspect, first, third):
        waiting.discard(one)
    assert [(request, list(positions)) for request, positions in waiting.list_waiting()] == [(second, [0])]
    assert take_requests(waiting, 100, 2.0) == [second]
    assert not waiting.has_suspect
    assert waiting.list_lanes(100) == []
    assert (waiting.jobs, waiting.tokens, waiting.count_tokens_ahead(Lane.BULK, "a", 1)) == (0, 0, 0)


def test_request_is_discarded_when_some_of_it_has_left() -> None:
    request, other = ask(10, 200, 10, 200), ask(10)
    waiting = queue(request, other)
    assert len(take(waiting, 10)) == 1
    waiting.discard(request)
    assert (waiting.jobs, waiting.tokens) == (1, 10)
    assert take_requests(waiting, 100) == [other]


@pytest.mark.parametrize("discarded", [True, False])
def test_only_as_many_requests_are_sorted_as_there_is_a_choice_from(discarded: bool) -> None:
    requests = [ask(*[10] * (MAX_BATCH_JOBS - 1)) for _ in range(20)]
    waiting = queue(*requests)
    take(waiting, 10)
    looked_at = [one for one in requests if one.queued_in]
    assert len(looked_at) == 1 + MAX_SORTED // MAX_BATCH_JOBS
    if discarded:
        waiting.discard(requests[0])
        take(waiting, 10)
        assert [one for one in requests if one.queued_in] == requests[1 : 2 + MAX_SORTED // MAX_BATCH_JOBS]


def test_tokens_ahead_of_a_request_are_its_lanes_and_the_others_share() -> None:
    waiting = queue(ask(400, lane=Lane.INTERACTIVE), ask(*[1000] * 10, lane=Lane.BULK))
    assert waiting.count_tokens_ahead(Lane.INTERACTIVE, "a", 10) == 500
    assert waiting.count_tokens_ahead(Lane.BULK, "a", 10) == 10_400


def test_tokens_ahead_of_another_client_are_no_more_than_its_own_turns_let_leave() -> None:
    waiting = queue(ask(*[100] * 100), ask(10, 10, 10, client="few"))
    assert waiting.count_tokens_ahead(Lane.BULK, "new", 20) == 5 * (20 + 20)
    assert waiting.count_tokens_ahead(Lane.BULK, "few", 20) == 5 * (50 + 30)
    assert waiting.count_tokens_ahead(Lane.BULK, "a", 20) == waiting.tokens
