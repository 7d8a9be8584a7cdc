"""Static models: a table with a vector for each token, and the mean over a text, by model2vec or sentence-transformers.

Both write `embeddings`, and optionally `mapping`, the row of each token id, and `weights`, a factor for each token id;
older models of sentence-transformers have only `embedding.weight`. model2vec leaves out unknown tokens, and
sentence-transformers does not (model2vec 0.10, `StaticModel`; sentence-transformers 6.2, `StaticEmbedding`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import openvino.opset15 as op

from workers.models.folder import ModelFolder
from workers.models.head import MEAN_EPSILON
from workers.models.json_files import REMEDY, ModelError, read_object
from workers.models.layout import PaddedLayout, make_integer, make_integers, make_scalar
from workers.models.weights import Weights


def build_vectors(folder: ModelFolder, weights: Weights, layout: PaddedLayout) -> tuple[Any, int]:
    """Return the mean vector of each text, float32 `[batch, size]`, and the number of token ids.

    The vector of a text without tokens is 0.

    Raise `ModelError` if the tensors are damaged or do not fit.
    """
    name = "embedding.weight" if "embedding.weight" in weights else "embeddings"
    shape = weights.get_shape(name)
    if len(shape) != 2 or 0 in shape:
        raise ModelError(f"{weights.path}: {name} has the shape {shape}, but must have two dimensions; {REMEDY}")
    vocabulary_size, rows = shape[0], layout.ids
    if "mapping" in weights:
        mapping = weights.get_integers("mapping")
        vocabulary_size = len(mapping)
        if mapping.min() < 0 or mapping.max() >= shape[0]:
            raise ModelError(f"{weights.path}: mapping has rows that {name} does not have; {REMEDY}")
        rows = layout.embed_tokens(op.constant(mapping.astype(np.int64)))
    counted = layout.mask
    if folder.family == "model2vec" and (unknown := _find_unknown(folder.tokenizer_path)) is not None:
        is_known = op.convert(op.not_equal(layout.ids, make_integer(unknown)), "f32")
        counted = op.multiply(counted, is_known)
    factors = counted
    if "weights" in weights:
        factors = op.multiply(counted, layout.embed_tokens(op.constant(weights.get_tensor("weights", vocabulary_size))))
    vectors = op.gather(weights.get_constant(name, *shape), rows, make_integer(0))
    total = op.reduce_sum(op.multiply(vectors, op.unsqueeze(factors, make_integers(2))), make_integers(1), False)
    count = op.maximum(op.reduce_sum(counted, make_integers(1), True), make_scalar(MEAN_EPSILON))
    return op.divide(total, count), vocabulary_size


def _find_unknown(path: Path) -> int | None:
    """Return the id of the unknown token of a tokenizer.json, or None if there is none."""
    spec = read_object(path)
    try:
        model = spec["model"]
        if model["type"] == "Unigram":
            found = model.get("unk_id")
        else:
            added = {token["content"]: token["id"] for token in spec.get("added_tokens") or []}
            found = (added | model["vocab"]).get(model.get("unk_token"))
        return found if isinstance(found, int) else None
    except (TypeError, KeyError, AttributeError):
        return None  # the conversion of the tokenizer reports the error
