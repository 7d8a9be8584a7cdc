"""OpenVINO graph of an encoder, built from the model's weights: BERT and all families of `encoder_specs.py`.

The graph consists of OpenVINO's own operators, with attention as one fused operation. Token types are always 0 and
therefore part of the constants. Equations: Devlin et al. 2018, arXiv:1810.04805, with the norm after each residual.
"""

import math
import reprlib
from typing import Any

import numpy as np
import openvino.opset15 as op
from numpy.typing import NDArray

from workers.models.blocks import ACTIVATIONS, attend, make_layer_norm, make_linear, make_rotary_tables, rotate
from workers.models.encoder_specs import Experts, Linear, Spec, read_spec
from workers.models.folder import ModelFolder
from workers.models.json_files import ModelError
from workers.models.layout import PaddedLayout, add_biases, make_integer, make_integers, make_scalar
from workers.models.weights import Weights

#: Distance from which all tokens have the same bias, fixed in transformers' code for MPNet.
_MAX_DISTANCE = 128


def build_states(folder: ModelFolder, weights: Weights, layout: PaddedLayout) -> Any:
    """Return the last hidden states. Raise `ModelError` if config.json and the weights do not fit."""
    path = folder.config_path
    spec = read_spec(path, folder.config)
    if not isinstance(spec.activation, str) or spec.activation not in ACTIVATIONS:
        raise ModelError(
            f"{path}: {spec.activation_key} {reprlib.repr(spec.activation)} is not supported; Vecmill supports "
            f"{', '.join(ACTIVATIONS)}"
        )
    weights.find_prefix("embeddings.word_embeddings.weight")
    return _Encoder(spec, weights, layout).build_states()


class _Encoder:
    def __init__(self, spec: Spec, weights: Weights, layout: PaddedLayout) -> None:
        self._spec = spec
        self._weights = weights
        self._layout = layout

    def build_states(self) -> Any:
        """Return the last hidden states."""
        spec = self._spec
        x = self._normalize(self._embed_tokens(), spec.embedding_norm)
        bias, tables = self._build_bias(), None
        if spec.frequencies is not None:
            tables = make_rotary_tables(self._layout.get_positions(), spec.frequencies)
        for number in range(spec.layers):
            name = f"{spec.layer}.{number}."
            attended = self._apply_linear(self._attend(x, name, bias, tables), name, spec.out, spec.hidden)
            x = self._normalize(op.add(attended, x), name + spec.attention_norm)
            if spec.experts is not None and number % spec.experts.every == 1:
                output = self._mix_experts(x, name + "mlp.", spec.experts)
            else:
                output = self._feed_forward(x, name)
            x = self._normalize(op.add(output, x), name + spec.output_norm)
        return x

    def _embed_tokens(self) -> Any:
        spec, get_tensor = self._spec, self._weights.get_tensor
        words = self._weights.get_constant("embeddings.word_embeddings.weight", spec.vocabulary, spec.hidden)
        x = self._layout.embed_tokens(words)
        types: Any = 0
        if spec.token_types:
            types = get_tensor("embeddings.token_type_embeddings.weight", spec.token_types, spec.hidden)[0]
        if spec.positions:
            positions = get_tensor("embeddings.position_embeddings.weight", spec.positions, spec.hidden)
            return op.add(x, self._layout.embed_positions(op.constant(positions + types), spec.first_position))
        return op.add(x, op.constant(types)) if spec.token_types else x

    def _build_bias(self) -> Any:
        """Return what is added to attention scores."""
        bias = self._layout.make_key_bias()
        if not self._spec.distances:
            return bias
        # Row 0 of the table of all distances belongs to the first key of the last query.
        last = self._spec.positions - 1
        rows = self._weights.get_tensor(
            "encoder.relative_attention_bias.weight", self._spec.distances, self._spec.heads
        )
        table = rows[find_buckets(np.arange(-last, last + 1), self._spec.distances)]
        found = op.gather(op.constant(table), op.add(self._layout.get_distances(), make_integer(last)), make_integer(0))
        return add_biases(op.unsqueeze(op.transpose(found, make_integers(2, 0, 1)), make_integers(0)), bias)

    def _attend(self, x: Any, name: str, bias: Any, tables: Any) -> Any:
        spec, size = self._spec, self._spec.hidden // self._spec.heads

        def project(linear: Linear) -> Any:
            return self._layout.split_heads(self._apply_linear(x, name, linear, spec.hidden), spec.heads, size)

        query, key, value = project(spec.query), project(spec.key), project(spec.value)
        if tables is not None:
            query, key = rotate(query, tables, size), rotate(key, tables, size)
        return self._layout.merge_heads(attend(query, key, value, bias))

    def _feed_forward(self, x: Any, name: str) -> Any:
        spec, activate = self._spec, ACTIVATIONS[self._spec.activation]
        inner = self._apply_linear(x, name, spec.up, spec.inner)
        if spec.gate is None:
            inner = activate(inner)
        else:
            inner = op.multiply(inner, activate(self._apply_linear(x, name, spec.gate, spec.inner)))
        return self._apply_linear(inner, name, spec.down, spec.hidden, spec.inner)

    def _mix_experts(self, x: Any, name: str, experts: Experts) -> Any:
        """Return the sum of the chosen experts, each times its share of the softmax over all experts.

        All experts compute; the share of those that are not chosen is 0. So the graph has fixed shapes.
        """
        spec, count = self._spec, experts.count
        shares = op.softmax(make_linear(x, self._weights, name + "router.layer", count, spec.hidden, bias=False), -1)
        largest = op.topk(shares, make_integer(experts.chosen), -1, "max", "value").output(0)
        lowest = op.reduce_min(largest, make_integers(-1), True)
        shares = op.select(op.greater_equal(shares, lowest), shares, make_scalar(0))
        expand = self._weights.get_constant(name + "experts.mlp.w1", count * spec.inner, spec.hidden)
        contract = self._weights.get_constant(name + "experts.mlp.w2", count * spec.inner, spec.hidden)
        inner = ACTIVATIONS[spec.activation](op.matmul(x, expand, False, True))
        split = op.reshape(inner, make_integers(0, 0, count, spec.inner), True)
        scaled = op.multiply(split, op.unsqueeze(shares, make_integers(-1)))
        inner = op.reshape(scaled, make_integers(0, 0, count * spec.inner), True)
        bias = self._weights.get_constant(name + "experts.bias", spec.hidden)
        return op.add(op.matmul(inner, contract, False, False), bias)

    def _apply_linear(self, x: Any, name: str, linear: Linear, out: int, into: int = 0) -> Any:
        into = into or self._spec.hidden
        return make_linear(x, self._weights, name + linear.name, out, into, bias=linear.bias, part=linear.part)

    def _normalize(self, x: Any, name: str) -> Any:
        return make_layer_norm(x, self._weights, name, self._spec.hidden, self._spec.epsilon)


def find_buckets(distances: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the row of each distance (key minus query) in a table of biases (Raffel et al. 2019, arXiv:1910.10683).

    Half of the rows are for keys after the query. Short distances have a row each, longer ones share rows.
    """
    half, far = count // 2, np.abs(distances).astype(np.float32)
    exact = half // 2
    scale = np.float32(math.log(_MAX_DISTANCE / exact))
    shared = exact + (np.log(np.maximum(far, 1) / np.float32(exact)) / scale * np.float32(half - exact)).astype(
        np.int64
    )
    rows = np.where(far < exact, far.astype(np.int64), np.minimum(shared, half - 1))
    return np.asarray(rows + half * (distances > 0))
