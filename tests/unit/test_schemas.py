"""Requests and answers of the embeddings path, without a server."""

import base64

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ErrorCode
from broker.protocol import Kind, Lane, ModelInfo, pack_u32
from frontend.errors import ApiError, from_failure, unknown_model
from frontend.schemas import parse_embeddings, parse_headers, render_embeddings, render_model

BAD = [
    (b"", "Cannot parse JSON body"),
    (b"{", "Cannot parse JSON body"),
    (b'{"model": "m", "input": "\xff"}', "Cannot parse JSON body"),
    (b'{"model": "m", "input": "\\ud800"}', "Cannot parse JSON body"),
    (b'{"a":' * 5000 + b"1" + b"}" * 5000, "JSON body exceeds maximum nesting depth"),
    (b"[1]", "JSON body must be an object"),
    (b'{"input": "a"}', "model field is missing in JSON body"),
    (b'{"model": 1, "input": "a"}', "model field is not a string"),
    (b'{"model": "m"}', "input field is required"),
    (b'{"model": "m", "input": null}', "input field is required"),
    (b'{"model": "m", "input": []}', "input array should not be empty"),
    (b'{"model": "m", "input": 1}', "input should be string, array of strings or array of integers"),
    (b'{"model": "m", "input": {"a": 1}}', "input should be string, array of strings or array of integers"),
    (b'{"model": "m", "input": ["a", 1]}', "input must be homogeneous"),
    (b'{"model": "m", "input": [[1], "a"]}', "input must be homogeneous"),
    (b'{"model": "m", "input": [1.5]}', "every element in input array should be either string or int"),
    (b'{"model": "m", "input": [true]}', "every element in input array should be either string or int"),
    (b'{"model": "m", "input": [null]}', "every element in input array should be either string or int"),
    (b'{"model": "m", "input": [[]]}', "inner arrays in input should not be empty"),
    (b'{"model": "m", "input": [["a"]]}', "input must be either array of strings or array of array of integers"),
    (b'{"model": "m", "input": [-1]}', "token ids must be between 0 and 2147483647"),
    (b'{"model": "m", "input": [2147483648]}', "token ids must be between 0 and 2147483647"),
    (b'{"model": "m", "input": "a", "dimensions": "384"}', "dimensions should be an integer"),
    (rb'{"model": "m", "input": "\ud800 alone"}', "Cannot parse JSON body"),
    (b'{"model": "m", "input": "\xff"}', "Cannot parse JSON body"),
    (b'{"model": "m", "input": "a", "encoding_format": 1}', "encoding_format should be string"),
    (b'{"model": "m", "input": "a", "encoding_format": "hex"}', "encoding_format should either base64 or float"),
    (b'{"model": "m", "input": ["a", "b", "c", "d"]}', "input array has 4 elements, at most 3 are allowed"),
]


@pytest.mark.parametrize(("body", "message"), BAD, ids=range(len(BAD)))
def test_bad_request_is_refused_with_its_reason(body: bytes, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_embeddings(body, max_inputs=3)
    assert caught.value.status == 400
    assert message in str(caught.value)
    assert set(msgspec.json.decode(caught.value.body())["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("value", "kind", "inputs"),
    [
        ("text", Kind.TEXT, [b"text"]),
        ("", Kind.TEXT, [b""]),
        ("null\0inside", Kind.TEXT, [b"null\0inside"]),
        (["a", "é"], Kind.TEXT, [b"a", "é".encode()]),
        ([1, 2], Kind.TOKENS, [pack_u32([1, 2])]),
        ([[1], [2, 3]], Kind.TOKENS, [pack_u32([1]), pack_u32([2, 3])]),
    ],
)
def test_inputs_are_taken(value: object, kind: Kind, inputs: list[bytes]) -> None:
    request = parse_embeddings(msgspec.json.encode({"model": "m", "input": value}), max_inputs=3)
    assert (request.kind, request.inputs, request.base64) == (kind, inputs, False)


def test_null_is_as_if_absent_and_unknown_fields_are_ignored() -> None:
    body = {"model": "m", "input": "a", "encoding_format": None, "user": None, "dimensions": None, "new": {"x": 1}}
    assert not parse_embeddings(msgspec.json.encode(body), 3).base64


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_floats_are_the_shortest_text_that_reads_back_to_the_same_float32(values: list[float]) -> None:
    row = np.array(values, "<f4")
    body = render_embeddings("m", [memoryview(row.tobytes())], 1, as_base64=False)
    texts = body.split(b'"embedding":[')[1].split(b"]")[0].decode().split(",")
    assert np.array([np.float32(text) for text in texts]).tobytes() == row.tobytes()
    for text, value in zip(texts, row, strict=True):
        shortest = np.format_float_scientific(value, unique=True, trim="-")
        assert len(digits(text)) <= len(digits(shortest))


def digits(number: str) -> str:
    """The significant digits of a printed number."""
    return number.lower().split("e")[0].lstrip("-").replace(".", "").strip("0")


def test_answer_has_openais_shape() -> None:
    rows = [memoryview(np.array(row, "<f4").tobytes()) for row in ([1, 0.1], [2, 0.5])]
    assert render_embeddings("m", rows, 9, as_base64=False) == (
        b'{"object":"list","data":[{"object":"embedding","embedding":[1.0,0.1],"index":0},'
        b'{"object":"embedding","embedding":[2.0,0.5],"index":1}],"model":"m",'
        b'"usage":{"prompt_tokens":9,"total_tokens":9}}'
    )


def test_base64_is_little_endian_float32() -> None:
    row = np.array([1.5, -2], "<f4").tobytes()
    answer = msgspec.json.decode(render_embeddings("m", [memoryview(row)], 1, as_base64=True))
    assert base64.b64decode(answer["data"][0]["embedding"]) == row


def test_model_object_tells_what_a_client_of_embeddings_wants_to_know() -> None:
    assert render_model(ModelInfo("m", "r", 384, 256, workers=2), 1_700_000_000) == {
        "id": "m",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "vecmill",
        "dimension": 384,
        "max_tokens": 256,
        "revision": "r",
    }


def test_unknown_model_is_named_in_ovms_words() -> None:
    error = unknown_model("x")
    assert (error.status, error.param, error.code, error.headers()) == (404, "model", "model_not_found", {})
    assert str(error) == "The model 'x' does not exist - Mediapipe graph definition with requested name is not found"


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_a_status(code: ErrorCode) -> None:
    error = from_failure(code, "text", 1)
    assert error.status in (400, 404, 422, 429, 500, 503, 504)
    assert error.headers() == {"Retry-After": "1"}


def test_param_is_named_only_when_that_field_is_at_fault() -> None:
    at_fault = {code: from_failure(code, "").param for code in ErrorCode}
    assert {code: param for code, param in at_fault.items() if param} == {
        ErrorCode.INVALID_INPUT: "input",
        ErrorCode.TOO_LONG: "input",
        ErrorCode.POISON: "input",
        ErrorCode.UNKNOWN_MODEL: "model",
        ErrorCode.NO_WORKER: "model",
    }


def test_retry_after_is_what_clients_still_wait_for() -> None:
    assert from_failure(ErrorCode.OVERLOADED, "", 10**7).headers() == {"Retry-After": "120"}


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({}, (None, 60.0)),
        ({"x-vecmill-lane": "Bulk"}, (Lane.BULK, 60.0)),
        ({"x-vecmill-lane": "interactive", "x-vecmill-deadline-ms": "1500"}, (Lane.INTERACTIVE, 1.5)),
        ({"x-vecmill-deadline-ms": "999999999"}, (None, 60.0)),
    ],
)
def test_headers_choose_lane_and_deadline(headers: dict[str, str], wanted: tuple[Lane | None, float]) -> None:
    assert parse_headers(headers, 60.0) == (*wanted, "")


def test_client_is_its_api_key_which_is_not_told() -> None:
    one, other = (parse_headers({"authorization": f"Bearer {key}"}, 60.0).client for key in ("sk-one", "sk-öther"))
    assert one != other
    assert "sk" not in one
    assert parse_headers({"authorization": "Bearer sk-one"}, 1.0).client == one


@pytest.mark.parametrize(
    "headers",
    [{"x-vecmill-lane": "fast"}, {"x-vecmill-lane": ""}]
    + [{"x-vecmill-deadline-ms": text} for text in ("", "0", "-1", "1.5", "soon", "\u0663", "9" * 5000, "1" + "0" * 9)]
    + [{"x-vecmill-deadline-ms": text} for text in ("0" * 11 + "1" + "9" * 5000, "0" * 5000)],
)
def test_headers_that_say_nothing_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ApiError, match="must be"):
        parse_headers(headers, 60.0)
