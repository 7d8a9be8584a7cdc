"""Graphs as optimum-intel and others export them, made of a tiny BERT model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op

from workers.models import encoder
from workers.models.folder import read_folder
from workers.models.layout import PaddedLayout, make_integer, make_integers
from workers.models.weights import Weights

#: Names of the inputs, and of outputs with their nodes.
Outputs = dict[str, Any]


def build_graph(
    source: Path,
    choose_outputs: Callable[[Any, PaddedLayout], Outputs] = lambda states, _: {"last_hidden_state": states},
    extra_inputs: Sequence[Any] = (),
) -> ov.Model:
    """Return the graph of a Hugging Face folder with the outputs that a function makes of the hidden states."""
    folder = read_folder(source)
    layout = PaddedLayout()
    states = encoder.build_states(folder, Weights(folder.base), layout)
    return make_graph(choose_outputs(states, layout), [*layout.inputs, *extra_inputs])


def make_graph(outputs: Outputs, inputs: Sequence[Any]) -> ov.Model:
    """Return a graph with named outputs. The names of the inputs are those of their nodes."""
    for name, node in outputs.items():
        node.output(0).set_names({name})
    for node in inputs:
        node.output(0).set_names({node.get_friendly_name()})
    return ov.Model(list(outputs.values()), list(inputs), "exported")


def make_input(name: str, shape: Sequence[int] = (-1, -1), kind: Any = np.int64) -> Any:
    return op.parameter(list(shape), kind, name=name)


def add_sentence(states: Any, layout: PaddedLayout) -> Outputs:
    """Return the outputs of an export by sentence-transformers, whose pooling is the sum of the states."""
    masked = op.multiply(states, op.unsqueeze(layout.mask, make_integers(2)))
    return {"token_embeddings": states, "sentence_embedding": op.reduce_sum(masked, make_integers(1), False)}


def look_up(rows: np.ndarray[Any, Any], ids: Any) -> Any:
    """Return the rows that ids select from a table."""
    return op.gather(op.constant(rows.astype(np.float32)), ids, make_integer(0))


def save_graph(graph: ov.Model, path: Path) -> Path:
    """Write an IR, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(graph, path, compress_to_fp16=False)
    return path


def encode_onnx(table: np.ndarray[Any, Any], location: str = "", output: str = "last_hidden_state") -> bytes:
    """Return an ONNX file that looks ids up in a table, which is in the file or at a location next to it."""
    dims = b"".join(encode_field(1, size) for size in table.shape)
    tensor = dims + encode_field(2, 1) + encode_field(8, b"table")
    if location:
        entry = encode_field(1, b"location") + encode_field(2, location.encode())
        tensor += encode_field(13, entry) + encode_field(14, 1)
    else:
        tensor += encode_field(9, table.astype("<f4").tobytes())
    node = (
        encode_field(1, b"table")
        + encode_field(1, b"input_ids")
        + encode_field(2, output.encode())
        + encode_field(4, b"Gather")
    )
    ids = _encode_value("input_ids", 7, ["batch", "length"])
    mask = _encode_value("attention_mask", 7, ["batch", "length"])
    states = _encode_value(output, 1, ["batch", "length", table.shape[1]])
    graph = (
        encode_field(1, node)
        + encode_field(2, b"g")
        + encode_field(5, tensor)
        + encode_field(11, ids)
        + encode_field(11, mask)
    )
    return (
        encode_field(1, 8)
        + encode_field(7, graph + encode_field(12, states))
        + encode_field(8, encode_field(1, b"") + encode_field(2, 17))
    )


def _encode_value(name: str, kind: int, shape: Sequence[str | int]) -> bytes:
    sizes = (encode_field(1, size) if isinstance(size, int) else encode_field(2, size.encode()) for size in shape)
    tensor = encode_field(1, kind) + encode_field(2, b"".join(encode_field(1, size) for size in sizes))
    return encode_field(1, name.encode()) + encode_field(2, encode_field(1, tensor))


def encode_field(number: int, value: bytes | int) -> bytes:
    """Return a field of a protobuf message."""
    if isinstance(value, int):
        return _encode_varint(number << 3) + _encode_varint(value)
    return _encode_varint(number << 3 | 2) + _encode_varint(len(value)) + value


def _encode_varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
