"""OpenVINO graph of ModernBERT: layer norms before attention and feed-forward layer, and windows in most layers.

Equations: Warner et al. 2024, arXiv:2412.13663.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino.opset15 as op
from numpy.typing import NDArray

from workers.models.blocks import ACTIVATIONS, attend, make_layer_norm, make_linear, make_rotary_tables, rotate
from workers.models.family_settings import FULL, SLIDING, read_choice, read_frequencies, read_layer_types, refuse_code
from workers.models.folder import ModelFolder
from workers.models.json_files import MAX_LAYERS, REMEDY, ModelError, read_count, read_flag, read_number
from workers.models.layout import PaddedLayout
from workers.models.weights import Weights

#: Key of the base of the rotary frequencies in the old spelling, and its default, by layer type.
_THETA = {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}


def build_states(folder: ModelFolder, weights: Weights, layout: PaddedLayout) -> Any:
    """Return the last hidden states. Raise `ModelError` if config.json and the weights do not fit."""
    shape = _read_shape(folder.config_path, folder.config)
    weights.find_prefix("embeddings.tok_embeddings.weight")
    table = weights.get_constant("embeddings.tok_embeddings.weight", shape.vocabulary, shape.hidden)
    hidden = _build_norm(layout.embed_tokens(table), weights, "embeddings.norm", shape)
    positions = layout.get_positions()
    tables = {kind: make_rotary_tables(positions, angles) for kind, angles in shape.frequencies.items()}
    biases = {FULL: layout.make_key_bias(), SLIDING: layout.make_window_bias(shape.radius)}
    for number, kind in enumerate(shape.layer_types):
        name = f"layers.{number}."
        # The embeddings have a norm already.
        x = _build_norm(hidden, weights, name + "attn_norm", shape) if number else hidden
        hidden = op.add(hidden, _build_attention(x, biases[kind], tables[kind], weights, layout, name, shape))
        x = _build_norm(hidden, weights, name + "mlp_norm", shape)
        hidden = op.add(hidden, _build_feed_forward(x, weights, name, shape))
    return _build_norm(hidden, weights, "final_norm", shape)


@dataclass(slots=True, frozen=True)
class _Shape:
    """Numbers of config.json that shape the graph."""

    hidden: int
    heads: int
    #: Width of the feed-forward layers.
    inner: int
    vocabulary: int
    epsilon: float
    activate: Callable[[Any], Any]
    attention_bias: bool
    inner_bias: bool
    norm_bias: bool
    #: `FULL` or `SLIDING` for each layer.
    layer_types: list[str]
    #: Largest distance of two tokens within a window.
    radius: int
    #: Frequencies of the rotary position embeddings by layer type.
    frequencies: dict[str, NDArray[Any]]


def _read_shape(path: Path, config: dict[str, Any]) -> _Shape:
    """Return the numbers of a config.json. Raise `ModelError` if one is missing, invalid or not supported."""
    refuse_code(path, config)
    hidden, heads = read_count(path, config, "hidden_size"), read_count(path, config, "num_attention_heads")
    if hidden % heads:
        raise ModelError(f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}; {REMEDY}")
    layers = read_count(path, config, "num_hidden_layers", highest=MAX_LAYERS)
    period = read_count(path, config, "global_attn_every_n_layers", default=3)
    return _Shape(
        hidden=hidden,
        heads=heads,
        inner=read_count(path, config, "intermediate_size"),
        vocabulary=read_count(path, config, "vocab_size"),
        epsilon=read_number(path, config, "norm_eps", 0, 1, 1e-5, whole=False),
        activate=ACTIVATIONS[read_choice(path, config, "hidden_activation", ACTIVATIONS, "gelu")],
        attention_bias=read_flag(path, config, "attention_bias"),
        inner_bias=read_flag(path, config, "mlp_bias"),
        norm_bias=read_flag(path, config, "norm_bias"),
        layer_types=read_layer_types(path, config, layers)
        or [SLIDING if number % period else FULL for number in range(layers)],
        radius=read_count(path, config, "local_attention", default=128) // 2,
        frequencies={
            kind: read_frequencies(path, config, hidden // heads, theta=theta, theta_key=key, layer_type=kind)
            for kind, (key, theta) in _THETA.items()
        },
    )


def _build_norm(x: Any, weights: Weights, name: str, shape: _Shape) -> Any:
    return make_layer_norm(x, weights, name, shape.hidden, shape.epsilon, bias=shape.norm_bias)


def _build_attention(
    x: Any, bias: Any, tables: tuple[Any, Any], weights: Weights, layout: PaddedLayout, name: str, shape: _Shape
) -> Any:
    hidden, size = shape.hidden, shape.hidden // shape.heads

    def project_heads(part: int) -> Any:
        fused = name + "attn.Wqkv"
        projected = make_linear(x, weights, fused, hidden, hidden, bias=shape.attention_bias, part=(part, 3))
        return layout.split_heads(projected, shape.heads, size)

    query, key, value = rotate(project_heads(0), tables, size), rotate(project_heads(1), tables, size), project_heads(2)
    merged = layout.merge_heads(attend(query, key, value, bias))
    return make_linear(merged, weights, name + "attn.Wo", hidden, hidden, bias=shape.attention_bias)


def _build_feed_forward(x: Any, weights: Weights, name: str, shape: _Shape) -> Any:
    hidden, inner, bias = shape.hidden, shape.inner, shape.inner_bias
    gate = make_linear(x, weights, name + "mlp.Wi", inner, hidden, bias=bias, part=(0, 2))
    up = make_linear(x, weights, name + "mlp.Wi", inner, hidden, bias=bias, part=(1, 2))
    return make_linear(op.multiply(shape.activate(gate), up), weights, name + "mlp.Wo", hidden, inner, bias=bias)
