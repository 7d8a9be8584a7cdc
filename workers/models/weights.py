"""Weights of a model: tensors of safetensors files by name, mapped into memory and not copied.

A file starts with the length of its header, 8 bytes, and the header, a JSON object with the type, the shape and the
place of each tensor (https://huggingface.co/docs/safetensors). Large models are split into several files, which
`model.safetensors.index.json` names.
"""

import math
import mmap
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import openvino as ov
import openvino.opset15 as op
from numpy.typing import NDArray

from workers.models.json_files import EXPORT, REMEDY, ModelError, summarize_error
from workers.models.weight_files import FILE, INDEX, find_weight_files

#: Largest header in bytes, as in the safetensors library. A header has about 100 bytes for each tensor.
_MAX_HEADER_BYTES = 100_000_000
#: Bytes of a value. The first four types can be weights.
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "BOOL": 1, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E5M2": 1} | {
    "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8
}  # fmt: skip
#: numpy's types of weights. numpy has no bfloat16, which is the upper half of a float32.
_STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F64": np.dtype("<f8")}
#: Exponents of infinity and NaN in formats of 16 bits.
_EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80}
#: The layer or the embeddings to which a tensor belongs.
_PART = re.compile(r"(.*?\.)??(embeddings\.|\w+\.\d+\.)")
#: Tensors of rotary positions, which some files have although config.json determines them.
_COMPUTED = ("inv_freq", "rotary_emb.scale")
#: Values that are checked at once, so that a check needs little memory.
_CHECKED_AT_ONCE = 1 << 22

_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Entry(msgspec.Struct, frozen=True):
    """A tensor in the header of a file."""

    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]


class _Stored(msgspec.Struct, frozen=True):
    """A tensor in a file that is mapped into memory."""

    path: Path
    kind: str
    shape: tuple[int, ...]
    #: Bytes of the tensor, uint8.
    raw: Any


class Weights:
    """Tensors of a model by name.

    Constants refer to the mapped files: keep this object until the model is saved, or no longer used.
    """

    def __init__(self, folder: Path) -> None:
        """Map the weights of a folder. Raise `ModelError` if a file is missing or damaged."""
        self.path = folder / FILE
        self._prefix = ""
        self._tensors: dict[str, _Stored] = {}
        self._used: set[str] = set()
        files = find_weight_files(folder)
        if len(files) > 1 or files[0] != self.path:
            self.path = folder / INDEX
        for path in files:
            tensors = _map_file(path)
            if twice := sorted(self._tensors.keys() & tensors.keys()):
                first = self._tensors[twice[0]].path.name
                raise ModelError(f"{path} has {_shorten(twice[0])}, which {first} has, too; {REMEDY}")
            self._tensors |= tensors

    def __contains__(self, name: str) -> bool:
        """Return whether a tensor exists."""
        return self._prefix + name in self._tensors

    def find_prefix(self, name: str) -> None:
        """Use the prefix that `name` has in the files for all tensors, such as `bert.` or `0.auto_model.`.

        Raise `ModelError` if no tensor has the name, or if tensors with several prefixes have it.
        """
        prefixes = {found[: -len(name)] for found in self._tensors if found.endswith(name)}
        prefixes = {prefix for prefix in prefixes if not prefix or prefix.endswith(".")}
        if len(prefixes) > 1:
            found = " and ".join(_shorten(prefix + name) for prefix in sorted(prefixes)[:2])
            raise ModelError(f"{self.path} has {found}, so it holds several models, which Vecmill does not support")
        self._prefix = prefixes.pop() if prefixes else ""
        self._get(name)

    def get_tensor(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Return a tensor as float32. Raise `ModelError` if it is missing, not finite or has another shape."""
        stored = self._get(name, shape)
        if stored.kind == "BF16":
            return (_view(stored).astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            values = _view(stored).astype(np.float32)
        if stored.kind == "F64" and not np.isfinite(values).all():
            raise self._refuse_values(stored, name)
        return values

    def get_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor. Raise `ModelError` if the tensor is missing."""
        return self._get(name).shape

    def get_integers(self, name: str) -> NDArray[np.int64]:
        """Return a list of whole numbers. Raise `ModelError` if there is none with this name."""
        stored = self._tensors.get(self._prefix + name)
        kinds = {"I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8"}
        if stored is None or stored.kind not in kinds or len(stored.shape) != 1 or not stored.shape[0]:
            raise ModelError(f"{self.path}: {self._prefix}{name} is not a list of whole numbers; {REMEDY}")
        return stored.raw.view(kinds[stored.kind]).astype(np.int64)  # type: ignore[no-any-return]

    def get_constant(self, name: str, *shape: int, part: tuple[int, int] = (0, 1)) -> Any:
        """Return a tensor as a float32 node that keeps half-precision values as they are stored.

        `part` (n, count) selects the nth of `count` equal blocks of rows, for tensors that hold several matrices.
        Raise `ModelError` as `get_tensor` does.
        """
        stored = self._get(name, shape)
        if stored.kind == "F64":
            return op.constant(_select(self.get_tensor(name, *shape), part))
        values = _select(_view(stored), part)
        kind = {"F32": ov.Type.f32, "F16": ov.Type.f16, "BF16": ov.Type.bf16}[stored.kind]
        # A header of any length may come before the values, but OpenVINO needs aligned values.
        aligned = np.require(values, requirements=["C", "A"])
        constant = ov.op.Constant(ov.Tensor(aligned, list(values.shape), kind), aligned is values)
        return constant if kind == ov.Type.f32 else op.convert(constant, "f32")

    def check_use(self) -> None:
        """Raise `ModelError` if a part of the model has a tensor that was not used, so that vectors would be wrong.

        Parts are the layers that were built, and the embeddings. Others, such as a pooler, may be unused.
        """
        parts = {_PART.match(name) for name in self._used}
        used = {part[0] for part in parts if part}
        for name in self.list_unused():
            part = _PART.match(name)
            if part is not None and part[0] in used:
                raise ModelError(
                    f"{self._tensors[name].path} has {_shorten(name)}, which other models of this model_type do not "
                    f"have, so that vectors would be wrong; {EXPORT}"
                )

    def list_unused(self) -> list[str]:
        """Return the names of floating-point tensors that were not used and cannot be computed."""
        return [
            name
            for name, stored in self._tensors.items()
            if name not in self._used and stored.kind in _STORED and not name.endswith(_COMPUTED)
        ]

    def _get(self, name: str, shape: tuple[int, ...] | None = None) -> _Stored:
        stored = self._tensors.get(self._prefix + name)
        if stored is None:
            raise ModelError(f"{self.path} has no tensor {self._prefix}{name}, which config.json requires; {REMEDY}")
        if stored.kind not in _STORED:
            raise ModelError(
                f"{stored.path}: {self._prefix}{name} has the type {_shorten(stored.kind)}, but Vecmill reads only "
                f"{', '.join(_STORED)}"
            )
        if shape is not None and stored.shape != shape:
            raise ModelError(
                f"{stored.path}: {self._prefix}{name} has the shape {reprlib.repr(stored.shape)}, but config.json "
                f"requires {shape}; {REMEDY}"
            )
        if shape is not None and not _is_finite(stored):
            raise self._refuse_values(stored, name)
        self._used.add(self._prefix + name)
        return stored

    def _refuse_values(self, stored: _Stored, name: str) -> ModelError:
        return ModelError(
            f"{stored.path}: {self._prefix}{name} has values that are not finite float32 numbers; {REMEDY}"
        )


def _map_file(path: Path) -> dict[str, _Stored]:
    """Return the tensors of a file. Raise `ModelError` if the file is damaged."""
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start, entries = _read_header(content)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {summarize_error(error)}; {REMEDY}") from None
    data = np.frombuffer(content, np.uint8)[start:]
    return {
        _rename(name): _Stored(path, entry.dtype, entry.shape, data[slice(*entry.data_offsets)])
        for name, entry in entries.items()
    }


def _read_header(content: mmap.mmap) -> tuple[int, dict[str, _Entry]]:
    """Return where the data start, and the tensors. Raise `ValueError` if tensors overlap or leave gaps."""
    if len(content) < 8:
        raise ValueError("the file has less than 8 bytes")
    length = int.from_bytes(content[:8], "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"the header should have {length} bytes, but at most {_MAX_HEADER_BYTES} are allowed")
    if length > len(content) - 8:
        raise ValueError(f"the header should have {length} bytes, but the file has only {len(content)}")
    parts = msgspec.json.decode(content[8 : 8 + length], type=dict[str, msgspec.Raw])
    entries = {name: msgspec.json.decode(part, type=_Entry) for name, part in parts.items() if name != "__metadata__"}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, last = entry.data_offsets
        if begin != end or last < begin:
            raise ValueError(f"{_shorten(name)} is at bytes {begin} to {last}, but the tensor before ends at {end}")
        size = _ITEM_BYTES.get(entry.dtype)
        if size is not None and math.prod(entry.shape) * size != last - begin:
            raise ValueError(f"{_shorten(name)} has {last - begin} bytes, which do not fit its type and shape")
        end = last
    if end != len(content) - 8 - length:
        raise ValueError(f"the tensors should have {end} bytes, but the file has {len(content) - 8 - length}")
    return 8 + length, entries


def _rename(name: str) -> str:
    """Return the present name of a tensor: BERT's first files have the names that TensorFlow gives to norms."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _shorten(name: str) -> str:
    """Return a text of a header as part of a sentence."""
    name = name if name.isprintable() else repr(name)
    return name if len(name) <= 80 else f"{name[:80]}…"


def _view(stored: _Stored) -> NDArray[Any]:
    """Return the values of a tensor as they are stored, bfloat16 as uint16."""
    return stored.raw.view(_STORED[stored.kind]).reshape(stored.shape)  # type: ignore[no-any-return]


def _select(values: NDArray[Any], part: tuple[int, int]) -> NDArray[Any]:
    rows = len(values) // part[1]
    return values[part[0] * rows : (part[0] + 1) * rows]


def _is_finite(stored: _Stored) -> bool:
    """Return whether a tensor has no infinity and no NaN."""
    return all(_is_block_finite(block, stored.kind) for block in _split(stored))


def _split(stored: _Stored) -> Iterator[NDArray[Any]]:
    values = stored.raw.view(_STORED[stored.kind])
    for start in range(0, len(values), _CHECKED_AT_ONCE):
        yield values[start : start + _CHECKED_AT_ONCE]


def _is_block_finite(block: NDArray[Any], kind: str) -> bool:
    if kind in _EXPONENT:
        bits, exponent = block.view(np.uint16), np.uint16(_EXPONENT[kind])
        return not ((bits & exponent) == exponent).any()
    return bool(np.isfinite(block).all())
