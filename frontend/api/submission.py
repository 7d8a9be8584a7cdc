"""A request beside the model that it asks for: what goes on the wire, and what the model does not take. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from broker.wire.errors import ErrorCode, describe_foreign_token, describe_too_long, describe_too_many_tokens
from broker.wire.protocol import Kind, ModelInfo, Option, pack_u32
from frontend.api.errors import ApiError, from_failure, quote
from frontend.api.schemas import MAX_LENGTH_LIMIT, EmbeddingsRequest, TokenizeRequest

#: Names of prompts for each `input_type` that others have: Cohere's and vLLM's, and the names that
#: sentence-transformers' encode_query and encode_document look for, in their order.
_QUERY, _DOCUMENT = ("query",), ("document", "passage", "corpus")
_INPUT_TYPES = {
    "query": _QUERY,
    "search_query": _QUERY,
    "document": _DOCUMENT,
    "search_document": _DOCUMENT,
    "passage": ("passage", "document", "corpus"),
}


class PreparedSubmission(NamedTuple):
    """What is sent of a request. `places` are the documents' numbers in it; those in `bad` are not sent."""

    kind: Kind
    inputs: list[bytes]
    options: Option
    places: Sequence[int]
    bad: dict[int, ApiError]
    #: What the caller should know of its answer; empty: nothing.
    warning: str


def build_submission(wanted: EmbeddingsRequest, model: ModelInfo, policy: str, max_tokens: int) -> PreparedSubmission:
    """The request for this model; ApiError 400 for what does not fit. `policy`: allow, warn or refuse other
    dimensions than the model declares. `max_tokens`: of the whole request."""
    warning = _dimensions_warning(wanted, model, policy)
    options = wanted.truncate
    if wanted.normalize is False and model.normalized:
        options |= Option.RAW
    if isinstance(wanted.documents[0], str):
        prompt = _prompt(wanted, model)
        texts = [(prompt + str(text)).encode() for text in wanted.documents]
        return PreparedSubmission(Kind.TEXT, texts, options, range(len(texts)), {}, warning)
    if wanted.prompt_name is not None or wanted.input_type is not None:
        name = "prompt_name" if wanted.prompt_name is not None else "input_type"
        raise ApiError(400, f"{name} needs texts: a prompt cannot be put before token ids", param=name)
    arrays = [ids for ids in wanted.documents if isinstance(ids, list)]
    bad = {place: error for place, ids in enumerate(arrays) if (error := _refusal(ids, model, options))}
    if bad and not wanted.per_item:
        raise next(iter(bad.values()))
    places = [place for place in range(len(arrays)) if place not in bad]
    tokens = sum(min(len(arrays[place]), model.max_tokens) for place in places)
    if tokens > max_tokens:
        raise from_failure(ErrorCode.TOO_MANY_TOKENS, describe_too_many_tokens(max_tokens))
    return PreparedSubmission(Kind.TOKENS, [pack_u32(arrays[place]) for place in places], options, places, bad, warning)


def _dimensions_warning(wanted: EmbeddingsRequest, model: ModelInfo, policy: str) -> str:
    if wanted.dimensions in (None, model.dimension):
        return ""
    if wanted.dimensions > model.dimension:
        text = f"dimensions is {wanted.dimensions}, and the model makes vectors of {model.dimension}"
        raise ApiError(400, text, param="dimensions")
    declared = not model.matryoshka_dimensions or wanted.dimensions in model.matryoshka_dimensions
    if policy == "allow" or (model.matryoshka and declared):
        return ""
    text = f"the model does not declare that its vectors may be cut to {wanted.dimensions} values"
    if policy == "refuse":
        raise ApiError(400, text, param="dimensions")
    return text


def _prompt(wanted: EmbeddingsRequest, model: ModelInfo) -> str:
    """What is put before each text."""
    name, kind = wanted.prompt_name, wanted.input_type
    if kind is not None and kind not in model.prompts:
        if kind not in _INPUT_TYPES:
            known = ", ".join(dict.fromkeys([*_INPUT_TYPES, *model.prompts]))
            text = f"input_type is {quote(kind)}, but must be one of {known}"
            raise ApiError(400, text, param="input_type")
        return next((model.prompts[one] for one in _INPUT_TYPES[kind] if one in model.prompts), "")
    if name is not None and name not in model.prompts:
        has = f"has {', '.join(model.prompts)}" if model.prompts else "has none"
        raise ApiError(400, f"prompt_name is {quote(name)}, but the model {has}", param="prompt_name")
    return model.prompts.get(kind or name or model.default_prompt, "")


def _refusal(ids: Sequence[int], model: ModelInfo, options: Option) -> ApiError | None:
    """Why these token ids cannot be embedded. The worker would say the same."""
    if not ids:
        return ApiError(400, "inner arrays in input should not be empty", param="input")
    if len(ids) > model.max_tokens and not options & (Option.TRUNCATE_END | Option.TRUNCATE_START):
        return from_failure(ErrorCode.TOO_LONG, describe_too_long(len(ids), model.max_tokens))
    vocabulary = model.vocabulary or 2**31
    outside = next((one for one in (min(ids), max(ids)) if not 0 <= one < vocabulary), None)
    if outside is not None:
        return from_failure(ErrorCode.INVALID_INPUT, describe_foreign_token(outside, vocabulary))
    return None


def check_max_length(wanted: TokenizeRequest, model: ModelInfo) -> None:
    """ApiError 400 for more than OVMS lets one ask for: the answer would be filled up to it."""
    limit = max(model.max_tokens, MAX_LENGTH_LIMIT)
    if wanted.max_length is not None and wanted.max_length > limit:
        text = f"max_length {wanted.max_length} exceeds the allowed limit of {limit}"
        raise ApiError(400, text, param="max_length")
