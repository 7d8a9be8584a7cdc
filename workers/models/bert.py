"""OpenVINO graph of the BERT family (BERT, MiniLM, bge, gte, e5), built from the model's weights.

The graph consists of OpenVINO's own operators, with attention as one fused operation. Inputs are `input_ids` and
`attention_mask`, int64 `[batch, length]`. Token types are always 0 and therefore part of the constants. Equations:
Devlin et al. 2018, arXiv:1810.04805, with the layer norm after each residual.
"""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op

from workers.models import graph
from workers.models.folder import ModelFolder
from workers.models.graph import Weights, make_integers, make_scalar
from workers.models.json_files import REMEDY, ModelError, read_count, read_number


def build_model(folder: ModelFolder, tensors: Mapping[str, Any]) -> ov.Model:
    """Return the graph of a folder's model. Raise `ModelError` if config.json and the tensors do not fit."""
    shape = _read_shape(folder.path / "config.json", folder.config)
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in tensors else ""
    weights = Weights(tensors, prefix)
    ids = op.parameter([-1, -1], np.int64, name="input_ids")
    mask_input = op.parameter([-1, -1], np.int64, name="attention_mask")
    mask = op.convert(mask_input, "f32")
    hidden = _build_embeddings(ids, weights, shape)
    # Added to the attention scores: the lowest float32 where the key is padding, so that the key's weight is exactly 0.
    lowest = make_scalar(float(np.finfo(np.float32).min))
    bias = op.multiply(op.subtract(make_scalar(1), op.unsqueeze(mask, make_integers(1, 2))), lowest)
    for number in range(shape.layers):
        hidden = _build_layer(hidden, bias, weights, f"encoder.layer.{number}.", shape)
    return graph.make_model(graph.pool_states(hidden, mask, folder), [ids, mask_input], "bert")


@dataclass(slots=True, frozen=True)
class _Shape:
    """Numbers of config.json that shape the graph."""

    hidden: int
    heads: int
    layers: int
    #: Width of the feed-forward layers.
    inner: int
    vocabulary: int
    positions: int
    token_types: int
    epsilon: float
    activate: Callable[[Any], Any]


def _read_shape(path: Path, config: dict[str, Any]) -> _Shape:
    """Return the numbers of a config.json. Raise `ModelError` if one is missing, invalid or not supported."""
    hidden, heads = read_count(path, config, "hidden_size"), read_count(path, config, "num_attention_heads")
    if hidden % heads:
        raise ModelError(f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}; {REMEDY}")
    activation = config.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in graph.ACTIVATIONS:
        known = ", ".join(graph.ACTIVATIONS)
        raise ModelError(f"{path}: hidden_act {reprlib.repr(activation)} is not supported; Vecmill supports {known}")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(f"{path}: position_embedding_type is not absolute, which Vecmill does not support")
    if config.get("is_decoder"):
        raise ModelError(f"{path}: is_decoder is true, but Vecmill supports only encoders")
    return _Shape(
        hidden=hidden,
        heads=heads,
        layers=read_count(path, config, "num_hidden_layers"),
        inner=read_count(path, config, "intermediate_size"),
        vocabulary=read_count(path, config, "vocab_size"),
        positions=read_count(path, config, "max_position_embeddings"),
        token_types=read_count(path, config, "type_vocab_size", default=2),
        epsilon=read_number(path, config, "layer_norm_eps", 0, 1, 1e-12, whole=False),
        activate=graph.ACTIVATIONS[activation],
    )


def _build_embeddings(ids: Any, weights: Weights, shape: _Shape) -> Any:
    words = weights.get_tensor("embeddings.word_embeddings.weight", shape.vocabulary, shape.hidden)
    positions = weights.get_tensor("embeddings.position_embeddings.weight", shape.positions, shape.hidden)
    types = weights.get_tensor("embeddings.token_type_embeddings.weight", shape.token_types, shape.hidden)
    length = op.gather(op.shape_of(ids), make_integers(1), op.constant(np.int64(0)))
    first, step, axis = make_integers(0), make_integers(1), make_integers(0)
    position_rows = op.slice(op.constant(positions + types[0]), first, length, step, axis)
    word_rows = op.gather(op.constant(words), ids, op.constant(np.int64(0)))
    summed = op.add(word_rows, op.unsqueeze(position_rows, make_integers(0)))
    return _build_norm(summed, weights, "embeddings.LayerNorm", shape)


def _build_layer(hidden: Any, bias: Any, weights: Weights, name: str, shape: _Shape) -> Any:
    size, inner = shape.hidden, shape.inner
    attended = _build_attention(hidden, bias, weights, name, shape)
    attended = _build_dense(attended, weights, name + "attention.output.dense", size, size)
    hidden = _build_norm(op.add(attended, hidden), weights, name + "attention.output.LayerNorm", shape)
    expanded = shape.activate(_build_dense(hidden, weights, name + "intermediate.dense", inner, size))
    output = _build_dense(expanded, weights, name + "output.dense", size, inner)
    return _build_norm(op.add(output, hidden), weights, name + "output.LayerNorm", shape)


def _build_attention(hidden: Any, bias: Any, weights: Weights, name: str, shape: _Shape) -> Any:
    def project_heads(part: str) -> Any:
        projected = _build_dense(hidden, weights, f"{name}attention.self.{part}", shape.hidden, shape.hidden)
        split = op.reshape(projected, make_integers(0, 0, shape.heads, shape.hidden // shape.heads), True)
        return op.transpose(split, make_integers(0, 2, 1, 3))

    query, key, value = project_heads("query"), project_heads("key"), project_heads("value")
    attended = op.scaled_dot_product_attention(query, key, value, bias)
    return op.reshape(op.transpose(attended, make_integers(0, 2, 1, 3)), make_integers(0, 0, shape.hidden), True)


def _build_dense(x: Any, weights: Weights, name: str, out: int, into: int) -> Any:
    return graph.apply_linear(
        x, weights.get_tensor(name + ".weight", out, into), weights.get_tensor(name + ".bias", out)
    )


def _build_norm(x: Any, weights: Weights, name: str, shape: _Shape) -> Any:
    weight, bias = weights.get_tensor(name + ".weight", shape.hidden), weights.get_tensor(name + ".bias", shape.hidden)
    return graph.apply_layer_norm(x, weight, bias, shape.epsilon)
