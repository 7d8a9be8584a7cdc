"""Rendering of answers."""

import base64
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire.protocol import Availability, ModelInfo, ModelState, pack_u32
from frontend.api.errors import ApiError
from frontend.api.rendering import (
    build_model_object,
    count_token_ids,
    render_config,
    render_embeddings,
    render_model_metadata,
    render_models,
    render_tokens,
    shape_vectors,
)
from frontend.api.schemas import EmbeddingsRequest, parse_embeddings, parse_tokenize

MODEL = ModelInfo("m", "r", 2, 5, normalized=True)


def parse(**fields: Any) -> EmbeddingsRequest:
    """Parse a request with these fields."""
    return parse_embeddings(msgspec.json.encode({"model": "m", "input": "a", **fields}), 3)


def row(*values: float) -> memoryview:
    """Return a row as the broker sends it."""
    return memoryview(np.array(values, "<f4").tobytes())


def render(*rows: memoryview, tokens: int = 9, **fields: Any) -> bytes:
    """Render an answer with these vectors."""
    vectors = {position: np.frombuffer(row, "<f4") for position, row in enumerate(rows)}
    return render_embeddings(parse(**fields), vectors, tokens, truncated={}, errors={})


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_float_is_its_shortest_float32_text(values: list[float]) -> None:
    texts = render(row(*values)).split(b'"embedding":[')[1].split(b"]")[0].decode().split(",")
    assert np.array([np.float32(text) for text in texts]).tobytes() == row(*values)
    for text, value in zip(texts, np.array(values, "<f4"), strict=True):
        shortest = np.format_float_scientific(value, unique=True, trim="-")
        assert len(list_digits(text)) <= len(list_digits(shortest))


def list_digits(number: str) -> str:
    """Return the significant digits of a printed number."""
    return number.lower().split("e")[0].lstrip("-").replace(".", "").strip("0")


def test_answer_is_openais_object() -> None:
    assert render(row(1, 0.1), row(2, 0.5)) == (
        b'{"object":"list","data":[{"object":"embedding","embedding":[1.0,0.1],"index":0},'
        b'{"object":"embedding","embedding":[2.0,0.5],"index":1}],"model":"m",'
        b'"usage":{"prompt_tokens":9,"total_tokens":9}}'
    )


def test_base64_is_little_endian_float32() -> None:
    answer = msgspec.json.decode(render(row(1.5, -2), encoding_format="base64"))
    assert base64.b64decode(answer["data"][0]["embedding"]) == row(1.5, -2)


def test_truncated_tokens_are_reported_if_truncate_is_set() -> None:
    vectors = {position: np.frombuffer(row(1), "<f4") for position in range(2)}
    answer = msgspec.json.decode(render_embeddings(parse(truncate=True), vectors, 9, truncated={1: 7}, errors={}))
    assert list(answer) == ["object", "data", "model", "usage", "truncated_tokens"]
    assert answer["truncated_tokens"] == 7
    assert [item.get("truncated_tokens") for item in answer["data"]] == [None, 7]
    answer = msgspec.json.decode(render_embeddings(parse(truncate=True), vectors, 9, truncated={}, errors={}))
    assert answer["truncated_tokens"] == 0


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_error_of_an_input_is_in_its_item(encoding_format: str) -> None:
    vectors = {1: np.frombuffer(row(1), "<f4")}
    errors = {0: ApiError(400, "no", param="input", code="c"), 2: ApiError(400, "not this either")}
    body = render_embeddings(parse(encoding_format=encoding_format), vectors, 9, truncated={}, errors=errors)
    answer = msgspec.json.decode(body)
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    assert list(answer["data"][0].items()) == [
        ("object", "embedding"),
        ("embedding", None),
        ("index", 0),
        ("error", {"message": "no", "type": "invalid_request_error", "param": "input", "code": "c"}),
    ]
    assert "error" not in answer["data"][1]


# --- vectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normalized", "fields", "vector"),
    [
        (True, {}, [0.6, 0.8]),
        (True, {"dimensions": 2}, [0.6, 0.8]),
        (True, {"dimensions": 1}, [1.0]),
        (True, {"dimensions": 1, "normalize": True}, [1.0]),
        # The worker sends vectors before normalization.
        (True, {"dimensions": 1, "normalize": False}, [0.6]),
        (True, {"normalize": False}, [0.6, 0.8]),
        (False, {}, [0.6, 0.8]),
        (False, {"dimensions": 1}, [0.6]),
        (False, {"dimensions": 1, "normalize": True}, [1.0]),
    ],
)
def test_vector_is_cut_then_normalized(normalized: bool, fields: dict[str, Any], vector: list[float]) -> None:
    model = msgspec.structs.replace(MODEL, normalized=normalized)
    (found,) = shape_vectors([row(0.6, 0.8)], parse(**fields), model)
    assert found.dtype == np.float32
    assert found.tolist() == np.array(vector, np.float32).tolist()


def test_normalize_true_scales_unnormalized_vectors() -> None:
    model = msgspec.structs.replace(MODEL, normalized=False)
    found = shape_vectors([row(3, 4), row(0, 0)], parse(normalize=True), model)
    assert [vector.tolist() for vector in found] == [np.array([0.6, 0.8], np.float32).tolist(), [0, 0]]
    assert shape_vectors([], parse(normalize=True), model) == []


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
def test_token_ids_are_truncated_and_padded(fields: dict[str, Any], tokens: list[int]) -> None:
    model = ModelInfo("m", "r", 2, 6, pad_id=5, before=[1], after=[2])
    rows = [memoryview(pack_u32([1, 7, 8, 9, 2]))]
    request = parse_tokenize(msgspec.json.encode({"model": "m", "text": ["a"], **fields}), 3)
    assert msgspec.json.decode(render_tokens(request, rows, model)) == {"tokens": tokens}
    assert len(tokens) <= count_token_ids(request, rows, model) <= max(len(tokens), len(rows[0]) // 4)
    assert msgspec.json.decode(render_tokens(request, rows * 2, model)) == {"tokens": [tokens, tokens]}


# --- models ----------------------------------------------------------------------------------------------------------


def test_model_object_has_openais_fields_and_ours() -> None:
    model = ModelInfo("m", "r", 384, 256, workers=2, precision="bf16+f32")
    expected = (
        b'{"id":"m","object":"model","created":1700000000,"owned_by":"vecmill","dimension":384,"max_tokens":256,'
        b'"revision":"r","precision":"bf16+f32","prompts":{},"default_prompt":null,"matryoshka_dimensions":null}'
    )
    assert msgspec.json.encode(build_model_object(model.name, model, 1_700_000_000)) == expected
    assert render_models({model.name: model}, 1_700_000_000) == b'{"object":"list","data":[' + expected + b"]}"
    prompted = msgspec.structs.replace(model, prompts={"q": "q: "}, default_prompt="q", matryoshka=True)
    found = build_model_object("m", prompted, 1)
    assert (found.prompts, found.default_prompt, found.matryoshka_dimensions) == ({"q": "q: "}, "q", [])


def test_model_metadata_is_kserves() -> None:
    assert render_model_metadata(ModelInfo("m", "r", 384, 256)) == (
        b'{"name":"m","versions":["1"],"platform":"OpenVINO","inputs":[{"name":"input","datatype":"BYTES","shape":[-1]}],'
        b'"outputs":[{"name":"embedding","datatype":"FP32","shape":[-1,384]}]}'
    )


def test_config_is_indented_as_in_ovms() -> None:
    assert render_config({"a/b": ModelState("a/b", Availability.AVAILABLE)}, {}).decode() == (
        '{\n "a/b": {\n  "model_version_status": [\n   {\n    "version": "1",\n    "state": "AVAILABLE",\n'
        '    "status": {\n     "error_code": "OK",\n     "error_message": "OK"\n    }\n   }\n  ]\n }\n}'
    )


def test_every_state_has_its_ovms_name() -> None:
    states = {
        state.name: ModelState(state.name, state, "why" if state == Availability.FAILED else "")
        for state in Availability
    }
    config = msgspec.json.decode(render_config(states, {}))
    found = {name: model["model_version_status"][0] for name, model in config.items()}
    assert {name: (version["state"], *version["status"].values()) for name, version in found.items()} == {
        "AVAILABLE": ("AVAILABLE", "OK", "OK"),
        "LOADING": ("LOADING", "OK", "OK"),
        "FAILED": ("LOADING", "FAILED_PRECONDITION", "why"),
        "UNLOADING": ("UNLOADING", "OK", "OK"),
        "END": ("END", "OK", "OK"),
        "START": ("START", "OK", "OK"),
    }


def test_config_has_the_parts_of_a_model() -> None:
    # The answer of OVMS in its demo of 2024-10.
    states = {"acme/tiny": ModelState("acme/tiny", Availability.AVAILABLE)}
    model = ModelInfo("acme/tiny", "r", 3, 5, parts=["tokenizer", "embeddings_model", "acme/tiny"])
    config = msgspec.json.decode(render_config(states, {"acme/tiny": model}))
    status = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": "OK"}}
    assert list(config) == ["acme/tiny", "embeddings_model", "tokenizer"]
    assert all(model == {"model_version_status": [status]} for model in config.values())
