"""OpenVINO graph of the BERT family (BERT, MiniLM, bge, gte, e5), built from the model's weights.

The graph consists of OpenVINO's own operators, with attention as one fused operation. Inputs are `input_ids` and
`attention_mask`, int64 `[batch, length]`. Token types are always 0 and therefore part of the constants. Equations:
Devlin et al. 2018, arXiv:1810.04805, with the layer norm after each residual.
"""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino.opset15 as op

from workers.models.blocks import ACTIVATIONS, attend, make_layer_norm, make_linear
from workers.models.folder import ModelFolder
from workers.models.json_files import REMEDY, ModelError, read_count, read_number
from workers.models.layout import PaddedLayout
from workers.models.weights import Weights


def build_states(folder: ModelFolder, weights: Weights, layout: PaddedLayout) -> Any:
    """Return the last hidden states. Raise `ModelError` if config.json and the weights do not fit."""
    shape = _read_shape(folder.config_path, folder.config)
    weights.find_prefix("embeddings.word_embeddings.weight")
    hidden = _build_embeddings(weights, layout, shape)
    bias = layout.make_key_bias()
    for number in range(shape.layers):
        hidden = _build_layer(hidden, bias, weights, layout, f"encoder.layer.{number}.", shape)
    return hidden


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
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
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
        activate=ACTIVATIONS[activation],
    )


def _build_embeddings(weights: Weights, layout: PaddedLayout, shape: _Shape) -> Any:
    words = weights.get_constant("embeddings.word_embeddings.weight", shape.vocabulary, shape.hidden)
    positions = weights.get_tensor("embeddings.position_embeddings.weight", shape.positions, shape.hidden)
    types = weights.get_tensor("embeddings.token_type_embeddings.weight", shape.token_types, shape.hidden)
    summed = op.add(layout.embed_tokens(words), layout.embed_positions(op.constant(positions + types[0])))
    return make_layer_norm(summed, weights, "embeddings.LayerNorm", shape.hidden, shape.epsilon)


def _build_layer(hidden: Any, bias: Any, weights: Weights, layout: PaddedLayout, name: str, shape: _Shape) -> Any:
    size, inner = shape.hidden, shape.inner

    def project_heads(part: str) -> Any:
        projected = make_linear(hidden, weights, f"{name}attention.self.{part}", size, size)
        return layout.split_heads(projected, shape.heads, size // shape.heads)

    attended = attend(project_heads("query"), project_heads("key"), project_heads("value"), bias)
    attended = make_linear(layout.merge_heads(attended), weights, name + "attention.output.dense", size, size)
    norm = name + "attention.output.LayerNorm"
    hidden = make_layer_norm(op.add(attended, hidden), weights, norm, size, shape.epsilon)
    expanded = shape.activate(make_linear(hidden, weights, name + "intermediate.dense", inner, size))
    output = make_linear(expanded, weights, name + "output.dense", size, inner)
    return make_layer_norm(op.add(output, hidden), weights, name + "output.LayerNorm", size, shape.epsilon)
