"""Models with fixed shapes, for devices that accept no others: one text an inference, padded to one of a few lengths.

`FixedModel` and `FixedRequest` have the parts of `ov.CompiledModel` and `ov.InferRequest` that `Engine` uses.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino as ov

from workers.models.modules import PROMPT_TOKENS

#: Lengths in tokens for which a model is compiled, besides its longest input. Each takes memory for the weights.
LENGTHS = (32, 128, 512, 2048)
#: Inputs of a graph whose tokens lie end to end.
_PACKED = ("ids", "positions", "places", "origins", "mask")


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
        graph = core.read_model(path)
        for length in lengths:
            model = graph.clone()
            model.reshape({port.get_any_name(): _find_shape(port, length) for port in model.inputs})
            self.compiled[length] = core.compile_model(model, device, dict(properties))
        first = self.compiled[lengths[0]]
        self.outputs, self.get_property = first.outputs, first.get_property
        self.packs = any(port.get_any_name() in _PACKED for port in first.inputs)
        #: Inputs besides those of `_PACKED`, of which requests get the padded form.
        self.inputs = [port for port in first.inputs if port.get_any_name() not in _PACKED]

    def create_infer_request(self) -> "FixedRequest":
        """Return a request."""
        return FixedRequest(self)


class FixedRequest:
    """One request a length, of which each text uses that of the smallest length into which it fits."""

    def __init__(self, model: FixedModel) -> None:
        self._pad_id, self._packs = model.pad_id, model.packs
        self._requests = {length: compiled.create_infer_request() for length, compiled in model.compiled.items()}
        self._outputs: list[Any] = []

    def infer(self, values: Mapping[str, Any], share_inputs: bool = False) -> None:
        """Run texts, padded to a common length, one after another. `share_inputs` has no effect."""
        rows = []
        for row, tokens in enumerate(values["attention_mask"].sum(axis=1)):
            length = next(length for length in self._requests if length >= tokens)
            request = self._requests[length]
            inputs = {name: self._resize(name, value[row], length) for name, value in values.items()}
            request.infer(_pack_text(inputs) if self._packs else inputs)
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


def _find_shape(port: Any, length: int) -> list[int]:
    """Return the shape of an input for one text."""
    name, rank = port.get_any_name(), len(port.partial_shape)
    return [1, length] if rank == 2 else [1] if name == PROMPT_TOKENS else [length]


def _pack_text(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of one padded text for a graph whose tokens lie end to end, of which padding is masked."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    places = np.arange(ids.size, dtype=np.int32)
    values = ids[0].astype(np.int32), places, places[None], places, mask.astype(np.float32)
    others = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    return others | dict(zip(_PACKED, values, strict=True))
