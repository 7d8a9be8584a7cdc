"""Parts of OpenVINO graphs that model families share: constants, layers, pooling, normalization."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op

from workers.models.folder import ModelFolder
from workers.models.json_files import REMEDY, ModelError

#: Smallest divisors, as in torch.nn.functional.normalize and in the mean pooling of sentence-transformers.
NORMALIZE_EPSILON = 1e-12
MEAN_EPSILON = 1e-9

#: Activation functions by their names in config.json. "gelu" is exact; "gelu_new" approximates it with tanh.
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: op.gelu(x, "erf"),
    "gelu_new": lambda x: op.gelu(x, "tanh"),
    "gelu_pytorch_tanh": lambda x: op.gelu(x, "tanh"),
    "relu": op.relu,
}


class Weights:
    """Tensors of a model by name."""

    def __init__(self, tensors: Mapping[str, Any], prefix: str) -> None:
        """Take the tensors of a file. `prefix` comes before each name that `get_tensor` gets."""
        self._tensors = tensors
        self._prefix = prefix

    def get_tensor(self, name: str, *shape: int) -> Any:
        """Return a tensor as float32. Raise `ModelError` if it is missing, not finite or has another shape."""
        name = self._prefix + name
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelError(f"model.safetensors has no tensor {name}, which config.json requires; {REMEDY}")
        if tensor.shape != shape:
            raise ModelError(
                f"model.safetensors: {name} has the shape {tensor.shape}, but config.json requires {shape}; {REMEDY}"
            )
        with np.errstate(over="ignore"):
            tensor = tensor.astype(np.float32, copy=False)
        if not np.isfinite(tensor).all():
            raise ModelError(f"model.safetensors: {name} has values that are not finite float32 numbers; {REMEDY}")
        return tensor


def make_integers(*values: int) -> Any:
    """Return a constant, int64 `[values]`."""
    return op.constant(np.array(values, np.int64))


def make_scalar(value: float) -> Any:
    """Return a float32 constant."""
    return op.constant(np.float32(value))


def apply_linear(x: Any, weight: Any, bias: Any) -> Any:
    """Return x·Wᵀ + b for x `[batch, length, into]`, W `[out, into]` and b `[out]`."""
    return op.add(op.matmul(x, op.constant(weight), False, True), op.constant(bias.reshape(1, 1, -1)))


def apply_layer_norm(x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """Return x normalized over its last axis, scaled and shifted (Ba et al. 2016, arXiv:1607.06450)."""
    normal = op.mvn(x, make_integers(-1), True, epsilon, "INSIDE_SQRT")
    return op.add(op.multiply(normal, op.constant(weight.reshape(1, 1, -1))), op.constant(bias.reshape(1, 1, -1)))


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
    return op.gather(hidden, op.constant(np.int64(0)), op.constant(np.int64(1)))


def _pool_mean(hidden: Any, mask: Any) -> Any:
    total = op.reduce_sum(op.multiply(hidden, op.unsqueeze(mask, make_integers(2))), make_integers(1), False)
    return op.divide(total, op.maximum(op.reduce_sum(mask, make_integers(1), True), make_scalar(MEAN_EPSILON)))


def _pool_last(hidden: Any, mask: Any) -> Any:
    last = op.subtract(op.convert(op.reduce_sum(mask, make_integers(1), False), "i64"), op.constant(np.int64(1)))
    picked = op.gather(hidden, op.unsqueeze(last, make_integers(1)), op.constant(np.int64(1)), 1)
    return op.squeeze(picked, make_integers(1))


def make_model(outputs: list[Any], inputs: list[Any], name: str) -> ov.Model:
    """Return a model with the outputs of `pool_states`, named `embedding` and `divisor`."""
    for output, title in zip(outputs, ("embedding", "divisor"), strict=False):
        output.output(0).set_names({title})
    return ov.Model(outputs, inputs, name)
