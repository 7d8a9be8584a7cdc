"""Types of message fields, and packed columns: one number for each job of a list, as bytes. Pure.

32 numbers take 0.6 µs to encode as a packed column, and 2.4 µs as a list of structs.
"""

import array
import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec

from broker.wire.errors import RemoteProtocolError

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("Vecmill needs a little-endian machine, because its packed columns are little-endian")

U8 = Annotated[int, msgspec.Meta(ge=0, lt=2**8)]
U32 = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
U63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
#: Longest name, and longest text such as a reason or a prompt, in characters.
MAX_NAME_LENGTH, MAX_TEXT_LENGTH = 512, 4096
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME_LENGTH)]
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_LENGTH)]
Uuid = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
#: Packed columns of up to 65,536 unsigned numbers, little-endian.
U8Column = Annotated[bytes, msgspec.Meta(max_length=65536)]
U32Column = Annotated[bytes, msgspec.Meta(max_length=4 * 65536)]
U64Column = Annotated[bytes, msgspec.Meta(max_length=8 * 65536)]

Frame = bytes | memoryview


def pack_u32(values: Iterable[int]) -> bytes:
    """Return a packed column of numbers below 2**32."""
    return array.array("I", values).tobytes()


def pack_u64(values: Iterable[int]) -> bytes:
    """Return a packed column of numbers below 2**64."""
    return array.array("Q", values).tobytes()


def unpack_u32(column: bytes) -> "memoryview[int]":
    """Return a packed column as a sequence of numbers, without a copy. Raise `RemoteProtocolError` if malformed."""
    return _cast_column(column, "I", 4)


def unpack_u64(column: bytes) -> "memoryview[int]":
    """Return a packed column of 64-bit numbers like `unpack_u32`."""
    return _cast_column(column, "Q", 8)


def _cast_column(column: bytes, code: Any, size: int) -> "memoryview[int]":
    if len(column) % size:
        raise RemoteProtocolError(f"a column of {len(column)} bytes does not hold {size}-byte numbers")
    return memoryview(column).cast(code)


def split_frame(frame: Frame, lengths: Sequence[int]) -> list[memoryview]:
    """Return the parts of a frame that holds them one after another; the `lengths` in bytes add up to the frame's."""
    view = memoryview(frame)
    ends = list(itertools.accumulate(lengths))
    return [view[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def require_same_length(rows: int, *columns: Sequence[object]) -> None:
    """Raise `RemoteProtocolError` if a column does not have one entry for each row."""
    if any(len(column) != rows for column in columns):
        raise RemoteProtocolError("columns of different lengths")


def sum_row_sizes(rows: int, dimension: int, sizes: bytes) -> int:
    """Return the bytes of a frame of rows: `sizes` if given, else `dimension` float32 values a row.

    Raise `RemoteProtocolError` if `sizes` has another number of rows.
    """
    if not sizes:
        return rows * dimension * 4
    row_sizes = unpack_u32(sizes)
    require_same_length(rows, row_sizes)
    return sum(row_sizes)
