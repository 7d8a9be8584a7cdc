"""Requests, their jobs, and the estimate of how many tokens an input has."""

from broker.core.jobs import BYTES_PER_TOKEN_TIME, SPECIAL_TOKENS, TOKENIZE_DISCOUNT, choose_pricing
from broker.wire.protocol import Kind, Option
from tests.harness.core import make_request


def test_text_tokens_are_estimated_and_ids_exact() -> None:
    assert choose_pricing(Kind.TEXT, 0, 0.5, 100).count_tokens([0, 3, 10]) == [SPECIAL_TOKENS + n for n in (0, 1, 5)]
    assert choose_pricing(Kind.TOKENS, 0, 0.5, 100).count_tokens([0, 4, 40]) == [0, 1, 10]


def test_token_estimate_is_capped_at_model_maximum() -> None:
    assert choose_pricing(Kind.TEXT, 0, 1.0, 100).count_tokens([98, 99, 900]) == [100, 101, 101]
    assert choose_pricing(Kind.TOKENS, 0, 0.5, 100).count_tokens([400, 404, 900]) == [100, 101, 101]
    assert choose_pricing(Kind.TEXT, Option.TOKENIZE, 1.0, 100).count_tokens([TOKENIZE_DISCOUNT * 1000]) == [1001]


def test_long_text_costs_its_tokenization() -> None:
    (tokens,) = choose_pricing(Kind.TEXT, 0, 0.3, 256).count_tokens([8_000_000])
    assert tokens == 257 + 8_000_000 // BYTES_PER_TOKEN_TIME


def test_job_is_created_once_with_its_input() -> None:
    request = make_request([b"one", b"", b"three"])
    assert request.tokens
    job = request.make_job(2)
    assert request.make_job(2) is job
    assert [bytes(request.make_job(position).payload) for position in range(3)] == [b"one", b"", b"three"]
    assert repr(job) == "<Job 2 of <Request 1 of 46, 0 of 3 inputs open>, open>"


def test_adjacent_inputs_are_read_in_one_piece() -> None:
    request = make_request([b"one", b"", b"three", b"four"])
    assert bytes(request.read_inputs(0, 3)) == b"onethreefour"
    assert bytes(request.read_inputs(1, 2)) == b"three"
