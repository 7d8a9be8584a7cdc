"""Requests as they come in, checked; answers as they go out. Pure. Messages use OVMS's wording where it has one."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import orjson

from broker.protocol import Kind, Lane, ModelInfo, pack_u32
from frontend.errors import ApiError

_TYPES = "input should be string, array of strings or array of integers"
_ELEMENTS = "every element in input array should be either string or int"
_MIXED = "input must be homogeneous"


class EmbeddingsRequest(msgspec.Struct, frozen=True):
    """A valid request: one entry in `inputs` for each vector of the answer, as the wire wants it."""

    model: str
    kind: Kind
    inputs: list[bytes]
    base64: bool
    #: Values wanted in a vector; None: as many as the model makes.
    dimensions: int | None


def parse_embeddings(body: bytes, max_inputs: int) -> EmbeddingsRequest:
    """The body of POST /v1/embeddings; ApiError 400 says what is wrong with it. Unknown fields are ignored."""
    fields = _object(body)
    model = fields.get("model")
    if model is None:
        raise ApiError(400, "model field is missing in JSON body", param="model")
    if not isinstance(model, str):
        raise ApiError(400, "model field is not a string", param="model")
    encoding = fields.get("encoding_format")
    if not isinstance(encoding, str | None):
        raise ApiError(400, "encoding_format should be string", param="encoding_format")
    if encoding not in (None, "float", "base64"):
        raise ApiError(400, "encoding_format should either base64 or float", param="encoding_format")
    dimensions = fields.get("dimensions")
    if dimensions is not None and type(dimensions) is not int:
        raise ApiError(400, "dimensions should be an integer", param="dimensions")
    kind, inputs = _inputs(fields.get("input"))
    if len(inputs) > max_inputs:
        raise ApiError(400, f"input array has {len(inputs)} elements, at most {max_inputs} are allowed", param="input")
    return EmbeddingsRequest(model, kind, inputs, encoding == "base64", dimensions)


class Terms(NamedTuple):
    """How a request wants to be served, and whose it is."""

    #: None: its size decides.
    lane: Lane | None
    deadline_s: float
    #: Whom fairness and quota count it to: a hash of the API key; empty without one.
    client: str


def parse_headers(headers: Mapping[str, str], longest_s: float) -> Terms:
    """A request's terms; its deadline is what it asks for, at most `longest_s`. ApiError 400 for a bad value."""
    name = headers.get("x-vecmill-lane")
    if name is not None and name.upper() not in Lane.__members__:
        raise ApiError(400, f"x-vecmill-lane is {name!r}, but must be interactive or bulk", param="x-vecmill-lane")
    lane = None if name is None else Lane[name.upper()]
    key = headers.get("authorization", "")
    client = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest() if key else ""
    text = headers.get("x-vecmill-deadline-ms")
    if text is None:
        return Terms(lane, longest_s, client)
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):
        message = "x-vecmill-deadline-ms must be a number of milliseconds above 0, of at most 9 digits"
        raise ApiError(400, message, param="x-vecmill-deadline-ms")
    return Terms(lane, min(longest_s, int(text) / 1000), client)


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(body)
    except RecursionError:
        raise ApiError(400, "JSON body exceeds maximum nesting depth") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise ApiError(400, f"The file is not valid json - Cannot parse JSON body: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "JSON body must be an object")
    return fields


def _inputs(value: Any) -> tuple[Kind, list[bytes]]:
    match value:
        case None:
            raise ApiError(400, "input field is required", param="input")
        case str():
            return Kind.TEXT, [value.encode()]
        case []:
            raise ApiError(400, "input array should not be empty", param="input")
        case list():
            return _array(value)
        case _:
            raise ApiError(400, _TYPES, param="input")


def _array(values: list[Any]) -> tuple[Kind, list[bytes]]:
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return Kind.TEXT, [value.encode() for value in values]
    if kinds == {int}:
        return Kind.TOKENS, [_tokens(values)]
    if kinds == {list}:
        return Kind.TOKENS, [_tokens(value) for value in values]
    raise ApiError(400, _MIXED if kinds <= {str, int, list} else _ELEMENTS, param="input")


def _tokens(ids: list[Any]) -> bytes:
    if not ids:
        raise ApiError(400, "inner arrays in input should not be empty", param="input")
    if {type(one) for one in ids} != {int}:
        raise ApiError(400, "input must be either array of strings or array of array of integers", param="input")
    if min(ids) < 0 or max(ids) > 2**31 - 1:
        raise ApiError(400, "token ids must be between 0 and 2147483647", param="input")
    return pack_u32(ids)


def render_embeddings(model: str, rows: Sequence[memoryview], tokens: int, *, as_base64: bool) -> bytes:
    """OpenAI's answer. `rows` are float32 little-endian; as text each value is the shortest that reads back to it."""
    vectors: list[Any]
    if as_base64:
        vectors = [base64.b64encode(row).decode("ascii") for row in rows]
    else:
        vectors = [np.frombuffer(row, "<f4") for row in rows]
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "embedding": vector, "index": index} for index, vector in enumerate(vectors)],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def render_model(model: ModelInfo, created: int) -> dict[str, Any]:
    """OpenAI's model object, with what a client of embeddings wants to know of it."""
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "vecmill",
        "dimension": model.dimension,
        "max_tokens": model.max_tokens,
        "revision": model.revision,
    }
