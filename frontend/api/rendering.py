"""Rendering of answers. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from broker.wire.protocol import Availability, ModelInfo, ModelState
from frontend.api import answers
from frontend.api.errors import ApiError
from frontend.api.schemas import EmbeddingsRequest, TokenizeRequest

#: Rows of float32, [rows, dimension].
Vectors = npt.NDArray[np.float32]
#: Token ids of one text.
Ids = npt.NDArray[np.uint32]

#: Vectors shorter than this are divided by it instead of by their length, as in OVMS and torch.
_MIN_LENGTH = 1e-12

#: OVMS's names of states, with the error code of each.
_STATES: dict[Availability, tuple[Any, str]] = {
    Availability.AVAILABLE: ("AVAILABLE", "OK"),
    Availability.LOADING: ("LOADING", "OK"),
    Availability.FAILED: ("LOADING", "FAILED_PRECONDITION"),
    Availability.UNLOADING: ("UNLOADING", "OK"),
    Availability.END: ("END", "OK"),
    Availability.START: ("START", "OK"),
}


# --- embeddings ------------------------------------------------------------------------------------------------------


def shape_vectors(rows: Sequence[memoryview], request: EmbeddingsRequest, model: ModelInfo) -> Sequence[Any]:
    """Return rows as float32 arrays, with the dimensions and the normalization that the request chooses."""
    fewer = request.dimensions not in (None, model.dimension)
    normalize = request.normalize is True or (request.normalize is None and model.normalized)
    if not rows or not (fewer or (normalize and not model.normalized)):
        return [np.frombuffer(row, "<f4") for row in rows]
    vectors: Vectors = np.frombuffer(b"".join(rows), "<f4").reshape(len(rows), model.dimension)
    vectors = vectors[:, : request.dimensions]
    if normalize:
        lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(1, keepdims=True))
        vectors = (vectors / np.maximum(lengths, _MIN_LENGTH)).astype("<f4")
    return list(np.ascontiguousarray(vectors))


def render_embeddings(
    request: EmbeddingsRequest,
    vectors: Mapping[int, Any],
    tokens: int,
    *,
    truncated: Mapping[int, int],
    errors: Mapping[int, ApiError],
) -> bytes:
    """Render OpenAI's answer.

    Args:
        request: The request that is answered.
        vectors: Float32 arrays by position; a value becomes the shortest text that reads back to the same float32.
        tokens: Tokens of all inputs, for `usage`.
        truncated: Tokens cut off, by position.
        errors: Errors by position, of the inputs that are not in `vectors`.
    """
    base64 = request.encoding_format == "base64"
    data: list[answers.Embedding] = []
    for position in sorted([*vectors, *errors]):
        vector = vectors.get(position)
        if base64 and vector is not None:
            vector = vector.data
        item: answers.Embedding = {"object": "embedding", "embedding": vector, "index": position}
        if truncated.get(position):
            item["truncated_tokens"] = truncated[position]
        if position in errors:
            item["error"] = errors[position].to_object()
        data.append(item)
    total = sum(truncated.values()) if request.truncate_option else msgspec.UNSET
    answer = answers.EmbeddingsAnswer("list", data, request.model, answers.Usage(tokens, tokens), total)
    # msgspec encodes buffers as base64, a third faster than base64.b64encode and orjson.
    return msgspec.json.encode(answer) if base64 else _encode_arrays(answer)


def _encode_arrays(answer: msgspec.Struct) -> bytes:
    """Encode an answer that holds numpy arrays, which msgspec does not encode."""
    return orjson.dumps(answer, _to_dict, orjson.OPT_SERIALIZE_NUMPY)


def _to_dict(struct: msgspec.Struct) -> dict[str, Any]:
    fields = {name: getattr(struct, name) for name in struct.__struct_fields__}
    return {name: value for name, value in fields.items() if value is not msgspec.UNSET}


# --- token ids -------------------------------------------------------------------------------------------------------


def render_tokens(request: TokenizeRequest, rows: Sequence[memoryview], model: ModelInfo) -> bytes:
    """Render OVMS's answer: flat for one text, nested for several. `rows` are u32 ids with special tokens."""
    tokens: list[Any] = [_fit_ids(request, np.frombuffer(row, "<u4"), model) for row in rows]
    return _encode_arrays(answers.TokenizeAnswer(tokens[0] if len(tokens) == 1 else tokens))


def count_token_ids(request: TokenizeRequest, rows: Sequence[memoryview], model: ModelInfo) -> int:
    """Return an upper bound of the number of ids in the answer, padding included."""
    shortest = (request.max_length or model.max_tokens) if request.pad_to_max_length else 0
    longest = request.max_length or math.inf
    return int(sum(max(min(len(row) // 4, longest), shortest) for row in rows))


def _fit_ids(request: TokenizeRequest, ids: Ids, model: ModelInfo) -> Ids:
    """Return ids without special tokens, truncated and padded, as the request chooses."""
    before, after = len(model.before), len(model.after)
    if request.add_special_tokens is False:
        ids, before, after = ids[before : len(ids) - after], 0, 0
    if request.max_length is not None and len(ids) > request.max_length:
        # Keep the special tokens at the end if there is room for all special tokens.
        tail = after if request.max_length >= before + after else 0
        ids = np.concatenate([ids[: request.max_length - tail], ids[len(ids) - tail :]])
    if not request.pad_to_max_length:
        return ids
    padding = np.full(max(0, (request.max_length or model.max_tokens) - len(ids)), model.pad_id, np.uint32)
    return np.concatenate([padding, ids] if request.padding_side == "left" else [ids, padding])


# --- models ----------------------------------------------------------------------------------------------------------


def build_model_object(name: str, model: ModelInfo, created: int) -> answers.ModelObject:
    """Return OpenAI's model object of a model under one of its names; `created` is in seconds since 1970."""
    return answers.ModelObject(
        id=name,
        object="model",
        created=created,
        owned_by="vecmill",
        dimension=model.dimension,
        max_tokens=model.max_tokens,
        revision=model.revision,
        precision=model.precision,
        prompts=model.prompts,
        default_prompt=model.default_prompt or None,
        matryoshka_dimensions=model.matryoshka_dimensions if model.matryoshka else None,
    )


def render_models(models: Mapping[str, ModelInfo], created: int) -> bytes:
    """Render OpenAI's list of models, given by all their names."""
    objects = [build_model_object(name, model, created) for name, model in models.items()]
    return msgspec.json.encode(answers.ModelList("list", objects))


def render_config(states: Mapping[str, ModelState], models: Mapping[str, ModelInfo]) -> bytes:
    """Render OVMS's GET /v1/config: the state of every known model and of its parts, indented as in OVMS."""
    config: answers.ConfigAnswer = {}
    for name, model in states.items():
        state, code = _STATES[model.state]
        version = answers.VersionStatus("1", state, answers.StatusDetail(code, model.text or code))
        parts = models[name].parts if name in models else []
        config |= dict.fromkeys([name, *(part for part in parts if part not in states)], answers.ModelStatus([version]))
    return msgspec.json.format(msgspec.json.encode(dict(sorted(config.items()))), indent=1)


def render_model_metadata(model: ModelInfo) -> bytes:
    """Render KServe's metadata of a model."""
    text, vector = answers.Tensor("input", "BYTES", [-1]), answers.Tensor("embedding", "FP32", [-1, model.dimension])
    return msgspec.json.encode(answers.ModelMetadata(model.name, ["1"], "OpenVINO", [text], [vector]))
