"""Weight formats of exported models: fp32, fp16, int8 and int4.

A weight is the table of the tokens or the second operand of a matrix product. In fp16, int8 and int4 a weight becomes
a smaller constant and operations that widen the constant to float32. OpenVINO's plugins recognize these operations and
keep the smaller constant in memory. They are the ones of nncf's `compress_weights`, which optimum-cli uses:

    fp16         Constant(f16) -> Convert(f32)
    int8, int4   Constant(u8, u4) -> Convert(f16) -> Subtract(zero point) -> Multiply(scale) -> Convert(f32)

int8 has a scale and a zero point for each output channel, int4 for each group of 128 inputs of a channel. As with nncf,
the table of the tokens and the last product of an int4 model are int8. Norms, biases and positions stay float32,
and so does a weight with a value that float16 cannot hold.
"""

import shlex
from typing import Any

import msgspec
import numpy as np
import openvino as ov
import openvino.opset15 as op

from workers.models.json_files import ModelError

_FLOATS = (ov.Type.f32, ov.Type.f16, ov.Type.bf16, ov.Type.f64)


class WeightFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How weights are stored."""

    #: fp32, fp16, int8 or int4.
    name: str
    #: Whether zero points are 0 and left out.
    symmetric: bool = False
    #: Inputs of a channel that share a scale in int4; -1: all of them.
    group_size: int = 128
    #: Whether the table of the tokens and the last product are int4, too.
    all_layers: bool = False


def read_format(name: str, extra: str) -> WeightFormat:
    """Return the format of `--weight-format` and `--extra_quantization_params`.

    Raise `ModelError` for options of optimum-cli that need its calibration.
    """
    options: dict[str, Any] = {}
    words = iter(shlex.split(extra))
    for word in words:
        option, _, value = word.partition("=")
        if option == "--sym":
            options["symmetric"] = True
        elif option == "--all-layers":
            options["all_layers"] = True
        elif option == "--group-size":
            options["group_size"] = _read_group_size(value or next(words, ""))
        elif option != "--ratio" or (value or next(words, "")) not in ("1", "1.0"):
            raise ModelError(
                f"--extra_quantization_params has {word!r}, but Vecmill supports only --sym, --group-size N, "
                "--all-layers and --ratio 1.0; add --allow_optimum to export with optimum-cli"
            )
    return WeightFormat(name=name, **options)


def _read_group_size(text: str) -> int:
    if text != "-1" and not (text.isdecimal() and int(text)):
        raise ModelError(f"--extra_quantization_params has the group size {text!r}, but it must be -1 or positive")
    return int(text)


def compress_weights(model: ov.Model, wanted: WeightFormat) -> int:
    """Store a model's weights in a format. Return the number of weights.

    Raise `ModelError` if the group size does not divide a weight's rows.
    """
    weights = _find_weights(model)
    last = max((number for number, weight in enumerate(weights) if weight.is_product), default=0)
    for number, weight in enumerate(weights):
        values = weight.read()
        is_grouped = (weight.is_product and number != last) or wanted.all_layers
        if wanted.name == "fp32" or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        if wanted.name == "fp16":
            weight.replace(op.constant(values.astype(np.float16)))
        elif wanted.name == "int4" and is_grouped and weight.axis == -1:
            weight.replace(_build_grouped(values, wanted))
        else:
            weight.replace(_build_restored(values, weight.axis, 8, wanted.symmetric))
    _widen_constants(model)
    return len(weights)


class _Weight(msgspec.Struct, frozen=True):
    """A weight of a graph."""

    #: Input that the weight is connected to.
    place: Any
    is_product: bool
    #: Axis that a product sums over; the last axis of a table.
    axis: int

    def read(self) -> Any:
        """Return the values, float32."""
        return _skip_converts(self.place.get_source_output()).get_data(dtype=np.float32)

    def replace(self, node: Any) -> None:
        """Connect a node of any float type instead of the weight."""
        self.place.replace_source_output(op.convert(node, "f32").output(0))


def _find_weights(model: ov.Model) -> list[_Weight]:
    """Return the weights in the order of execution."""
    weights = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            weights.append(_Weight(node.input(1), True, -1 if node.get_attributes()["transpose_b"] else -2))
        elif node.get_type_name() == "Gather" and _selects_tokens(_skip_converts(node.input_value(1))):
            weights.append(_Weight(node.input(0), False, -1))
    return [weight for weight in weights if _is_float_constant(_skip_converts(weight.place.get_source_output()))]


def _selects_tokens(node: Any) -> bool:
    """Return whether a node is the input with the ids, and not that with the positions of `PackedLayout`."""
    is_input = node.get_type_name() == "Parameter"
    return bool(is_input and node.get_friendly_name() != "positions")


def _skip_converts(output: Any) -> Any:
    """Return the node of an output, or the one before it if it converts the type."""
    node = output.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node


def _is_float_constant(node: Any) -> bool:
    return node.get_type_name() == "Constant" and node.get_element_type() in _FLOATS


def _build_grouped(values: Any, wanted: WeightFormat) -> Any:
    """Return a weight in int4. Raise `ModelError` if the group size does not divide the rows."""
    size = values.shape[-1] if wanted.group_size == -1 else wanted.group_size
    if values.shape[-1] % size:
        raise ModelError(
            f"int4 needs rows that are a multiple of the group size {size}, but a weight has rows of "
            f'{values.shape[-1]}; set --extra_quantization_params "--group-size N" with a divisor, or -1'
        )
    restored = _build_restored(values.reshape(*values.shape[:-1], -1, size), -1, 4, wanted.symmetric)
    return op.reshape(restored, op.constant(np.array(values.shape, np.int64)), False)


def _build_restored(values: Any, axis: int, bits: int, symmetric: bool) -> Any:
    """Return float32 values as integers of 4 or 8 bits, with the operations that restore them in float16.

    Values along the axis share a scale and a zero point.
    """
    lowest, highest = values.min(axis, keepdims=True), values.max(axis, keepdims=True)
    if symmetric:
        # The larger side maps to the lowest integer, because there is one integer more on this side.
        first, last, kind = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, "i"
        span = np.where(-lowest >= highest, lowest, highest) / first
    else:
        first, last, kind = 0, 2**bits - 1, "u"
        lowest, highest = np.minimum(lowest, 0), np.maximum(highest, 0)
        span = (highest - lowest) / last
    scale = span.astype(np.float16)
    # Values so small that float16 has no scale for them become 0.
    divisor = np.where(scale == 0, np.float32(np.inf), scale.astype(np.float32))
    zero = np.zeros_like(lowest) if symmetric else np.clip(np.round(-lowest / divisor), first, last)
    numbers = np.clip(np.round(values / divisor) + zero, first, last)
    restored = op.convert(_make_integers(numbers, f"{kind}{bits}"), "f16")
    if not symmetric:
        restored = op.subtract(restored, op.convert(_make_integers(zero, f"{kind}{bits}"), "f16"))
    return op.multiply(restored, op.constant(scale))


def _make_integers(numbers: Any, kind: str) -> Any:
    """Return a constant of integers of 4 or 8 bits. Of two integers in a byte, the first is in the lower half."""
    whole = numbers.astype(np.int8 if kind.startswith("i") else np.uint8)
    if not kind.endswith("4"):
        return op.constant(whole)
    pairs = np.append(whole, np.zeros(whole.size % 2, whole.dtype)).view(np.uint8).reshape(-1, 2)
    tensor = ov.Tensor(getattr(ov.Type, kind), ov.Shape(whole.shape))
    tensor.data[...] = ((pairs[:, 0] & 15) | (pairs[:, 1] << 4)).reshape(tensor.data.shape)
    return ov.op.Constant(tensor)


def _widen_constants(model: ov.Model) -> None:
    """Store bfloat16 as float32, because not every plugin reads bfloat16."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convert" and node.get_element_type() == ov.Type.f32:
            constant = node.input_value(0).get_node()
            if constant.get_type_name() == "Constant" and constant.get_element_type() == ov.Type.bf16:
                widened = op.constant(constant.get_data(dtype=np.float32))
                node.output(0).replace(widened.output(0))
