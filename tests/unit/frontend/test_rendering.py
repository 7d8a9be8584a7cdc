"""Answers as they go out."""

import base64
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire.protocol import ModelInfo, ModelState, State, pack_u32
from frontend.api.errors import ApiError
from frontend.api.rendering import count_token_ids, render_config, render_embeddings, render_model, render_tokens, shape
from frontend.api.schemas import EmbeddingsRequest, parse_embeddings, parse_tokenize

MODEL = ModelInfo("m", "r", 2, 5, normalized=True)


def wanted(**fields: Any) -> EmbeddingsRequest:
    """A request."""
    return parse_embeddings(msgspec.json.encode({"model": "m", "input": "a", **fields}), 3)


def row(*values: float) -> memoryview:
    """A row as it comes in."""
    return memoryview(np.array(values, "<f4").tobytes())


def render(*rows: memoryview, tokens: int = 9, **fields: Any) -> bytes:
    """The answer with these vectors."""
    vectors = {at: np.frombuffer(one, "<f4") for at, one in enumerate(rows)}
    return render_embeddings(wanted(**fields), vectors, tokens, cut={}, bad={})


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_floats_are_the_shortest_text_that_reads_back_to_the_same_float32(values: list[float]) -> None:
    texts = render(row(*values)).split(b'"embedding":[')[1].split(b"]")[0].decode().split(",")
    assert np.array([np.float32(text) for text in texts]).tobytes() == row(*values)
    for text, value in zip(texts, np.array(values, "<f4"), strict=True):
        shortest = np.format_float_scientific(value, unique=True, trim="-")
        assert len(digits(text)) <= len(digits(shortest))


def digits(number: str) -> str:
    """The significant digits of a printed number."""
    return number.lower().split("e")[0].lstrip("-").replace(".", "").strip("0")


def test_answer_has_openais_shape() -> None:
    assert render(row(1, 0.1), row(2, 0.5)) == (
        b'{"object":"list","data":[{"object":"embedding","embedding":[1.0,0.1],"index":0},'
        b'{"object":"embedding","embedding":[2.0,0.5],"index":1}],"model":"m",'
        b'"usage":{"prompt_tokens":9,"total_tokens":9}}'
    )


def test_base64_is_little_endian_float32() -> None:
    answer = msgspec.json.decode(render(row(1.5, -2), encoding_format="base64"))
    assert base64.b64decode(answer["data"][0]["embedding"]) == row(1.5, -2)


def test_cut_tokens_are_told_where_cutting_was_asked_for() -> None:
    vectors = {at: np.frombuffer(row(1), "<f4") for at in range(2)}
    answer = msgspec.json.decode(render_embeddings(wanted(truncate=True), vectors, 9, cut={1: 7}, bad={}))
    assert list(answer) == ["object", "data", "model", "usage", "truncated_tokens"]
    assert answer["truncated_tokens"] == 7
    assert [one.get("truncated_tokens") for one in answer["data"]] == [None, 7]
    answer = msgspec.json.decode(render_embeddings(wanted(truncate=True), vectors, 9, cut={}, bad={}))
    assert answer["truncated_tokens"] == 0


def test_bad_items_are_reported_in_their_places() -> None:
    vectors = {1: np.frombuffer(row(1), "<f4")}
    bad = {0: ApiError(400, "no", param="input", code="c"), 2: ApiError(400, "nor this")}
    answer = msgspec.json.decode(render_embeddings(wanted(encoding_format="base64"), vectors, 9, cut={}, bad=bad))
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    assert answer["data"][0] == {
        "object": "embedding",
        "embedding": None,
        "index": 0,
        "error": {"message": "no", "type": "invalid_request_error", "param": "input", "code": "c"},
    }
    assert "error" not in answer["data"][1]


# --- shape -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normalized", "fields", "vector"),
    [
        (True, {}, [0.6, 0.8]),
        (True, {"dimensions": 2}, [0.6, 0.8]),
        (True, {"dimensions": 1}, [1.0]),
        (True, {"dimensions": 1, "normalize": True}, [1.0]),
        # The worker has sent what it has before normalisation.
        (True, {"dimensions": 1, "normalize": False}, [0.6]),
        (True, {"normalize": False}, [0.6, 0.8]),
        (False, {}, [0.6, 0.8]),
        (False, {"dimensions": 1}, [0.6]),
        (False, {"dimensions": 1, "normalize": True}, [1.0]),
    ],
)
def test_vectors_are_cut_and_then_of_length_1_where_they_should(
    normalized: bool, fields: dict[str, Any], vector: list[float]
) -> None:
    model = msgspec.structs.replace(MODEL, normalized=normalized)
    (found,) = shape([row(0.6, 0.8)], wanted(**fields), model)
    assert found.dtype == np.float32
    assert found.tolist() == np.array(vector, np.float32).tolist()


def test_normalize_scales_what_the_model_does_not() -> None:
    model = msgspec.structs.replace(MODEL, normalized=False)
    found = shape([row(3, 4), row(0, 0)], wanted(normalize=True), model)
    assert [one.tolist() for one in found] == [np.array([0.6, 0.8], np.float32).tolist(), [0, 0]]
    assert shape([], wanted(normalize=True), model) == []


# --- tokenize --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, [1, 7, 8, 9, 2]),
        ({"add_special_tokens": False}, [7, 8, 9]),
        ({"max_length": 5}, [1, 7, 8, 9, 2]),
        ({"max_length": 4}, [1, 7, 8, 2]),
        ({"max_length": 2}, [1, 2]),
        ({"max_length": 1}, [1]),
        ({"max_length": 2, "add_special_tokens": False}, [7, 8]),
        ({"max_length": 7}, [1, 7, 8, 9, 2]),
        ({"max_length": 7, "pad_to_max_length": True}, [1, 7, 8, 9, 2, 5, 5]),
        ({"max_length": 7, "pad_to_max_length": True, "padding_side": "left"}, [5, 5, 1, 7, 8, 9, 2]),
        ({"pad_to_max_length": True}, [1, 7, 8, 9, 2, 5]),
        ({"max_length": 3, "pad_to_max_length": True}, [1, 7, 2]),
    ],
)
def test_token_ids_are_cut_and_filled_up(fields: dict[str, Any], tokens: list[int]) -> None:
    model = ModelInfo("m", "r", 2, 6, pad_id=5, before=[1], after=[2])
    rows = [memoryview(pack_u32([1, 7, 8, 9, 2]))]
    one = parse_tokenize(msgspec.json.encode({"model": "m", "text": ["a"], **fields}), 3)
    assert msgspec.json.decode(render_tokens(one, rows, model)) == {"tokens": tokens}
    assert len(tokens) <= count_token_ids(one, rows, model) <= max(len(tokens), len(rows[0]) // 4)
    assert msgspec.json.decode(render_tokens(one, rows * 2, model)) == {"tokens": [tokens, tokens]}


# --- models ----------------------------------------------------------------------------------------------------------


def test_model_object_tells_what_a_client_of_embeddings_wants_to_know() -> None:
    model = ModelInfo("m", "r", 384, 256, workers=2)
    assert render_model(model, 1_700_000_000) == {
        "id": "m",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "vecmill",
        "dimension": 384,
        "max_tokens": 256,
        "revision": "r",
        "prompts": {},
        "default_prompt": None,
        "matryoshka_dimensions": None,
    }
    model = msgspec.structs.replace(model, prompts={"q": "q: "}, default_prompt="q", matryoshka=True)
    assert list(render_model(model, 1).values())[-3:] == [{"q": "q: "}, "q", []]


def test_configuration_is_printed_as_ovms_prints_it() -> None:
    assert render_config({"a/b": ModelState("a/b", State.AVAILABLE)}).decode() == (
        '{\n "a/b": {\n  "model_version_status": [\n   {\n    "version": "1",\n    "state": "AVAILABLE",\n'
        '    "status": {\n     "error_code": "OK",\n     "error_message": "OK"\n    }\n   }\n  ]\n }\n}'
    )


def test_every_state_has_ovms_name() -> None:
    states = {state.name: ModelState(state.name, state, "why" if state == State.FAILED else "") for state in State}
    config = msgspec.json.decode(render_config(states))
    found = {name: one["model_version_status"][0] for name, one in config.items()}
    assert {name: (one["state"], *one["status"].values()) for name, one in found.items()} == {
        "AVAILABLE": ("AVAILABLE", "OK", "OK"),
        "LOADING": ("LOADING", "OK", "OK"),
        "FAILED": ("LOADING", "FAILED_PRECONDITION", "why"),
        "UNLOADING": ("UNLOADING", "OK", "OK"),
        "END": ("END", "OK", "OK"),
    }
