"""Layers that model families share: linear layers, norms, activations, attention, feed-forward layers.

`name` is where a layer's tensors are: `name.weight` and `name.bias`. All work on the last axis of hidden states or on
heads, so they do not depend on how tokens lie (`layout.py`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino.opset15 as op
from numpy.typing import NDArray

from workers.models.layout import make_integer, make_integers, make_scalar
from workers.models.weights import Weights

#: Activation functions by their names in config.json. "gelu" is exact; "gelu_new" approximates it with tanh.
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: op.gelu(x, "erf"),
    "gelu_new": lambda x: op.gelu(x, "tanh"),
    "gelu_pytorch_tanh": lambda x: op.gelu(x, "tanh"),
    "relu": op.relu,
    "silu": op.swish,
    "swish": op.swish,
    "tanh": op.tanh,
}


def make_linear(
    x: Any, weights: Weights, name: str, out: int, into: int, *, bias: bool = True, part: tuple[int, int] = (0, 1)
) -> Any:
    """Return x·Wᵀ + b for x `[…, into]`, W `[out, into]` and b `[out]`, without b if `bias` is false.

    `part` (n, count) uses the nth of `count` equal blocks of rows of larger tensors.
    """
    rows = out * part[1]
    product = op.matmul(x, weights.get_constant(f"{name}.weight", rows, into, part=part), False, True)
    if not bias:
        return product
    return op.add(product, weights.get_constant(f"{name}.bias", rows, part=part))


def make_layer_norm(x: Any, weights: Weights, name: str, size: int, epsilon: float, *, bias: bool = True) -> Any:
    """Return x normalized over its last axis, scaled and shifted (Ba et al. 2016, arXiv:1607.06450)."""
    normal = op.mvn(x, make_integers(-1), True, epsilon, "INSIDE_SQRT")
    scaled = op.multiply(normal, weights.get_constant(f"{name}.weight", size))
    return op.add(scaled, weights.get_constant(f"{name}.bias", size)) if bias else scaled


def make_rms_norm(x: Any, weights: Weights, name: str, size: int, epsilon: float, *, offset: float = 0) -> Any:
    """Return x divided by its root mean square and scaled by the weight plus `offset` (arXiv:1910.07467)."""
    mean = op.reduce_mean(op.multiply(x, x), make_integers(-1), True)
    # OpenVINO has one operation for this form of the norm.
    normal = op.multiply(x, op.divide(make_scalar(1), op.sqrt(op.add(mean, make_scalar(epsilon)))))
    return op.multiply(normal, op.constant(weights.get_tensor(f"{name}.weight", size) + np.float32(offset)))


def make_rotary_tables(positions: Any, frequencies: NDArray[np.float64]) -> tuple[Any, Any]:
    """Return cosines and sines for `rotate`, float32 `[1, 1, length, 2 * frequencies]`."""
    twice = np.concatenate([frequencies, frequencies]).astype(np.float32).reshape(1, 1, 1, -1)
    column = op.unsqueeze(op.convert(positions, "f32"), make_integers(0, 1, 3))
    angles = op.multiply(column, op.constant(twice))
    return op.cos(angles), op.sin(angles)


def rotate(x: Any, tables: tuple[Any, Any], size: int) -> Any:
    """Return heads with rotary position embeddings, each value paired with the one half a head away.

    Su et al. 2021, arXiv:2104.09864. OpenVINO has one operation for this form, which includes axis 3 and axis -1.
    """
    first, second = op.variadic_split(x, make_integer(3), make_integers(size // 2, size // 2)).outputs()
    turned = op.concat([op.multiply(second, make_scalar(-1)), first], -1)
    return op.add(op.multiply(x, tables[0]), op.multiply(turned, tables[1]))


def repeat_heads(x: Any, count: int) -> Any:
    """Return heads with each head `count` times in succession."""
    if count == 1:
        return x
    shape = x.get_output_partial_shape(0)
    heads, size = shape[1].get_length(), shape[3].get_length()
    copies = op.broadcast(op.unsqueeze(x, make_integers(2)), make_integers(1, 1, count, 1, 1), None, "BIDIRECTIONAL")
    return op.reshape(copies, make_integers(0, heads * count, -1, size), True)


def attend(query: Any, key: Any, value: Any, bias: Any, *, repeats: int = 1, scale: float | None = None) -> Any:
    """Return attention's heads. `repeats` queries share each key and value. `scale` is 1 / sqrt(size) if absent."""
    key, value = repeat_heads(key, repeats), repeat_heads(value, repeats)
    if scale is None:
        return op.scaled_dot_product_attention(query, key, value, bias)
    return op.scaled_dot_product_attention(query, key, value, bias, make_scalar(scale))
