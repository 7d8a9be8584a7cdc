"""Requests as they come in, checked as far as that needs no model. Pure."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from broker.wire.protocol import Lane, Option, Origin
from frontend.api.errors import ApiError, quote
from frontend.api.inputs import Texts, TokenArrays, boolean, documents, model_name, parse_object, string

#: What `truncate` may be, and what it asks for. TEI's and vLLM's sides; OVMS has a boolean.
_TRUNCATE = {
    False: Option(0),
    "none": Option(0),
    True: Option.TRUNCATE_END,
    "end": Option.TRUNCATE_END,
    "start": Option.TRUNCATE_START,
}
#: OVMS's bound on max_length, for models that take less.
MAX_LENGTH_LIMIT = 8192


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/embeddings."""

    model: str
    #: One for each vector of the answer.
    documents: Texts | TokenArrays
    base64: bool
    #: Values wanted in a vector; None: as many as the model makes.
    dimensions: int | None
    #: TRUNCATE_END, TRUNCATE_START or 0; whether any was asked for by name.
    truncate: Option
    #: A prompt of the model by its name, or what the inputs are, for a prompt that fits.
    prompt_name: str | None
    input_type: str | None
    #: None: as the model makes its vectors.
    normalize: bool | None
    #: Whether a bad input fails alone.
    per_item: bool


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/tokenize, as OVMS has it."""

    model: str
    texts: Texts
    #: Longest answer in tokens; None: no limit.
    max_length: int | None
    pad: bool
    pad_left: bool
    special_tokens: bool


def parse_embeddings(body: bytes, max_inputs: int) -> EmbeddingsRequest:
    """The body of POST /v1/embeddings; ApiError 400 says what is wrong with it. Unknown fields are ignored."""
    fields = parse_object(body)
    model = model_name(fields)
    if string(fields, "encoding_format") not in (None, "float", "base64"):
        raise ApiError(400, "encoding_format should either base64 or float", param="encoding_format")
    if string(fields, "error_policy") not in (None, "fail", "per_item"):
        raise ApiError(400, "error_policy should be fail or per_item", param="error_policy")
    prompt_name, input_type = string(fields, "prompt_name"), string(fields, "input_type")
    if prompt_name is not None and input_type is not None:
        raise ApiError(400, "prompt_name and input_type exclude each other", param="prompt_name")
    return EmbeddingsRequest(
        model=model,
        documents=documents(fields, "input", max_inputs),
        base64=fields.get("encoding_format") == "base64",
        dimensions=_dimensions(fields.get("dimensions")),
        truncate=_truncate(fields.get("truncate", False)),
        prompt_name=prompt_name,
        input_type=input_type,
        normalize=boolean(fields, "normalize"),
        per_item=fields.get("error_policy") == "per_item",
    )


def _dimensions(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int:
        raise ApiError(400, "dimensions should be an integer", param="dimensions")
    if value < 1:
        raise ApiError(400, "dimensions should be greater than 0", param="dimensions")
    return value


def _truncate(value: Any) -> Option:
    if not isinstance(value, bool | str) or value not in _TRUNCATE:
        raise ApiError(400, "truncate should be boolean or one of none, start, end", param="truncate")
    return _TRUNCATE[value]


def parse_tokenize(body: bytes, max_inputs: int) -> TokenizeRequest:
    """The body of POST /v1/tokenize; ApiError 400 says what is wrong with it. Unknown fields are ignored."""
    fields = parse_object(body)
    model = model_name(fields)
    found = documents(fields, "text", max_inputs)
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise ApiError(400, "text must be string or array of strings", param="text")
    max_length = fields.get("max_length")
    if max_length is not None and (type(max_length) is not int or max_length < 0):
        raise ApiError(400, "max_length should be unsigned integer", param="max_length")
    if max_length == 0:
        raise ApiError(400, "max_length should be greater than 0", param="max_length")
    pad, special_tokens = boolean(fields, "pad_to_max_length"), boolean(fields, "add_special_tokens")
    side = fields.get("padding_side")
    if not isinstance(side, str | None):
        raise ApiError(400, "padding_side should be string, either left or right", param="padding_side")
    if side not in (None, "left", "right"):
        raise ApiError(400, "padding_side should be either left or right", param="padding_side")
    return TokenizeRequest(
        model=model,
        texts=texts,
        max_length=max_length,
        pad=bool(pad),
        pad_left=side == "left",
        special_tokens=special_tokens is not False,
    )


class RequestOptions(NamedTuple):
    """How a request wants to be served, and whose it is."""

    #: None: its size decides.
    lane: Lane | None
    deadline_s: float
    #: The client that takes turns with others: the name of its API key or, where the server has no keys, a hash of its
    #: address and of what it sent for a key.
    client: str
    #: What its key may have open, in jobs, and use, in tokens a minute; 0: no limit of its own.
    client_jobs: int = 0
    client_tokens: int = 0
    #: A hash of the address where the server has no keys, because what is sent for a key can be another each time.
    address: str = ""
    origin: Origin = Origin()


def parse_headers(headers: Mapping[str, str], address: str, longest_s: float) -> RequestOptions:
    """Return the terms of a request from an address; its deadline is what it asks for, at most `longest_s`.

    Raise ApiError 400 for a bad value.
    """
    name = headers.get("x-vecmill-lane")
    if name is not None and name.upper() not in Lane.__members__:
        raise ApiError(400, f"x-vecmill-lane is {quote(name)}, but must be interactive or bulk", param="x-vecmill-lane")
    lane = None if name is None else Lane[name.upper()]
    client, address = _hash(f"{address} {headers.get('authorization', '')}"), _hash(address)
    text = headers.get("x-vecmill-deadline-ms")
    if text is None:
        return RequestOptions(lane, longest_s, client, address=address)
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):
        message = "x-vecmill-deadline-ms must be a number of milliseconds above 0, of at most 9 digits"
        raise ApiError(400, message, param="x-vecmill-deadline-ms")
    return RequestOptions(lane, min(longest_s, int(text) / 1000), client, address=address)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
