"""Requests of the HTTP API: parsing, and all checks that do not need the model. Pure.

The API's description is generated from the `Struct` types here (openapi.py); parsing is written by hand, because error
texts use OVMS's wording.
"""

import functools
import hashlib
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct, field

from broker.wire.errors import quote
from broker.wire.protocol import Caching, Lane, Option, Origin
from frontend.api.errors import ApiError
from frontend.api.inputs import Inputs, parse_object, read_boolean, read_inputs, read_model_name, read_string

#: Where to truncate inputs that are too long. Cohere and NIM have these words in capitals.
Truncate = Literal["none", "start", "end"]
_TRUNCATE: dict[Truncate, Option] = {"none": Option(0), "end": Option.TRUNCATE_END, "start": Option.TRUNCATE_START}
_TRUNCATION_FIELDS = {"truncate", "truncation", "truncation_direction", "truncate_prompt_tokens"}
#: TEI's sides, where `truncate` is a boolean.
_SIDES: dict[str, Truncate] = {"right": "end", "left": "start"}
#: OVMS's limit on `max_length`, for models that accept fewer tokens.
MAX_LENGTH_LIMIT = 8192
#: Most digits of x-vecmill-deadline-ms; about 11 days.
MAX_DEADLINE_DIGITS = 9
#: Headers that may have the API key instead of Authorization.
KEY_HEADERS = ("api-key", "x-api-key")
#: Optional white space around the value of a header (RFC 9110, 5.6.3).
_BLANKS = " \t"


# --- bodies ----------------------------------------------------------------------------------------------------------


class EmbeddingsRequest(Struct, frozen=True, kw_only=True):
    """Body of POST /v1/embeddings.

    An optional field that is null or an empty string counts as absent, and unknown fields are ignored.
    """

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
        bool | Literal["none", "start", "end", "NONE", "START", "END"] | None,
        Meta(
            description="Where to truncate inputs that are too long; true is end. By default as the server's --truncate"
        ),
    ] = None
    truncation: Annotated[bool | None, Meta(description="Voyage's name for a truncate of true or false")] = None
    truncation_direction: Annotated[
        Literal["left", "right", "Left", "Right"] | None,
        Meta(description="TEI's name for the side, if truncate is true"),
    ] = None
    truncate_prompt_tokens: Annotated[
        Annotated[int, Meta(ge=-1)] | None,
        Meta(description="vLLM's name for truncate: end: -1, or a number of at least the model's max_tokens"),
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
    #: No field of a body: what was changed in the body, for the header `x-vecmill-warning`.
    warning: str = ""

    @property
    def truncate_option(self) -> Option:
        """TRUNCATE_END, TRUNCATE_START, or no option."""
        return _TRUNCATE[self.truncate or "none"]  # type: ignore[index]


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
    #: As in `EmbeddingsRequest`.
    warning: str = ""


class _PlainBody(Struct, forbid_unknown_fields=True):
    """Body without the fields that few clients send."""

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] | None = None


_decode_plain = msgspec.json.Decoder(_PlainBody).decode


def _parse_plain(body: bytes, max_inputs: int, truncate: Truncate | Literal[""]) -> EmbeddingsRequest | None:
    """Return the request of a plain and valid body, in a third of the time; None for every other body."""
    try:
        plain = _decode_plain(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    inputs: Inputs = [plain.input] if isinstance(plain.input, str) else [*plain.input]
    if not 0 < len(inputs) <= max_inputs:
        return None
    encoding_format = plain.encoding_format
    return EmbeddingsRequest(
        model=plain.model, inputs=inputs, encoding_format=encoding_format, truncate=truncate or None
    )


def parse_embeddings(
    body: bytes,
    max_inputs: int,
    served: Collection[str] = (),
    *,
    truncate: Truncate | Literal[""] = "",
    token_ids: bool = True,
) -> EmbeddingsRequest:
    """Parse the body of POST /v1/embeddings. Raise `ApiError` 400 if it is invalid.

    The error for a missing model lists those `served`. `truncate` is the server's default; "": the model's.
    """
    if plain := _parse_plain(body, max_inputs, truncate):
        return plain
    fields, warning = parse_object(body)
    model = read_model_name(fields, served)
    if read_string(fields, "encoding_format") not in (None, "float", "base64"):
        raise ApiError(400, "encoding_format should either base64 or float", param="encoding_format")
    if read_string(fields, "error_policy") not in (None, "fail", "per_item"):
        raise ApiError(400, "error_policy should be fail or per_item", param="error_policy")
    prompt_name, input_type = read_string(fields, "prompt_name"), read_string(fields, "input_type")
    if prompt_name is not None and input_type is not None:
        raise ApiError(400, "prompt_name and input_type exclude each other; send one of them", param="prompt_name")
    inputs = read_inputs(fields, "input", max_inputs)
    if not token_ids and isinstance(inputs[0], list):
        text = "input has token ids, but this server accepts only texts; LangChain sends texts if"
        raise ApiError(400, f"{text} check_embedding_ctx_length=False", param="input")
    return EmbeddingsRequest(
        model=model,
        inputs=inputs,
        encoding_format=fields.get("encoding_format"),
        dimensions=_read_dimensions(fields.get("dimensions")),
        truncate=_read_truncate(fields) or truncate or None,
        truncate_prompt_tokens=fields.get("truncate_prompt_tokens"),
        prompt_name=prompt_name,
        input_type=input_type,
        normalize=read_boolean(fields, "normalize"),
        error_policy=fields.get("error_policy"),
        warning=warning,
    )


def _read_dimensions(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int:
        raise ApiError(400, "dimensions should be an integer", param="dimensions")
    if value < 1:
        raise ApiError(400, "dimensions should be greater than 0", param="dimensions")
    return value


def _read_truncate(fields: dict[str, Any]) -> Truncate | None:
    """Return the word for what a request chooses under the names of all servers, or None if it makes no choice."""
    if _TRUNCATION_FIELDS.isdisjoint(fields):
        return None
    value, tokens = fields.get("truncate"), fields.get("truncate_prompt_tokens")
    word = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(word, bool | str | None) or (isinstance(word, str) and word not in _TRUNCATE):
        raise ApiError(400, "truncate should be boolean or one of none, start, end", param="truncate")
    if tokens is not None and (type(tokens) is not int or tokens < -1 or tokens == 0):
        text = "truncate_prompt_tokens should be -1 or a number of tokens above 0"
        raise ApiError(400, text, param="truncate_prompt_tokens")
    direction = read_string(fields, "truncation_direction")
    side = (direction or "right").lower()
    if side not in _SIDES:
        raise ApiError(400, "truncation_direction should be left or right", param="truncation_direction")
    if direction and word in ("start", "end") and word != _SIDES[side]:
        text = f"truncate is {word!r}, but truncation_direction {direction!r} is the other side; send only truncate"
        raise ApiError(400, text, param="truncate")
    chosen = [word, read_boolean(fields, "truncation"), None if tokens is None else True]
    words = {one if isinstance(one, str) else _SIDES[side] if one else "none" for one in chosen if one is not None}
    if "none" in words and len(words) > 1:
        text = "truncate, truncation and truncate_prompt_tokens contradict each other; send only truncate"
        raise ApiError(400, text, param="truncate")
    # A word names a side; the other fields only allow to truncate.
    return word if isinstance(word, str) else next(iter(words), None)


def parse_tokenize(body: bytes, max_inputs: int, served: Collection[str] = ()) -> TokenizeRequest:
    """Parse the body of POST /v3/tokenize. Raise `ApiError` 400 if it is invalid."""
    fields, warning = parse_object(body)
    model = read_model_name(fields, served)
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
        warning=warning,
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
    caching: Caching = Caching.USE


def parse_lane(headers: Mapping[str, str]) -> Lane | None:
    """Return the lane in `x-vecmill-lane`, if given. Raise `ApiError` 400 for an unknown lane."""
    name = headers.get("x-vecmill-lane", "").strip(_BLANKS)
    if not name:
        return None
    lane = Lane.__members__.get(name.upper())
    if lane is None:
        raise ApiError(400, f"x-vecmill-lane is {quote(name)}, but must be interactive or bulk", param="x-vecmill-lane")
    return lane


def parse_deadline_s(headers: Mapping[str, str], max_deadline_s: float) -> float:
    """Return the deadline in `x-vecmill-deadline-ms`, at most `max_deadline_s`, which is also the default.

    Raise `ApiError` 400 if the header is not a positive number.
    """
    text = headers.get("x-vecmill-deadline-ms", "").strip(_BLANKS)
    if not text:
        return max_deadline_s
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DEADLINE_DIGITS and int(text)):
        message = f"x-vecmill-deadline-ms must be a whole number above 0, of at most {MAX_DEADLINE_DIGITS} digits"
        raise ApiError(400, message, param="x-vecmill-deadline-ms")
    return min(max_deadline_s, int(text) / 1000)


def parse_caching(headers: Mapping[str, str]) -> Caching:
    """Return how `Cache-Control` (RFC 9111) lets results of equal inputs be used; other directives are ignored."""
    text = headers.get("cache-control", "").lower()
    if not text:
        return Caching.USE
    directives = {directive.strip(_BLANKS) for directive in text.split(",")}
    if "no-store" in directives:
        return Caching.SKIP
    return Caching.REFRESH if "no-cache" in directives else Caching.USE


def list_credentials(headers: Mapping[str, str]) -> list[str]:
    """Return what may have the API key, in the form `Bearer KEY`: Authorization, Azure's header, and Anthropic's."""
    return [headers.get("authorization", ""), *(f"Bearer {headers[name]}" for name in KEY_HEADERS if name in headers)]


@functools.lru_cache(1000)
def hash_client(text: str) -> str:
    """Return a short hash of what identifies a client, so that neither logs nor the broker get the text itself."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
