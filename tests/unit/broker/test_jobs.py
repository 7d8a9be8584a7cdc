"""Requests, their jobs, and how many tokens inputs are counted as."""

from broker.core.jobs import SPECIAL_TOKENS, TOKENISE_DISCOUNT, choose_pricing, find_bucket
from broker.wire.protocol import Kind, Option
from tests.harness.core import make_request


def test_tokens_of_text_are_estimated_and_those_of_ids_are_exact() -> None:
    assert choose_pricing(Kind.TEXT, 0, 0.5, 100).count_tokens([0, 3, 10]) == [SPECIAL_TOKENS + n for n in (0, 1, 5)]
    assert choose_pricing(Kind.TOKENS, 0, 0.5, 100).count_tokens([0, 4, 40]) == [0, 1, 10]


def test_no_input_counts_more_than_the_longest_that_the_model_takes() -> None:
    assert choose_pricing(Kind.TEXT, 0, 1.0, 100).count_tokens([98, 99, 10**9]) == [100, 101, 101]
    assert choose_pricing(Kind.TEXT, Option.TOKENISE, 1.0, 100).count_tokens([TOKENISE_DISCOUNT * 1000]) == [1001]


def test_inputs_of_a_bucket_differ_by_less_than_a_quarter() -> None:
    numbers = [find_bucket(tokens) for tokens in range(1, 10_000)]
    assert numbers == sorted(numbers)
    for bucket in set(numbers):
        tokens = [at + 1 for at, number in enumerate(numbers) if number == bucket]
        assert max(tokens) < 1.26 * min(tokens)


def test_job_is_made_once_and_holds_its_input() -> None:
    request = make_request([b"one", b"", b"three"])
    request.sort_inputs()
    job = request.make_job(2)
    assert request.make_job(2) is job
    assert [bytes(request.make_job(position).payload) for position in range(3)] == [b"one", b"", b"three"]
    assert repr(job) == "<Job 2 of <Request 1 of 46, 0 of 3 inputs open>, open>"
