"""Validation of a request against its model, and what is sent to the broker for it. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from broker.wire.errors import ErrorCode, describe_foreign_token, describe_too_long, describe_too_many_tokens, quote
from broker.wire.protocol import Kind, ModelInfo, Option, pack_u32
from frontend.api.errors import ApiError, from_failure, name_input
from frontend.api.model_names import INPUT_TYPES, resolve_name
from frontend.api.schemas import MAX_LENGTH_LIMIT, EmbeddingsRequest, TokenizeRequest

#: Highest token id of a model that announces no vocabulary: the largest signed 32-bit integer.
MAX_TOKEN_ID = 2**31 - 1


class PreparedSubmission(NamedTuple):
    """A request's inputs as the broker gets them."""

    kind: Kind
    inputs: list[bytes]
    options: Option
    #: Position of each of `inputs` in the request.
    positions: Sequence[int]
    #: Errors of the inputs that are not sent, by position in the request.
    errors: dict[int, ApiError]
    #: Text of the `x-vecmill-warning` header; empty: no header.
    warning: str


def apply_model_defaults(request: EmbeddingsRequest, model: ModelInfo) -> EmbeddingsRequest:
    """Return the request with the model's choice to truncate, if neither the request nor the server chose."""
    if request.truncate is None and model.truncates:
        return msgspec.structs.replace(request, truncate="end")
    return request


def build_submission(
    request: EmbeddingsRequest, model: ModelInfo, dimensions_policy: str, max_request_tokens: int
) -> PreparedSubmission:
    """Validate a request against its model, and prepare what is sent to the broker.

    `dimensions_policy` is allow, warn or refuse, for dimensions that the model does not declare. Raise `ApiError` 400
    if the model cannot serve the request.
    """
    warnings = [request.warning, _check_dimensions(request, model, dimensions_policy)]
    if request.truncate_prompt_tokens is not None and -1 < request.truncate_prompt_tokens < model.max_tokens:
        text = f"truncate_prompt_tokens is {request.truncate_prompt_tokens}, but inputs are only cut to the model's"
        raise ApiError(400, f"{text} {model.max_tokens} tokens; send -1", param="truncate_prompt_tokens")
    options = request.truncate_option
    if request.normalize is False and model.normalized:
        options |= Option.RAW
    texts = [text for text in request.inputs if isinstance(text, str)]
    if not model.prompts and request.input_type and request.input_type.lower() not in INPUT_TYPES:
        warnings.append("input_type was ignored, because the model has no prompts")
    warning = "; ".join(filter(None, warnings))
    if texts:
        prompt = _choose_prompt(request, model)
        inputs = [(prompt + text).encode() for text in texts]
        if prompt:
            options |= Option.PROMPT
        return PreparedSubmission(Kind.TEXT, inputs, options, range(len(inputs)), {}, warning)
    if request.prompt_name is not None or (request.input_type is not None and model.prompts):
        name = "prompt_name" if request.prompt_name is not None else "input_type"
        raise ApiError(400, f"{name} needs texts: a prompt cannot be put before token ids", param=name)
    arrays = {position: ids for position, ids in enumerate(request.inputs) if isinstance(ids, list)}
    errors = {position: error for position, ids in arrays.items() if (error := _check_ids(ids, model, options))}
    if errors and request.error_policy != "per_item":
        position, error = next(iter(errors.items()))
        raise name_input(error, position, len(arrays))
    valid = {position: ids for position, ids in arrays.items() if position not in errors}
    if sum(min(len(ids), model.max_tokens) for ids in valid.values()) > max_request_tokens:
        raise from_failure(ErrorCode.TOO_MANY_TOKENS, describe_too_many_tokens(max_request_tokens))
    return PreparedSubmission(
        Kind.TOKENS, [pack_u32(ids) for ids in valid.values()], options, list(valid), errors, warning
    )


def _check_dimensions(request: EmbeddingsRequest, model: ModelInfo, policy: str) -> str:
    """Return a warning if the model does not declare the requested dimensions, or an empty text."""
    if request.dimensions in (None, model.dimension):
        return ""
    if request.dimensions > model.dimension:
        text = f"dimensions is {request.dimensions}, but the model's vectors have {model.dimension} values"
        raise ApiError(400, text, param="dimensions")
    declared = not model.matryoshka_dimensions or request.dimensions in model.matryoshka_dimensions
    if policy == "allow" or (model.matryoshka and declared):
        return ""
    text = f"the model does not declare that its vectors may be cut to {request.dimensions} values"
    if policy == "refuse":
        raise ApiError(400, text, param="dimensions")
    return text


def _choose_prompt(request: EmbeddingsRequest, model: ModelInfo) -> str:
    """Return the text that is put before each input."""
    name, input_type = request.prompt_name, request.input_type
    if input_type is not None and not model.prompts:
        return ""
    if input_type is not None and input_type not in model.prompts:
        names = INPUT_TYPES.get(input_type.lower())
        if names is None:
            allowed = ", ".join(dict.fromkeys([*INPUT_TYPES, *model.prompts]))
            text = f"input_type is {quote(input_type)}, but must be one of {allowed}"
            raise ApiError(400, text, param="input_type")
        return next((model.prompts[key] for key in names if key in model.prompts), "")
    if name is not None and name not in model.prompts:
        prompts = f"the prompts {', '.join(model.prompts)}" if model.prompts else "no prompts"
        raise ApiError(400, f"prompt_name is {quote(name)}, but the model has {prompts}", param="prompt_name")
    return model.prompts.get(input_type or name or model.default_prompt, "")


def _check_ids(ids: Sequence[int], model: ModelInfo, options: Option) -> ApiError | None:
    """Return why token ids cannot be embedded, as the worker would."""
    if not ids:
        return ApiError(400, "inner arrays in input should not be empty", param="input")
    if len(ids) > model.max_tokens and not options & (Option.TRUNCATE_END | Option.TRUNCATE_START):
        return from_failure(ErrorCode.TOO_LONG, describe_too_long(len(ids), model.max_tokens))
    vocabulary = model.vocabulary or MAX_TOKEN_ID + 1
    foreign = next((token_id for token_id in (min(ids), max(ids)) if not 0 <= token_id < vocabulary), None)
    if foreign is not None:
        return from_failure(ErrorCode.INVALID_INPUT, describe_foreign_token(foreign, vocabulary))
    return None


def choose_prompt_by_name(request: EmbeddingsRequest, prompt: str) -> EmbeddingsRequest:
    """Return a request for a model name that ends in the name of a prompt. Raise `ApiError` 400 if it has another."""
    for field in ("prompt_name", "input_type"):
        if getattr(request, field) is not None:
            text = f"the model name {quote(request.model)} chooses the prompt {prompt}; leave out {field}"
            raise ApiError(400, text, param=field)
    return msgspec.structs.replace(request, prompt_name=prompt)


def apply_prompt_of_name(request: EmbeddingsRequest, models: Mapping[str, ModelInfo]) -> EmbeddingsRequest:
    """Return the request with the prompt that the name of its model ends in, if there is one.

    Raise `ApiError` 400 if the request has another.
    """
    resolved = resolve_name(request.model, models)
    return choose_prompt_by_name(request, resolved.prompt) if resolved and resolved.prompt is not None else request


def check_max_length(request: TokenizeRequest, model: ModelInfo, max_request_tokens: int) -> None:
    """Raise `ApiError` 400 if `max_length` is above OVMS's limit, or if padding alone makes the answer too long."""
    limit = max(model.max_tokens, MAX_LENGTH_LIMIT)
    if request.max_length is not None and request.max_length > limit:
        text = f"max_length {request.max_length} exceeds the allowed limit of {limit}"
        raise ApiError(400, text, param="max_length")
    padded = (request.max_length or model.max_tokens) * len(request.inputs) if request.pad_to_max_length else 0
    if padded > max_request_tokens:
        raise from_failure(ErrorCode.TOO_MANY_TOKENS, describe_too_many_tokens(max_request_tokens))
