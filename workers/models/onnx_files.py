"""Names of the files next to an ONNX file that hold its weights, without the onnx package. Does not import OpenVINO.

The file is a protobuf message, ModelProto of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Only the fields
that lead to `external_data` are read: the rest, which is nearly all, is skipped.
"""

import mmap
import reprlib
from collections.abc import Iterator
from pathlib import Path

from workers.models.json_files import REMEDY, ModelError, summarize_error

#: Kind of the message in each field that may lead to a tensor, by the kind of message and the number of the field.
#: Tensors are initializers and attributes of nodes, also in the graphs of other attributes and in functions.
_FIELDS = {
    "ModelProto": {7: "GraphProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **{5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto"},
        **{22: "SparseTensorProto", 23: "SparseTensorProto"},
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
#: Numbers of the fields TensorProto.external_data, and of the key and value of StringStringEntryProto.
_EXTERNAL_DATA, _KEY, _VALUE = 13, 1, 2
#: Wire types of protobuf, with the sizes of those that are fixed.
_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}


def find_external_files(path: Path) -> list[Path]:
    """Return the files of weights that an ONNX file refers to.

    Raise `ModelError` if the file is damaged, or if another file is missing or not in the same folder.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            names = sorted(set(_read_locations(content)))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {summarize_error(error)}; {REMEDY}") from None
    folder = path.parent
    for name in names:
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts or "\0" in name:
            raise ModelError(f"{path}: location {reprlib.repr(name)} leads out of the model folder; {REMEDY}")
        if not (folder / inside).is_file():
            raise ModelError(f"{folder} has no {name}, which holds weights of {path.name}; download the model again")
    return [folder / name for name in names]


def _read_locations(content: mmap.mmap) -> Iterator[str]:
    for tensor in _find_tensors(content):
        for entry in _select_fields(content, *tensor, _EXTERNAL_DATA):
            texts = [
                content[start:end].decode()
                for number in (_KEY, _VALUE)
                for start, end in _select_fields(content, *entry, number)
            ]
            if texts[:1] == ["location"]:
                yield "".join(texts[1:])


def _find_tensors(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Yield where each tensor begins and ends."""
    messages = [("ModelProto", 0, len(content))]
    while messages:
        kind, start, end = messages.pop()
        if kind == "TensorProto":
            yield start, end
            continue
        for number, first, last in _read_fields(content, start, end):
            if inner := _FIELDS[kind].get(number):
                messages.append((inner, first, last))


def _select_fields(content: mmap.mmap, start: int, end: int, wanted: int) -> list[tuple[int, int]]:
    """Return where each message or text with a number begins and ends."""
    return [(first, last) for number, first, last in _read_fields(content, start, end) if number == wanted]


def _read_fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each message or text, and where it begins and ends.

    Raise `ValueError` if the bytes are no message.
    """
    while start < end:
        tag, start = _read_varint(content, start, end)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, start = _read_varint(content, start, end)
            continue
        if kind == _LENGTH:
            size, start = _read_varint(content, start, end)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise ValueError(f"unknown wire type {kind} at byte {start}")
        if size > end - start:
            raise ValueError(f"a field of {size} bytes at byte {start} does not fit")
        if kind == _LENGTH:
            yield number, start, start + size
        start += size


def _read_varint(content: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """Return a number, and where the bytes after it begin."""
    value = 0
    for place in range(start, min(start + 10, end)):
        value |= (content[place] & 0x7F) << 7 * (place - start)
        if content[place] < 0x80:
            return value, place + 1
    raise ValueError(f"a number at byte {start} does not end")
