"""Validation of requests against their model, and what is sent for them."""

from typing import Any, Literal

import msgspec
import pytest

from broker.wire.protocol import Kind, ModelInfo, Option, pack_u32
from frontend.api.errors import ApiError
from frontend.api.schemas import Truncate, parse_embeddings, parse_tokenize
from frontend.api.submission import PreparedSubmission, apply_model_defaults, build_submission, check_max_length

PLAIN = ModelInfo("m", "r", 8, 5, vocabulary=100, normalized=True)
PROMPTED = msgspec.structs.replace(PLAIN, prompts={"query": "q: ", "passage": "p: ", "odd": "o: "})


def build(
    model: ModelInfo, value: object, policy: str = "warn", max_tokens: int = 20, **fields: Any
) -> PreparedSubmission:
    """Build the submission of a request."""
    body = msgspec.json.encode({"model": "m", "input": value, **fields})
    return build_submission(parse_embeddings(body, 10), model, policy, max_tokens)


def reject(model: ModelInfo, value: object, **fields: Any) -> ApiError:
    """Return the error of a request that the model cannot serve."""
    with pytest.raises(ApiError) as caught:
        build(model, value, **fields)
    assert caught.value.status == 400
    return caught.value


def test_texts_and_ids_are_sent_unchanged() -> None:
    assert build(PLAIN, ["a", "é"])[:4] == (Kind.TEXT, [b"a", "é".encode()], Option(0), range(2))
    assert build(PLAIN, [1, 2])[:4] == (Kind.TOKENS, [pack_u32([1, 2])], Option(0), [0])
    assert build(PLAIN, [[1], [2, 3]])[1] == [pack_u32([1]), pack_u32([2, 3])]


# --- token ids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1], []], "inner arrays in input should not be empty"),
        ([100], "token id 100 is not in the model's vocabulary of 100; LangChain"),
        ([-1], "token id -1 is not in the model's vocabulary of 100"),
        ([[1], [5, 2**80]], f"token id {2**80} is not in"),
        ([1] * 6, 'Input length 6 longer than allowed 5; shorten the input or set "truncate": "end"'),
        ([[1], [1] * 6, []], "input 1: Input length 6 longer than allowed 5; shorten the input or set"),
        ([[1], [1] * 6, []], '; set "error_policy": "per_item" to get the other vectors'),
    ],
)
def test_invalid_ids_are_rejected(ids: object, message: str) -> None:
    error = reject(PLAIN, ids)
    assert message in str(error)
    assert error.param == "input"


def test_per_item_keeps_the_valid_ids() -> None:
    found = build(PLAIN, [[1], [], [2, 3], [100], [1] * 6], error_policy="per_item")
    assert found.inputs == [pack_u32([1]), pack_u32([2, 3])]
    assert list(found.positions) == [0, 2]
    assert {position: error.code for position, error in found.errors.items()} == {
        1: None,
        3: "invalid_input",
        4: "context_length_exceeded",
    }


def test_ids_to_truncate_may_be_too_long() -> None:
    found = build(PLAIN, [1] * 9, truncate="start")
    assert found[:3] == (Kind.TOKENS, [pack_u32([1] * 9)], Option.TRUNCATE_START)


def test_model_without_vocabulary_accepts_31_bit_ids() -> None:
    unknown = msgspec.structs.replace(PLAIN, vocabulary=0)
    assert build(unknown, [2**31 - 1]).inputs
    assert "not in the model's vocabulary" in str(reject(unknown, [2**31]))


def test_too_many_token_ids_are_rejected() -> None:
    assert build(PLAIN, [[1] * 5] * 4).inputs
    error = reject(PLAIN, [[1] * 5] * 5)
    assert str(error).startswith("the request has more than 20 tokens")
    assert error.code == "max_tokens_per_request"
    # Tokens that are cut off do not count.
    assert build(PLAIN, [[1] * 50], truncate=True).inputs


# --- dimensions, normalization ---------------------------------------------------------------------------------------


def test_undeclared_dimensions_are_warned_about_or_rejected() -> None:
    some = msgspec.structs.replace(PLAIN, matryoshka=True, matryoshka_dimensions=[4])
    every = msgspec.structs.replace(PLAIN, matryoshka=True)
    assert build(PLAIN, "a", dimensions=8).warning == ""
    assert "does not declare" in build(PLAIN, "a", dimensions=4).warning
    assert build(PLAIN, "a", "allow", dimensions=4).warning == ""
    assert build(some, "a", "refuse", dimensions=4).warning == ""
    assert "does not declare" in build(some, "a", dimensions=3).warning
    assert build(every, "a", "refuse", dimensions=1).warning == ""
    assert reject(PLAIN, "a", policy="refuse", dimensions=4).param == "dimensions"
    assert "the model's vectors have 8 values" in str(reject(every, "a", dimensions=9))


def test_normalize_false_requests_raw_vectors() -> None:
    assert build(PLAIN, "a", normalize=False).options == Option.RAW
    assert build(PLAIN, "a", normalize=True).options == 0
    plain = msgspec.structs.replace(PLAIN, normalized=False)
    assert build(plain, "a", normalize=False).options == 0


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, b"a"),
        ({"prompt_name": "odd"}, b"o: a"),
        ({"input_type": "query"}, b"q: a"),
        ({"input_type": "search_query"}, b"q: a"),
        ({"input_type": "document"}, b"p: a"),
        ({"input_type": "search_document"}, b"p: a"),
        ({"input_type": "passage"}, b"p: a"),
        ({"input_type": "odd"}, b"o: a"),
    ],
)
def test_prompt_is_chosen_by_name_or_input_type(fields: dict[str, Any], text: bytes) -> None:
    assert build(PROMPTED, "a", **fields).inputs == [text]


def test_default_prompt_is_for_texts_without_choice() -> None:
    model = msgspec.structs.replace(PROMPTED, default_prompt="odd")
    assert build(model, ["a", "b"]).inputs == [b"o: a", b"o: b"]
    assert build(model, "a", prompt_name="query").inputs == [b"q: a"]
    assert build(model, [1]).inputs == [pack_u32([1])]


def test_text_with_a_prompt_is_marked() -> None:
    assert build(PROMPTED, "a", prompt_name="query").options == Option.PROMPT
    assert build(PROMPTED, "a").options == 0
    assert build(msgspec.structs.replace(PROMPTED, default_prompt="odd"), "a").options == Option.PROMPT


def test_input_type_without_prompt_adds_nothing() -> None:
    assert build(PLAIN, "a", input_type="search_query").inputs == [b"a"]
    default = msgspec.structs.replace(PLAIN, prompts={"odd": "o: "}, default_prompt="odd")
    assert build(default, "a", input_type="query").inputs == [b"a"]


def test_unknown_type_without_prompts_has_a_warning() -> None:
    ignored = "input_type was ignored, because the model has no prompts"
    for value in ("a", [1]):
        assert build(PLAIN, value, input_type="classification\n").warning == ignored
        assert build(PLAIN, value, input_type="query").warning == ""
    assert build(PLAIN, "a", input_type="x", dimensions=4).warning.endswith(f" 4 values; {ignored}")


def test_input_type_may_be_in_capitals() -> None:
    for name in ("QUERY", "RETRIEVAL_QUERY"):
        assert build(PROMPTED, "a", input_type=name).inputs == [b"q: a"]
    assert build(PROMPTED, "a", input_type="RETRIEVAL_DOCUMENT").inputs == [b"p: a"]


@pytest.mark.parametrize("tokens", [-1, 5, 512])
def test_number_of_tokens_may_be_the_models(tokens: int) -> None:
    assert build(PLAIN, "a", truncate_prompt_tokens=tokens).options == Option.TRUNCATE_END
    error = reject(PLAIN, "a", truncate_prompt_tokens=4)
    assert str(error) == "truncate_prompt_tokens is 4, but inputs are only cut to the model's 5 tokens; send -1"


def test_unknown_prompt_error_lists_the_prompts() -> None:
    assert (
        str(reject(PROMPTED, "a", prompt_name="x"))
        == "prompt_name is 'x', but the model has the prompts query, passage, odd"
    )
    assert str(reject(PLAIN, "a", prompt_name="x")) == "prompt_name is 'x', but the model has no prompts"
    assert "must be one of query, search_query, document" in str(reject(PROMPTED, "a", input_type="x"))
    assert reject(PROMPTED, [1], prompt_name="query").param == "prompt_name"
    assert reject(PROMPTED, [1], input_type="query").param == "input_type"


def test_max_length_above_ovms_limit_is_rejected() -> None:
    def check(max_length: int | None, model: ModelInfo, **fields: Any) -> None:
        body = msgspec.json.encode({"model": "m", "text": ["a", "b"], "max_length": max_length, **fields})
        check_max_length(parse_tokenize(body, 2), model, 20)

    check(None, PLAIN)
    check(8192, PLAIN)
    check(9000, msgspec.structs.replace(PLAIN, max_tokens=9000))
    with pytest.raises(ApiError, match="max_length 8193 exceeds the allowed limit of 8192"):
        check(8193, PLAIN)
    check(10, PLAIN, pad_to_max_length=True)
    check(None, PLAIN, pad_to_max_length=True)
    for max_length, model in ((11, PLAIN), (None, msgspec.structs.replace(PLAIN, max_tokens=11))):
        with pytest.raises(ApiError, match="the request has more than 20 tokens"):
            check(max_length, model, pad_to_max_length=True)


@pytest.mark.parametrize(
    ("truncates", "fields", "server", "option"),
    [
        (True, {}, "", Option.TRUNCATE_END),
        (False, {}, "", Option(0)),
        (True, {"truncate": "none"}, "", Option(0)),
        (True, {"truncate": "start"}, "", Option.TRUNCATE_START),
        (True, {}, "start", Option.TRUNCATE_START),
        (True, {}, "none", Option(0)),
    ],
)
def test_model_truncates_if_nobody_else_chose(
    truncates: bool, fields: dict[str, str], server: Truncate | Literal[""], option: Option
) -> None:
    body = msgspec.json.encode({"model": "m", "input": "a", **fields})
    request = parse_embeddings(body, 1, truncate=server)
    model = msgspec.structs.replace(PLAIN, truncates=truncates)
    assert apply_model_defaults(request, model).truncate_option == option
