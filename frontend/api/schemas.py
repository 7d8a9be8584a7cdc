"""Requests of the HTTP API: parsing, and all checks that do not need the model. Pure.

The API's description is generated from the `Struct` types here (openapi.py); parsing is written by hand, because error
texts use OVMS's wording.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct, field

from broker.wire.protocol import Lane, Option, Origin
from frontend.api.errors import ApiError, quote
from frontend.api.inputs import Inputs, parse_object, read_boolean, read_inputs, read_model_name, read_string

#: Values of `truncate`. The names of sides are those of TEI and vLLM; OVMS has a boolean.
_TRUNCATION = {
    None: Option(0),
    False: Option(0),
    "none": Option(0),
    True: Option.TRUNCATE_END,
    "end": Option.TRUNCATE_END,
    "start": Option.TRUNCATE_START,
}
#: OVMS's limit on `max_length`, for models that accept fewer tokens.
MAX_LENGTH_LIMIT = 8192
#: Most digits of x-vecmill-deadline-ms; about 11 days.
MAX_DEADLINE_DIGITS = 9


# --- bodies ----------------------------------------------------------------------------------------------------------


class EmbeddingsRequest(Struct, frozen=True, kw_only=True):
    """Body of POST /v1/embeddings. A field that is null counts as absent, and unknown fields are ignored."""

    model: Annotated[str, Meta(description="Name of a model in GET /v1/models")]
    inputs: Annotated[
        Inputs, Meta(description="A text, texts, the token ids of one document, or of several documents")
    ] = field(name="input")
    encoding_format: Annotated[
        Literal["float", "base64"] | None, Meta(description="float by default; base64 is of little-endian float32")
    ] = None
    dimensions: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Number of leading values to return, scaled to length 1 again"),
    ] = None
    user: Annotated[Any, Meta(description="Ignored")] = None
    truncate: Annotated[
        bool | Literal["none", "start", "end"] | None,
        Meta(description="Where to truncate inputs that are too long; true is end. By default they are an error"),
    ] = None
    prompt_name: Annotated[str | None, Meta(description="Name of a prompt of the model, put before each text")] = None
    input_type: Annotated[
        str | None, Meta(description="query or document: use the model's prompt for it, if there is one")
    ] = None
    normalize: Annotated[
        bool | None, Meta(description="Whether vectors have length 1; by default as the model defines")
    ] = None
    error_policy: Annotated[
        Literal["fail", "per_item"] | None,
        Meta(description="fail (default): one bad input fails the request; per_item: it is reported in its item"),
    ] = None

    @property
    def truncation(self) -> Option:
        """TRUNCATE_END, TRUNCATE_START, or no option."""
        return _TRUNCATION[self.truncate]


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """Body of POST /v3/tokenize, as in OVMS."""

    model: Annotated[str, Meta(description="Name of a model in GET /v1/models")]
    inputs: Annotated[list[str], Meta(description="A text, or texts")] = field(name="text")
    max_length: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description=f"Longest list of ids; at most {MAX_LENGTH_LIMIT}, or the model's max_tokens if higher"),
    ] = None
    pad_to_max_length: Annotated[
        bool | None, Meta(description="Whether to pad to max_length, or else to the model's max_tokens")
    ] = None
    padding_side: Annotated[Literal["left", "right"] | None, Meta(description="right by default")] = None
    add_special_tokens: Annotated[bool | None, Meta(description="true by default")] = None


def parse_embeddings(body: bytes, max_inputs: int) -> EmbeddingsRequest:
    """Parse the body of POST /v1/embeddings. Raise `ApiError` 400 if it is invalid."""
    fields = parse_object(body)
    model = read_model_name(fields)
    if read_string(fields, "encoding_format") not in (None, "float", "base64"):
        raise ApiError(400, "encoding_format should either base64 or float", param="encoding_format")
    if read_string(fields, "error_policy") not in (None, "fail", "per_item"):
        raise ApiError(400, "error_policy should be fail or per_item", param="error_policy")
    prompt_name, input_type = read_string(fields, "prompt_name"), read_string(fields, "input_type")
    if prompt_name is not None and input_type is not None:
        raise ApiError(400, "prompt_name and input_type exclude each other; send one of them", param="prompt_name")
    return EmbeddingsRequest(
        model=model,
        inputs=read_inputs(fields, "input", max_inputs),
        encoding_format=fields.get("encoding_format"),
        dimensions=_read_dimensions(fields.get("dimensions")),
        truncate=_read_truncate(fields.get("truncate")),
        prompt_name=prompt_name,
        input_type=input_type,
        normalize=read_boolean(fields, "normalize"),
        error_policy=fields.get("error_policy"),
    )


def _read_dimensions(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int:
        raise ApiError(400, "dimensions should be an integer", param="dimensions")
    if value < 1:
        raise ApiError(400, "dimensions should be greater than 0", param="dimensions")
    return value


def _read_truncate(value: Any) -> Any:
    if not isinstance(value, bool | str | None) or value not in _TRUNCATION:
        raise ApiError(400, "truncate should be boolean or one of none, start, end", param="truncate")
    return value


def parse_tokenize(body: bytes, max_inputs: int) -> TokenizeRequest:
    """Parse the body of POST /v3/tokenize. Raise `ApiError` 400 if it is invalid."""
    fields = parse_object(body)
    model = read_model_name(fields)
    inputs = read_inputs(fields, "text", max_inputs)
    texts = [text for text in inputs if isinstance(text, str)]
    if len(texts) < len(inputs):
        raise ApiError(400, "text must be string or array of strings", param="text")
    max_length = fields.get("max_length")
    if max_length is not None and (type(max_length) is not int or max_length < 0):
        raise ApiError(400, "max_length should be unsigned integer", param="max_length")
    if max_length == 0:
        raise ApiError(400, "max_length should be greater than 0", param="max_length")
    pad, add_special_tokens = read_boolean(fields, "pad_to_max_length"), read_boolean(fields, "add_special_tokens")
    side = fields.get("padding_side")
    if not isinstance(side, str | None):
        raise ApiError(400, "padding_side should be string, either left or right", param="padding_side")
    if side not in (None, "left", "right"):
        raise ApiError(400, "padding_side should be either left or right", param="padding_side")
    return TokenizeRequest(
        model=model,
        inputs=texts,
        max_length=max_length,
        pad_to_max_length=pad,
        padding_side=fields.get("padding_side"),
        add_special_tokens=add_special_tokens,
    )


# --- headers ---------------------------------------------------------------------------------------------------------


class RequestOptions(NamedTuple):
    """How to serve a request, and which client it counts towards."""

    #: None: chosen by the request's size.
    lane: Lane | None
    deadline_s: float
    #: Fair-queueing key: the name of the API key, or a hash (`hash_client`) if the server has no keys.
    client: str
    #: Limits of the API key: open jobs, and tokens a minute; 0: no limit.
    client_jobs: int = 0
    client_tokens: int = 0
    #: Hash of the address if the server has no keys, because a client can send another `Authorization` each time.
    address: str = ""
    origin: Origin = Origin()


def parse_lane(headers: Mapping[str, str]) -> Lane | None:
    """Return the lane in `x-vecmill-lane`, if given. Raise `ApiError` 400 for an unknown lane."""
    name = headers.get("x-vecmill-lane")
    if name is None:
        return None
    if name.upper() not in Lane.__members__:
        raise ApiError(400, f"x-vecmill-lane is {quote(name)}, but must be interactive or bulk", param="x-vecmill-lane")
    return Lane[name.upper()]


def parse_deadline_s(headers: Mapping[str, str], max_deadline_s: float) -> float:
    """Return the deadline in `x-vecmill-deadline-ms`, at most `max_deadline_s`, which is also the default.

    Raise `ApiError` 400 if the header is not a positive number.
    """
    text = headers.get("x-vecmill-deadline-ms")
    if text is None:
        return max_deadline_s
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DEADLINE_DIGITS and int(text)):
        message = f"x-vecmill-deadline-ms must be a whole number above 0, of at most {MAX_DEADLINE_DIGITS} digits"
        raise ApiError(400, message, param="x-vecmill-deadline-ms")
    return min(max_deadline_s, int(text) / 1000)


def hash_client(text: str) -> str:
    """Return a short hash of what identifies a client, so that neither logs nor the broker get the text itself."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
