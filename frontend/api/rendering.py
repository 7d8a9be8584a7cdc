"""Answers as they go out. Pure."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from broker.wire.protocol import ModelInfo, ModelState, State
from frontend.api.errors import ApiError
from frontend.api.schemas import EmbeddingsRequest, TokenizeRequest

#: Rows of float32, [rows, dimension].
Vectors = npt.NDArray[np.float32]
#: Token ids of one text.
Ids = npt.NDArray[np.uint32]

#: Below this length a vector is not scaled to length 1: OVMS's eps, and torch's.
_SHORTEST = 1e-12

#: OVMS's names of states, and what it says beside them.
_STATES = {
    State.AVAILABLE: ("AVAILABLE", "OK"),
    State.LOADING: ("LOADING", "OK"),
    State.FAILED: ("LOADING", "FAILED_PRECONDITION"),
    State.UNLOADING: ("UNLOADING", "OK"),
    State.END: ("END", "OK"),
}


def shape(rows: Sequence[memoryview], wanted: EmbeddingsRequest, model: ModelInfo) -> Sequence[Any]:
    """Vectors as the request wants them, float32 little-endian: cut to its dimensions, and of length 1 again."""
    cut = wanted.dimensions not in (None, model.dimension)
    of_length_1 = wanted.normalize is True or (wanted.normalize is None and model.normalized)
    if not rows or not (cut or (of_length_1 and not model.normalized)):
        return [np.frombuffer(row, "<f4") for row in rows]
    vectors: Vectors = np.frombuffer(b"".join(rows), "<f4").reshape(len(rows), model.dimension)
    vectors = vectors[:, : wanted.dimensions]
    if of_length_1:
        lengths = np.sqrt(np.square(vectors, dtype=np.float64).sum(1, keepdims=True))
        vectors = (vectors / np.maximum(lengths, _SHORTEST)).astype("<f4")
    return list(np.ascontiguousarray(vectors))


def render_embeddings(
    wanted: EmbeddingsRequest,
    vectors: Mapping[int, Any],
    tokens: int,
    *,
    cut: Mapping[int, int],
    bad: Mapping[int, ApiError],
) -> bytes:
    """OpenAI's answer. `vectors` are float32 arrays by place; as text each value is the shortest that reads back to it.
    `cut`: tokens cut off, and `bad`: what is wrong, by place; each document is in `vectors` or in `bad`."""
    data: list[dict[str, Any]] = []
    for index in sorted([*vectors, *bad]):
        vector = vectors.get(index)
        if wanted.base64 and vector is not None:
            vector = base64.b64encode(vector).decode("ascii")
        item = {"object": "embedding", "embedding": vector, "index": index}
        if cut.get(index):
            item["truncated_tokens"] = cut[index]
        if index in bad:
            item["error"] = bad[index].fields()
        data.append(item)
    answer: dict[str, Any] = {
        "object": "list",
        "data": data,
        "model": wanted.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    if wanted.truncate:
        answer["truncated_tokens"] = sum(cut.values())
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def render_tokens(wanted: TokenizeRequest, rows: Sequence[memoryview], model: ModelInfo) -> bytes:
    """OVMS's answer: flat for a single text, nested for several. `rows`: u32 ids with special tokens."""
    tokens = [_tokens(wanted, np.frombuffer(row, "<u4"), model) for row in rows]
    return orjson.dumps({"tokens": tokens[0] if len(tokens) == 1 else tokens}, option=orjson.OPT_SERIALIZE_NUMPY)


def count_token_ids(wanted: TokenizeRequest, rows: Sequence[memoryview], model: ModelInfo) -> int:
    """Return how many ids the answer has at most, those of the padding included."""
    shortest = (wanted.max_length or model.max_tokens) if wanted.pad else 0
    longest = wanted.max_length or math.inf
    return int(sum(max(min(len(row) // 4, longest), shortest) for row in rows))


def _tokens(wanted: TokenizeRequest, ids: Ids, model: ModelInfo) -> Ids:
    before, after = len(model.before), len(model.after)
    if not wanted.special_tokens:
        ids, before, after = ids[before : len(ids) - after], 0, 0
    if wanted.max_length is not None and len(ids) > wanted.max_length:
        # The special tokens stay, where there is room for them.
        kept = after if wanted.max_length >= before + after else 0
        ids = np.concatenate([ids[: wanted.max_length - kept], ids[len(ids) - kept :]])
    if not wanted.pad:
        return ids
    padding = np.full(max(0, (wanted.max_length or model.max_tokens) - len(ids)), model.pad_id, np.uint32)
    return np.concatenate([padding, ids] if wanted.pad_left else [ids, padding])


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
        "prompts": model.prompts,
        "default_prompt": model.default_prompt or None,
        "matryoshka_dimensions": model.matryoshka_dimensions if model.matryoshka else None,
    }


def render_config(states: Mapping[str, ModelState]) -> bytes:
    """OVMS's GET /v1/config: every model that is known, and how it is doing."""
    config = {}
    for name, one in sorted(states.items()):
        state, code = _STATES[one.state]
        status = {"error_code": code, "error_message": one.text or code}
        config[name] = {"model_version_status": [{"version": "1", "state": state, "status": status}]}
    return msgspec.json.format(msgspec.json.encode(config), indent=1)
