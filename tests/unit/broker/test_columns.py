"""Packed columns of numbers, frames of several parts, and checks of their lengths."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire.columns import (
    pack_u32,
    pack_u64,
    require_same_length,
    split_frame,
    sum_row_sizes,
    unpack_u32,
    unpack_u64,
)
from broker.wire.errors import RemoteProtocolError


@given(st.lists(st.integers(0, 2**32 - 1)), st.lists(st.integers(0, 2**64 - 1)))
def test_unpacked_column_equals_packed_numbers(short: list[int], long: list[int]) -> None:
    assert list(unpack_u32(pack_u32(short))) == short
    assert list(unpack_u64(pack_u64(long))) == long


def test_columns_are_little_endian() -> None:
    assert (pack_u32([1, 256]), pack_u64([1])) == (b"\1\0\0\0\0\1\0\0", b"\1" + bytes(7))


@pytest.mark.parametrize(("unpack", "size"), [(unpack_u32, 4), (unpack_u64, 8)])
def test_column_of_partial_number_raises(unpack: Callable[[bytes], object], size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"a column of {size + 1} bytes does not hold {size}-byte numbers"):
        unpack(bytes(size + 1))


@given(st.lists(st.binary(max_size=20)))
def test_split_frame_equals_joined_parts(parts: list[bytes]) -> None:
    assert [bytes(part) for part in split_frame(b"".join(parts), list(map(len, parts)))] == parts


def test_columns_of_different_lengths_raise() -> None:
    require_same_length(2, [1, 2], b"ab")
    for columns in ([[1]], [[1, 2], b"abc"]):
        with pytest.raises(RemoteProtocolError, match="columns of different lengths"):
            require_same_length(2, *columns)


def test_row_sizes_default_to_dimension() -> None:
    assert sum_row_sizes(3, 4, b"") == 48
    assert sum_row_sizes(2, 4, pack_u32([8, 12])) == 20
    with pytest.raises(RemoteProtocolError):
        sum_row_sizes(3, 4, pack_u32([8, 12]))
