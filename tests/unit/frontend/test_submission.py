"""A request beside the model that it asks for."""

from typing import Any

import msgspec
import pytest

from broker.wire.protocol import Kind, ModelInfo, Option, pack_u32
from frontend.api.errors import ApiError
from frontend.api.schemas import parse_embeddings, parse_tokenize
from frontend.api.submission import PreparedSubmission, build_submission, check_max_length

PLAIN = ModelInfo("m", "r", 8, 5, vocabulary=100, normalized=True)
PROMPTED = msgspec.structs.replace(PLAIN, prompts={"query": "q: ", "passage": "p: ", "odd": "o: "})


def fitted(
    model: ModelInfo, value: object, policy: str = "warn", max_tokens: int = 20, **fields: Any
) -> PreparedSubmission:
    """A request, fitted."""
    body = msgspec.json.encode({"model": "m", "input": value, **fields})
    return build_submission(parse_embeddings(body, 10), model, policy, max_tokens)


def refused(model: ModelInfo, value: object, **fields: Any) -> ApiError:
    """Why a request does not fit."""
    with pytest.raises(ApiError) as caught:
        fitted(model, value, **fields)
    assert caught.value.status == 400
    return caught.value


def test_texts_and_ids_are_sent_as_they_are() -> None:
    assert fitted(PLAIN, ["a", "é"])[:4] == (Kind.TEXT, [b"a", "é".encode()], Option(0), range(2))
    assert fitted(PLAIN, [1, 2])[:4] == (Kind.TOKENS, [pack_u32([1, 2])], Option(0), [0])
    assert fitted(PLAIN, [[1], [2, 3]])[1] == [pack_u32([1]), pack_u32([2, 3])]


# --- token ids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1], []], "inner arrays in input should not be empty"),
        ([100], "token id 100 is not in the model's vocabulary of 100; LangChain"),
        ([-1], "token id -1 is not in the model's vocabulary of 100"),
        ([[1], [5, 2**80]], f"token id {2**80} is not in"),
        ([1] * 6, "Input length 6 longer than allowed 5"),
    ],
)
def test_ids_that_the_model_does_not_take_are_refused(ids: object, message: str) -> None:
    error = refused(PLAIN, ids)
    assert message in str(error)
    assert error.param == "input"


def test_bad_ids_fail_alone_where_that_is_asked_for() -> None:
    found = fitted(PLAIN, [[1], [], [2, 3], [100], [1] * 6], error_policy="per_item")
    assert found.inputs == [pack_u32([1]), pack_u32([2, 3])]
    assert list(found.places) == [0, 2]
    assert {place: error.code for place, error in found.bad.items()} == {
        1: None,
        3: "invalid_input",
        4: "context_length_exceeded",
    }


def test_ids_that_are_to_be_cut_may_be_too_long() -> None:
    found = fitted(PLAIN, [1] * 9, truncate="start")
    assert found[:3] == (Kind.TOKENS, [pack_u32([1] * 9)], Option.TRUNCATE_START)


def test_a_model_that_tells_no_vocabulary_takes_what_fits_the_wire() -> None:
    unknown = msgspec.structs.replace(PLAIN, vocabulary=0)
    assert fitted(unknown, [2**31 - 1]).inputs
    assert "not in the model's vocabulary" in str(refused(unknown, [2**31]))


def test_token_arrays_are_counted_before_they_are_sent() -> None:
    assert fitted(PLAIN, [[1] * 5] * 4).inputs
    error = refused(PLAIN, [[1] * 5] * 5)
    assert str(error).startswith("the request has more than 20 tokens")
    assert error.code == "max_tokens_per_request"
    # What is cut does not count.
    assert fitted(PLAIN, [[1] * 50], truncate=True).inputs


# --- dimensions, normalisation ---------------------------------------------------------------------------------------


def test_other_dimensions_are_served_with_a_warning_unless_the_model_declares_them() -> None:
    some = msgspec.structs.replace(PLAIN, matryoshka=True, matryoshka_dimensions=[4])
    every = msgspec.structs.replace(PLAIN, matryoshka=True)
    assert fitted(PLAIN, "a", dimensions=8).warning == ""
    assert "does not declare" in fitted(PLAIN, "a", dimensions=4).warning
    assert fitted(PLAIN, "a", "allow", dimensions=4).warning == ""
    assert fitted(some, "a", "refuse", dimensions=4).warning == ""
    assert "does not declare" in fitted(some, "a", dimensions=3).warning
    assert fitted(every, "a", "refuse", dimensions=1).warning == ""
    assert refused(PLAIN, "a", policy="refuse", dimensions=4).param == "dimensions"
    assert "the model makes vectors of 8" in str(refused(every, "a", dimensions=9))


def test_vectors_before_normalisation_are_asked_for_where_there_is_one() -> None:
    assert fitted(PLAIN, "a", normalize=False).options == Option.RAW
    assert fitted(PLAIN, "a", normalize=True).options == 0
    plain = msgspec.structs.replace(PLAIN, normalized=False)
    assert fitted(plain, "a", normalize=False).options == 0


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
def test_prompts_are_chosen_by_name_or_by_what_the_input_is(fields: dict[str, Any], text: bytes) -> None:
    assert fitted(PROMPTED, "a", **fields).inputs == [text]


def test_default_prompt_is_for_inputs_that_ask_for_none() -> None:
    model = msgspec.structs.replace(PROMPTED, default_prompt="odd")
    assert fitted(model, ["a", "b"]).inputs == [b"o: a", b"o: b"]
    assert fitted(model, "a", prompt_name="query").inputs == [b"q: a"]
    assert fitted(model, [1]).inputs == [pack_u32([1])]


def test_model_without_such_a_prompt_gets_none() -> None:
    assert fitted(PLAIN, "a", input_type="search_query").inputs == [b"a"]
    default = msgspec.structs.replace(PLAIN, prompts={"odd": "o: "}, default_prompt="odd")
    assert fitted(default, "a", input_type="query").inputs == [b"a"]


def test_unknown_prompts_are_refused_with_those_there_are() -> None:
    assert str(refused(PROMPTED, "a", prompt_name="x")) == "prompt_name is 'x', but the model has query, passage, odd"
    assert str(refused(PLAIN, "a", prompt_name="x")) == "prompt_name is 'x', but the model has none"
    assert "must be one of query, search_query, document" in str(refused(PROMPTED, "a", input_type="x"))
    assert refused(PROMPTED, [1], prompt_name="query").param == "prompt_name"
    assert refused(PROMPTED, [1], input_type="query").param == "input_type"


def test_max_length_has_ovms_limit() -> None:
    def check(max_length: int | None, model: ModelInfo) -> None:
        check_max_length(
            parse_tokenize(msgspec.json.encode({"model": "m", "text": "a", "max_length": max_length}), 1), model
        )

    check(None, PLAIN)
    check(8192, PLAIN)
    check(9000, msgspec.structs.replace(PLAIN, max_tokens=9000))
    with pytest.raises(ApiError, match="max_length 8193 exceeds the allowed limit of 8192"):
        check(8193, PLAIN)
