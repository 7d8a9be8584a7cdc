"""The BERT family (BERT, MiniLM, bge, gte, e5) as an OpenVINO graph, from its weights alone.

Built from OpenVINO's own operators, with attention as one fused operation. Inputs: input_ids and attention_mask, int64
[batch, length]; token types are always 0 and therefore part of the constants. Equations: Devlin et al. 2018,
arXiv:1810.04805, with the layer norm after each residual.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op

from workers.models import graph
from workers.models.folder import ModelError, ModelFolder
from workers.models.graph import Weights, integers, scalar


def build(folder: ModelFolder, tensors: Mapping[str, Any]) -> ov.Model:
    """The graph of a folder's model; ModelError names what does not fit."""
    try:
        size = _Size(folder.config)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder.path / 'config.json'} does not describe a BERT model: {error}") from None
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in tensors else ""
    weights = Weights(tensors, prefix)
    ids = op.parameter([-1, -1], np.int64, name="input_ids")
    mask_input = op.parameter([-1, -1], np.int64, name="attention_mask")
    mask = op.convert(mask_input, "f32")
    hidden = _embeddings(ids, weights, size)
    # Added to the attention scores: the lowest float32 where the key is padding, so that its weight is exactly 0.
    lowest = scalar(float(np.finfo(np.float32).min))
    bias = op.multiply(op.subtract(scalar(1), op.unsqueeze(mask, integers(1, 2))), lowest)
    for number in range(size.layers):
        hidden = _layer(hidden, bias, weights, f"encoder.layer.{number}.", size)
    return graph.model(graph.pool(hidden, mask, folder), [ids, mask_input], "bert")


class _Size:
    """The numbers of config.json that shape the graph."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.hidden = int(config["hidden_size"])
        self.heads = int(config["num_attention_heads"])
        self.layers = int(config["num_hidden_layers"])
        self.inner = int(config["intermediate_size"])
        self.vocabulary = int(config["vocab_size"])
        self.positions = int(config["max_position_embeddings"])
        self.types = int(config.get("type_vocab_size", 2))
        self.epsilon = float(config.get("layer_norm_eps", 1e-12))
        if self.heads < 1 or self.hidden % self.heads:
            raise ValueError(f"hidden_size {self.hidden} is not a multiple of num_attention_heads {self.heads}")
        activation = config.get("hidden_act", "gelu")
        if activation not in graph.ACTIVATIONS:
            raise ValueError(f"hidden_act {activation!r} is not one of {', '.join(graph.ACTIVATIONS)}")
        self.activation = graph.ACTIVATIONS[activation]
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise ValueError("position_embedding_type is not absolute")
        if config.get("is_decoder"):
            raise ValueError("is_decoder is true")


def _embeddings(ids: Any, weights: Weights, size: _Size) -> Any:
    words = weights("embeddings.word_embeddings.weight", size.vocabulary, size.hidden)
    positions = weights("embeddings.position_embeddings.weight", size.positions, size.hidden)
    types = weights("embeddings.token_type_embeddings.weight", size.types, size.hidden)
    length = op.gather(op.shape_of(ids), integers(1), op.constant(np.int64(0)))
    placed = op.slice(op.constant(positions + types[0]), integers(0), length, integers(1), integers(0))
    summed = op.add(op.gather(op.constant(words), ids, op.constant(np.int64(0))), op.unsqueeze(placed, integers(0)))
    return _norm(summed, weights, "embeddings.LayerNorm", size)


def _layer(hidden: Any, bias: Any, weights: Weights, name: str, size: _Size) -> Any:
    attended = _dense(_attention(hidden, bias, weights, name, size), weights, name + "attention.output.dense",
                      size.hidden, size.hidden)  # fmt: skip
    hidden = _norm(op.add(attended, hidden), weights, name + "attention.output.LayerNorm", size)
    inner = size.activation(_dense(hidden, weights, name + "intermediate.dense", size.inner, size.hidden))
    outer = _dense(inner, weights, name + "output.dense", size.hidden, size.inner)
    return _norm(op.add(outer, hidden), weights, name + "output.LayerNorm", size)


def _attention(hidden: Any, bias: Any, weights: Weights, name: str, size: _Size) -> Any:
    def heads(part: str) -> Any:
        projected = _dense(hidden, weights, f"{name}attention.self.{part}", size.hidden, size.hidden)
        split = op.reshape(projected, integers(0, 0, size.heads, size.hidden // size.heads), True)
        return op.transpose(split, integers(0, 2, 1, 3))

    attended = op.scaled_dot_product_attention(heads("query"), heads("key"), heads("value"), bias)
    return op.reshape(op.transpose(attended, integers(0, 2, 1, 3)), integers(0, 0, size.hidden), True)


def _dense(x: Any, weights: Weights, name: str, out: int, into: int) -> Any:
    return graph.linear(x, weights(name + ".weight", out, into), weights(name + ".bias", out))


def _norm(x: Any, weights: Weights, name: str, size: _Size) -> Any:
    weight, bias = weights(name + ".weight", size.hidden), weights(name + ".bias", size.hidden)
    return graph.layer_norm(x, weight, bias, size.epsilon)
