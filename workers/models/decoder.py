"""OpenVINO graph of decoders with RMS norms: Qwen3, Qwen2, Mistral, Llama, Gemma3 and EuroBERT.

Each layer is x + attention(norm(x)), then x + feed-forward(norm(x)), with rotary position embeddings and several query
heads for each key and value head. Gemma3 also has a norm after each of the two parts, scales the embeddings, and adds
1 to the weights of all norms. Its activations exceed the largest float16, so it needs float32. Equations: Touvron et
al. 2023, arXiv:2302.13971; Gemma Team 2025, arXiv:2503.19786.

Whether a token attends to later tokens is read from config.json and never guessed.
"""

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino.opset15 as op
from numpy.typing import NDArray

from workers.models.blocks import ACTIVATIONS, attend, make_linear, make_rms_norm, make_rotary_tables, rotate
from workers.models.family_settings import (
    FULL,
    SLIDING,
    read_choice,
    read_frequencies,
    read_layer_types,
    refuse_code,
)
from workers.models.folder import ModelFolder
from workers.models.json_files import EXPORT, MAX_LAYERS, REMEDY, ModelError, read_count, read_flag, read_number
from workers.models.layout import PaddedLayout, make_scalar
from workers.models.weights import Weights


def build_states(folder: ModelFolder, weights: Weights, layout: PaddedLayout) -> Any:
    """Return the last hidden states. Raise `ModelError` if config.json and the weights do not fit."""
    shape = _read_shape(folder.config_path, folder.config, folder.family)
    weights.find_prefix("embed_tokens.weight")
    hidden = layout.embed_tokens(weights.get_constant("embed_tokens.weight", shape.vocabulary, shape.hidden))
    if shape.is_gemma:
        hidden = op.multiply(hidden, make_scalar(math.sqrt(shape.hidden)))
    kinds = {kind: _make_attention(kind, layout, shape) for kind in dict.fromkeys(shape.layer_types)}
    for number, kind in enumerate(shape.layer_types):
        hidden = _Layer(weights, layout, shape, f"layers.{number}.").build(hidden, kinds[kind])
    hidden = make_rms_norm(hidden, weights, "norm", shape.hidden, shape.epsilon, offset=shape.norm_offset)
    if _list_code(folder.config):
        _check_extra_weights(weights)
    return hidden


@dataclass(slots=True, frozen=True)
class _Shape:
    """Numbers of config.json that shape the graph."""

    hidden: int
    vocabulary: int
    heads: int
    #: Heads of keys and values.
    key_heads: int
    #: Values of a head.
    size: int
    #: Width of the feed-forward layers.
    inner: int
    epsilon: float
    activate: Callable[[Any], Any]
    #: Whether the projections of queries, keys and values, of the output and of the feed-forward layers have a bias.
    query_bias: bool
    output_bias: bool
    inner_bias: bool
    #: Whether queries and keys have a norm.
    has_head_norms: bool
    is_gemma: bool
    #: Factor of the attention scores.
    scale: float
    is_causal: bool
    #: `FULL` or `SLIDING` for each layer.
    layer_types: list[str]
    #: With causal attention, the tokens in a window; else the largest distance within a window.
    window: int
    #: Frequencies of the rotary position embeddings by layer type.
    frequencies: dict[str, NDArray[Any]]

    @property
    def norm_offset(self) -> float:
        """Added to the weights of norms."""
        return 1 if self.is_gemma else 0


def _read_shape(path: Path, config: dict[str, Any], family: str) -> _Shape:
    """Return the numbers of a config.json. Raise `ModelError` if one is missing, invalid or not supported."""
    is_gemma, has_biases = family == "gemma3_text", family in ("llama", "qwen3", "eurobert", "gemma3_text")
    hidden, heads = read_count(path, config, "hidden_size"), read_count(path, config, "num_attention_heads")
    key_heads = read_count(path, config, "num_key_value_heads", default=4 if is_gemma else heads)
    if heads % key_heads:
        raise ModelError(f"{path}: num_attention_heads {heads} is not a multiple of num_key_value_heads {key_heads}")
    size = read_count(path, config, "head_dim", default=_HEAD_SIZES.get(family, max(1, hidden // heads)))
    if config.get("attn_logit_softcapping") is not None:
        raise ModelError(f"{path}: attn_logit_softcapping is set, which Vecmill does not support")
    activation = read_choice(
        path,
        config,
        "hidden_activation" if is_gemma else "hidden_act",
        ACTIVATIONS,
        "gelu_pytorch_tanh" if is_gemma else "silu",
    )
    attention_bias = has_biases and read_flag(path, config, "attention_bias")
    scalar = read_number(path, config, "query_pre_attn_scalar", 1e-6, 1e6, 256, whole=False) if is_gemma else size
    is_causal = _read_causality(path, config, family)
    layer_types = _read_layer_types(path, config, family)
    return _Shape(
        hidden=hidden,
        vocabulary=read_count(path, config, "vocab_size"),
        heads=heads,
        key_heads=key_heads,
        size=size,
        inner=read_count(path, config, "intermediate_size"),
        epsilon=read_number(path, config, "rms_norm_eps", 0, 1, 1e-5 if family == "eurobert" else 1e-6, whole=False),
        activate=ACTIVATIONS[activation],
        query_bias=attention_bias or family == "qwen2",
        output_bias=attention_bias,
        inner_bias=family in ("llama", "eurobert") and read_flag(path, config, "mlp_bias"),
        has_head_norms=family in ("qwen3", "gemma3_text"),
        is_gemma=is_gemma,
        scale=scalar**-0.5,
        is_causal=is_causal,
        layer_types=layer_types,
        window=_read_window(path, config, is_gemma, is_causal) if SLIDING in layer_types else 0,
        frequencies={kind: _read_frequencies(path, config, size, kind, is_gemma) for kind in set(layer_types)},
    )


#: Layers that predict tokens or classes, after the hidden states.
_OUTPUT_LAYERS = ("lm_head.", "score.", "classifier.")
#: Values of a head where `head_dim` is absent, if not the hidden size divided by the heads.
_HEAD_SIZES = {"qwen3": 128, "gemma3_text": 256}


def _read_causality(path: Path, config: dict[str, Any], family: str) -> bool:
    """Return whether tokens attend only to earlier tokens."""
    if family == "eurobert":
        refuse_code(path, config, ("EuroBert",))
        return False
    is_causal, is_bidirectional = (config.get(key) for key in ("is_causal", "use_bidirectional_attention"))
    classes = _list_code(config)
    if classes and is_causal is None and is_bidirectional is None:
        raise ModelError(
            f"{path}: auto_map has {classes[0]}, code that Vecmill never runs, so it is unknown whether attention is "
            'causal; add "is_causal": true or false to the file, as the description of the model says'
        )
    if read_flag(path, config, "use_bidirectional_attention"):
        if read_flag(path, config, "is_causal"):
            raise ModelError(f"{path}: is_causal and use_bidirectional_attention contradict each other; {REMEDY}")
        return False
    return read_flag(path, config, "is_causal", True)


def _list_code(config: dict[str, Any]) -> list[str]:
    """Return the keys of `auto_map` that name models, whose code comes with the model."""
    auto_map = config.get("auto_map")
    return [key for key in auto_map if key.startswith("AutoModel")] if isinstance(auto_map, dict) else []


def _check_extra_weights(weights: Weights) -> None:
    """Raise `ModelError` if the model's own code has layers beyond those of the family, such as a projection."""
    if extra := [name for name in weights.list_unused() if not name.startswith(_OUTPUT_LAYERS)]:
        raise ModelError(
            f"{weights.path} has {extra[0]}, which only the model's own code uses, and Vecmill runs no such code; "
            f"{EXPORT}"
        )


def _read_layer_types(path: Path, config: dict[str, Any], family: str) -> list[str]:
    """Return the kind of attention of each layer."""
    layers = read_count(path, config, "num_hidden_layers", highest=MAX_LAYERS)
    types = read_layer_types(path, config, layers)
    if family == "gemma3_text":
        key = "sliding_window_pattern" if "sliding_window_pattern" in config else "_sliding_window_pattern"
        period = read_count(path, config, key, default=6)
        return types or [SLIDING if (number + 1) % period else FULL for number in range(layers)]
    if family in ("qwen2", "qwen3"):
        if not read_flag(path, config, "use_sliding_window") or config.get("sliding_window") is None:
            if types and SLIDING in types:
                raise ModelError(f"{path}: layer_types has {SLIDING}, but use_sliding_window is not true; {REMEDY}")
            return [FULL] * layers
        first = read_count(path, config, "max_window_layers", lowest=0, default=28)
        return types or [SLIDING if number >= first else FULL for number in range(layers)]
    has_window = family == "mistral" and config.get("sliding_window", 4096) is not None
    expected = [SLIDING if has_window else FULL] * layers
    if types not in (None, expected):
        raise ModelError(
            f"{path}: layer_types {reprlib.repr(types)} are not supported in a model of the model_type {family}"
        )
    return expected


def _read_window(path: Path, config: dict[str, Any], is_gemma: bool, is_causal: bool) -> int:
    window = read_count(path, config, "sliding_window", default=4096)
    if is_causal or not read_flag(path, config, "use_bidirectional_attention"):
        return window
    if not is_gemma:
        raise ModelError(f"{path}: sliding_window with use_bidirectional_attention is supported only in gemma3_text")
    # Half of the window lies on each side of a token.
    return window // 2


def _read_frequencies(path: Path, config: dict[str, Any], size: int, kind: str, is_gemma: bool) -> NDArray[Any]:
    if not is_gemma:
        return read_frequencies(path, config, size)
    if kind == FULL:
        return read_frequencies(path, config, size, layer_type=kind, theta=1_000_000)
    return read_frequencies(path, config, size, layer_type=kind, theta_key="rope_local_base_freq", is_scaled=False)


@dataclass(slots=True, frozen=True)
class _Attention:
    """What layers of one type share: the bias of the attention scores, and cosines and sines of the positions."""

    bias: Any
    tables: tuple[Any, Any]


def _make_attention(kind: str, layout: PaddedLayout, shape: _Shape) -> _Attention:
    if shape.is_causal:
        bias = layout.make_causal_bias(shape.window if kind == SLIDING else None)
    else:
        bias = layout.make_window_bias(shape.window) if kind == SLIDING else layout.make_key_bias()
    return _Attention(bias, make_rotary_tables(layout.get_positions(), shape.frequencies[kind]))


@dataclass(slots=True, frozen=True)
class _Layer:
    """Builder of one layer."""

    weights: Weights
    layout: PaddedLayout
    shape: _Shape
    #: Before the names of the layer's tensors.
    name: str

    def build(self, hidden: Any, attention: _Attention) -> Any:
        attended = self._attend(self._norm(hidden, "input_layernorm"), attention)
        if not self.shape.is_gemma:
            hidden = op.add(hidden, attended)
            return op.add(hidden, self._feed_forward(self._norm(hidden, "post_attention_layernorm")))
        hidden = op.add(hidden, self._norm(attended, "post_attention_layernorm"))
        inner = self._feed_forward(self._norm(hidden, "pre_feedforward_layernorm"))
        return op.add(hidden, self._norm(inner, "post_feedforward_layernorm"))

    def _norm(self, x: Any, part: str, size: int = 0) -> Any:
        shape = self.shape
        return make_rms_norm(
            x, self.weights, self.name + part, size or shape.hidden, shape.epsilon, offset=shape.norm_offset
        )

    def _linear(self, x: Any, part: str, out: int, into: int, bias: bool) -> Any:
        return make_linear(x, self.weights, self.name + part, out, into, bias=bias)

    def _attend(self, hidden: Any, attention: _Attention) -> Any:
        shape = self.shape
        query = self._project_heads(hidden, "q", shape.heads, shape.has_head_norms)
        key = self._project_heads(hidden, "k", shape.key_heads, shape.has_head_norms)
        value = self._project_heads(hidden, "v", shape.key_heads, False)
        attended = attend(
            rotate(query, attention.tables, shape.size),
            rotate(key, attention.tables, shape.size),
            value,
            attention.bias,
            repeats=shape.heads // shape.key_heads,
            scale=shape.scale,
        )
        merged = self.layout.merge_heads(attended)
        return self._linear(merged, "self_attn.o_proj", shape.hidden, shape.heads * shape.size, shape.output_bias)

    def _project_heads(self, hidden: Any, part: str, heads: int, has_norm: bool) -> Any:
        shape = self.shape
        projected = self._linear(hidden, f"self_attn.{part}_proj", heads * shape.size, shape.hidden, shape.query_bias)
        split = self.layout.split_heads(projected, heads, shape.size)
        return self._norm(split, f"self_attn.{part}_norm", shape.size) if has_norm else split

    def _feed_forward(self, x: Any) -> Any:
        hidden, inner, bias = self.shape.hidden, self.shape.inner, self.shape.inner_bias
        gate = self.shape.activate(self._linear(x, "mlp.gate_proj", inner, hidden, bias))
        up = self._linear(x, "mlp.up_proj", inner, hidden, bias)
        return self._linear(op.multiply(gate, up), "mlp.down_proj", hidden, inner, bias)
