"""Cache of results, and keys of inputs."""

import struct

import pytest

from broker.core.input_keys import MAX_INPUT_BYTES, InputKeys
from broker.core.result_cache import ENTRY_BYTES, ResultCache, Row, is_surely_finite
from broker.wire.protocol import Kind, ModelKey, Option

VECTOR = struct.pack("<4f", 0.5, -0.25, 1e38, 0.0)
SIZE = ENTRY_BYTES + len(VECTOR)
MODEL = ModelKey("m", "r")


def make_row(tokens: int = 3) -> Row:
    return Row(VECTOR, tokens, 0)


def test_rows_are_found_by_key() -> None:
    cache = ResultCache(10 * SIZE)
    assert cache.add_row(b"a", make_row(1)) == cache.add_row(b"b", make_row(2)) == 0
    assert cache.find_row(b"a") == make_row(1)
    assert cache.find_row(b"b") == make_row(2)
    assert cache.find_row(b"c") is None
    assert (len(cache), cache.bytes) == (2, 2 * SIZE)


def test_least_recently_used_row_leaves_first() -> None:
    cache = ResultCache(2 * SIZE)
    cache.add_row(b"a", make_row())
    cache.add_row(b"b", make_row())
    cache.find_row(b"a")
    assert cache.add_row(b"c", make_row()) == 1
    assert cache.find_row(b"b") is None
    assert cache.find_row(b"a")
    assert cache.bytes == cache.count_bytes() == 2 * SIZE


def test_replaced_row_is_counted_once() -> None:
    cache = ResultCache(2 * SIZE)
    for tokens in (1, 2, 3):
        assert cache.add_row(b"a", make_row(tokens)) == 0
    assert cache.find_row(b"a") == make_row(3)
    assert cache.bytes == SIZE


def test_row_larger_than_the_cache_evicts_no_other() -> None:
    cache = ResultCache(SIZE)
    cache.add_row(b"a", make_row())
    assert cache.add_row(b"b", Row(VECTOR + VECTOR, 3, 0)) == 0
    assert cache.find_row(b"a")
    assert cache.find_row(b"b") is None


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_vector_that_is_not_finite_is_not_stored(value: float) -> None:
    cache = ResultCache(10 * SIZE)
    cache.add_row(b"a", Row(struct.pack("<3f", 1.0, value, 2.0), 3, 0))
    assert len(cache) == 0


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1.0, 1.7e38, -1.7e38])
def test_finite_vector_is_recognized(value: float) -> None:
    assert is_surely_finite(struct.pack("<3f", 1.0, value, 2.0))


def test_keys_differ_by_whatever_changes_the_vector() -> None:
    def compute(payload: bytes = b"text", **others: object) -> bytes:
        parts: dict[str, object] = {"model": MODEL, "kind": Kind.TEXT, "options": 0, "scope": "one", **others}
        return InputKeys(**parts, looks_up=True).compute(payload)  # type: ignore[arg-type]

    keys = {
        compute(),
        compute(b"text "),
        compute(model=ModelKey("m", "s")),
        compute(model=ModelKey("mr", "")),
        compute(kind=Kind.TOKENS),
        compute(options=Option.TRUNCATE_END),
        compute(options=Option.TRUNCATE_START),
        compute(options=Option.RAW),
        compute(options=Option.PROMPT),
        compute(scope="two"),
        compute(scope=b"one"),
        compute(b"etext", scope="on"),
    }
    assert len(keys) == 12
    assert compute() == compute() in keys


def test_huge_input_has_no_key() -> None:
    keys = InputKeys(MODEL, Kind.TEXT, 0, "", looks_up=True)
    assert keys.compute(bytes(MAX_INPUT_BYTES))
    assert keys.compute(bytes(MAX_INPUT_BYTES + 1)) == b""
