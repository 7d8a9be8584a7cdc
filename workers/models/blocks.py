"""Layers that model families share: linear layers, norms, activations, attention, feed-forward layers, pooling.

`name` is where a layer's tensors are: `name.weight` and `name.bias`. All work on the last axis of hidden states or on
heads, so they do not depend on how tokens lie (`layout.py`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op
from numpy.typing import NDArray

from workers.models.folder import ModelFolder
from workers.models.layout import make_integer, make_integers, make_scalar
from workers.models.weights import Weights

#: Smallest divisors, as in torch.nn.functional.normalize and in the mean pooling of sentence-transformers.
NORMALIZE_EPSILON = 1e-12
MEAN_EPSILON = 1e-9

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


def make_rotary_tables(positions: Any, frequencies: NDArray[np.float64], scale: float = 1) -> tuple[Any, Any]:
    """Return cosines and sines for `rotate`, float32 `[1, 1, length, 2 * frequencies]`."""
    twice = np.concatenate([frequencies, frequencies]).astype(np.float32).reshape(1, 1, 1, -1)
    column = op.unsqueeze(op.convert(positions, "f32"), make_integers(0, 1, 3))
    angles = op.multiply(column, op.constant(twice))
    tables = op.cos(angles), op.sin(angles)
    if scale == 1:
        return tables
    return op.multiply(tables[0], make_scalar(scale)), op.multiply(tables[1], make_scalar(scale))


def rotate(x: Any, tables: tuple[Any, Any], size: int) -> Any:
    """Return heads with rotary position embeddings, each value paired with the one half a head away.

    Su et al. 2021, arXiv:2104.09864. OpenVINO has one operation for this form, but not for others, nor for axis -1.
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


def pool_states(hidden: Any, mask: Any, folder: ModelFolder) -> list[Any]:
    """Return the sentence embeddings, float32 `[batch, size]`, as the folder's pooling makes them.

    `hidden` is float32 `[batch, length, size]`. `mask` is float32 `[batch, length]`: 1 for tokens, then 0 for padding.
    If the folder normalizes, the divisors `[batch, 1]` are a second output.
    """
    vectors = {"CLS": _pool_first, "MEAN": _pool_mean, "LAST": _pool_last}[folder.pooling](hidden, mask)
    if not folder.normalize:
        return [vectors]
    norm = op.sqrt(op.reduce_sum(op.multiply(vectors, vectors), make_integers(-1), True))
    divisor = op.maximum(norm, make_scalar(NORMALIZE_EPSILON))
    return [op.divide(vectors, divisor), divisor]


def _pool_first(hidden: Any, _: Any) -> Any:
    return op.gather(hidden, make_integer(0), make_integer(1))


def _pool_mean(hidden: Any, mask: Any) -> Any:
    total = op.reduce_sum(op.multiply(hidden, op.unsqueeze(mask, make_integers(2))), make_integers(1), False)
    return op.divide(total, op.maximum(op.reduce_sum(mask, make_integers(1), True), make_scalar(MEAN_EPSILON)))


def _pool_last(hidden: Any, mask: Any) -> Any:
    last = op.subtract(op.convert(op.reduce_sum(mask, make_integers(1), False), "i64"), make_integer(1))
    picked = op.gather(hidden, op.unsqueeze(last, make_integers(1)), make_integer(1), 1)
    return op.squeeze(picked, make_integers(1))


def make_model(outputs: list[Any], inputs: list[Any], name: str) -> ov.Model:
    """Return a model with the outputs of `pool_states`, named `embedding` and `divisor`."""
    for output, title in zip(outputs, ("embedding", "divisor"), strict=False):
        output.output(0).set_names({title})
    return ov.Model(outputs, inputs, name)
