"""Models with fixed shapes, for devices that accept no others: one text an inference, padded to one of a few lengths.

`FixedModel` and `FixedRequest` have the parts of `ov.CompiledModel` and `ov.InferRequest` that `Engine` uses.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino as ov

#: Lengths in tokens for which a model is compiled, besides its longest input. Each takes memory for the weights.
LENGTHS = (32, 128, 512, 2048)


def list_lengths(max_tokens: int) -> list[int]:
    """Return the lengths for which a model is compiled, the shortest first. Pure."""
    return [*(length for length in LENGTHS if length < max_tokens), max_tokens]


class Output(NamedTuple):
    """An output of all texts of an inference."""

    data: Any


class FixedModel:
    """A model, compiled once for each length."""

    def __init__(
        self,
        core: ov.Core,
        path: Path,
        device: str,
        properties: Mapping[str, Any],
        lengths: Sequence[int],
        pad_id: int,
    ) -> None:
        """Compile the model. Raise `RuntimeError` if the device cannot run it in one of the shapes."""
        self.pad_id = pad_id
        self.compiled: dict[int, ov.CompiledModel] = {}
        for length in lengths:
            model = core.read_model(path)
            model.reshape({port.get_any_name(): [1, length][: len(port.partial_shape)] for port in model.inputs})
            self.compiled[length] = core.compile_model(model, device, dict(properties))
        first = self.compiled[lengths[0]]
        self.inputs, self.outputs, self.get_property = first.inputs, first.outputs, first.get_property

    def create_infer_request(self) -> "FixedRequest":
        """Return a request."""
        return FixedRequest(self)


class FixedRequest:
    """One request a length, of which each text uses that of the smallest length into which it fits."""

    def __init__(self, model: FixedModel) -> None:
        self._pad_id = model.pad_id
        self._requests = {length: compiled.create_infer_request() for length, compiled in model.compiled.items()}
        self._outputs: list[Any] = []

    def infer(self, values: Mapping[str, Any], share_inputs: bool = False) -> None:
        """Run texts, padded to a common length, one after another. `share_inputs` has no effect."""
        rows = []
        for row, tokens in enumerate(values["attention_mask"].sum(axis=1)):
            length = next(length for length in self._requests if length >= tokens)
            request = self._requests[length]
            request.infer({name: self._resize(name, value[row], length) for name, value in values.items()})
            rows.append([request.get_output_tensor(number).data.copy() for number in range(len(request.results))])
        self._outputs = [np.concatenate(parts) for parts in zip(*rows, strict=True)]

    def get_output_tensor(self, number: int) -> Output:
        """Return an output of the last inference, float32 `[texts, size]`."""
        return Output(self._outputs[number])

    def _resize(self, name: str, value: Any, length: int) -> Any:
        """Return the row of a text, padded to a length, or the number of the text, as a batch of one."""
        if value.ndim == 0:
            return value[None]
        resized = np.full((1, length), self._pad_id if name == "input_ids" else 0, value.dtype)
        resized[0, : len(value)] = value[:length]
        return resized
