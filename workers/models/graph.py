"""Pieces of OpenVINO graphs that model families share: constants, layers, pooling, normalisation."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op

from workers.models.folder import ModelError, ModelFolder

#: torch.nn.functional.normalize's and sentence-transformers' guards against division by zero.
NORMALIZE_EPSILON = 1e-12
MEAN_EPSILON = 1e-9

#: By the name in config.json. "gelu" is the exact one; the others are approximations by tanh.
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: op.gelu(x, "erf"),
    "gelu_new": lambda x: op.gelu(x, "tanh"),
    "gelu_pytorch_tanh": lambda x: op.gelu(x, "tanh"),
    "relu": op.relu,
}


class Weights:
    """Tensors by name, as float32, each checked for its shape."""

    def __init__(self, tensors: Mapping[str, Any], prefix: str) -> None:
        self._tensors = tensors
        self._prefix = prefix

    def __call__(self, name: str, *shape: int) -> Any:
        """The tensor; ModelError when it is missing or has another shape."""
        tensor = self._tensors.get(self._prefix + name)
        if tensor is None:
            raise ModelError(f"model.safetensors has no tensor {self._prefix + name}")
        if tensor.shape != shape:
            raise ModelError(f"{self._prefix + name} has the shape {tensor.shape}, but config.json asks for {shape}")
        return tensor.astype(np.float32, copy=False)


def integers(*values: int) -> Any:
    """A constant of 64-bit integers."""
    return op.constant(np.array(values, np.int64))


def scalar(value: float) -> Any:
    """A float32 constant."""
    return op.constant(np.float32(value))


def linear(x: Any, weight: Any, bias: Any) -> Any:
    """x·Wᵀ + b."""
    return op.add(op.matmul(x, op.constant(weight), False, True), op.constant(bias.reshape(1, 1, -1)))


def layer_norm(x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """Normalisation over the last axis, scaled and shifted."""
    normal = op.mvn(x, integers(-1), True, epsilon, "INSIDE_SQRT")
    return op.add(op.multiply(normal, op.constant(weight.reshape(1, 1, -1))), op.constant(bias.reshape(1, 1, -1)))


def pool(hidden: Any, mask: Any, folder: ModelFolder) -> list[Any]:
    """Sentence embeddings [batch, size] of hidden states [batch, length, size]; mask float32 [batch, length], 1 for
    tokens that count, which come before the padding. If they are normalised, also what they were divided by
    [batch, 1]."""
    vectors = {"CLS": _first, "MEAN": _mean, "LAST": _last}[folder.pooling](hidden, mask)
    if not folder.normalize:
        return [vectors]
    length = op.sqrt(op.reduce_sum(op.multiply(vectors, vectors), integers(-1), True))
    divisor = op.maximum(length, scalar(NORMALIZE_EPSILON))
    return [op.divide(vectors, divisor), divisor]


def _first(hidden: Any, _: Any) -> Any:
    return op.gather(hidden, op.constant(np.int64(0)), op.constant(np.int64(1)))


def _mean(hidden: Any, mask: Any) -> Any:
    total = op.reduce_sum(op.multiply(hidden, op.unsqueeze(mask, integers(2))), integers(1), False)
    return op.divide(total, op.maximum(op.reduce_sum(mask, integers(1), True), scalar(MEAN_EPSILON)))


def _last(hidden: Any, mask: Any) -> Any:
    last = op.subtract(op.convert(op.reduce_sum(mask, integers(1), False), "i64"), op.constant(np.int64(1)))
    picked = op.gather(hidden, op.unsqueeze(last, integers(1)), op.constant(np.int64(1)), 1)
    return op.squeeze(picked, integers(1))


def model(outputs: list[Any], inputs: list[Any], name: str) -> ov.Model:
    """The graph with what `pool` gives as its outputs."""
    for output, title in zip(outputs, ("embedding", "divisor"), strict=False):
        output.output(0).set_names({title})
    return ov.Model(outputs, inputs, name)
