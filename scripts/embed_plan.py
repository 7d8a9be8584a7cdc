"""What a run of `scripts/embed` computes: its manifest, its requests, and the records of its journals. Pure.

A part has a fixed range of rows. The rows of a part that is not complete are in its journal: records of the rows that
were answered, each with its length and checksum, so that a torn record is recognized.
"""

import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec

#: Bytes of a part's float32 vectors, and most rows of a part.
PART_BYTES, MAX_PART_ROWS = 32 << 20, 100_000
#: Most bytes of the texts of a request.
MAX_REQUEST_BYTES = 1_000_000
#: Length and CRC-32 of a record's payload.
_HEADER = struct.Struct("<II")


class Source(msgspec.Struct, frozen=True, array_like=True):
    """Path, bytes, and time of modification in nanoseconds of an input."""

    path: str
    size_bytes: int
    modified_ns: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows and vectors of an output depend on."""

    version: int = 1
    inputs: list[Source]
    options: dict[str, Any]
    model: str
    revision: str
    #: Values in a vector, before `dtype` changes them.
    dimension: int
    part_rows: int
    #: Rows of all inputs, once all are written.
    rows: int | None = None
    #: Digest of each part, once all are written; a single file has no parts to compare with.
    digests: list[str] = []


class RowError(msgspec.Struct, frozen=True, array_like=True):
    """Why a row has no vector."""

    code: str
    message: str


class Answer(msgspec.Struct, array_like=True):
    """Vectors of rows of a part, numbered from the part's first row."""

    rows: list[int]
    #: Float32, little-endian, in the order of `rows`; zeros for a row with an error.
    vectors: bytes
    tokens: int = 0
    truncated: int = 0
    errors: dict[int, RowError] = {}


_encode, _decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Answer).decode


def choose_part_rows(dimension: int) -> int:
    """Return the rows of a part, by the dimension of its vectors."""
    rows = PART_BYTES // (4 * dimension)
    return min(MAX_PART_ROWS, max(1000, rows - rows % 1000))


def find_difference(old: Manifest, new: Manifest) -> str:
    """Return in which way a run differs from the one that began the output, or an empty text."""
    if old.version != new.version:
        return "the output is of another version of scripts/embed"
    if old.model != new.model:
        return f"the output has vectors of the model {old.model}, not of {new.model}"
    if old.revision != new.revision:
        return f"the output has vectors of revision {old.revision} of {old.model}, but the server has {new.revision}"
    if changed := _find_changed_input(old.inputs, new.inputs):
        return changed
    for name in sorted(old.options.keys() | new.options.keys()):
        before, now = old.options.get(name), new.options.get(name)
        if before != now:
            flag = f"--{name.replace('_', '-')}"
            return f"the output was begun with {_describe(flag, before)}, not with {_describe(flag, now)}"
    if old.dimension != new.dimension or old.part_rows != new.part_rows:
        return f"the output has parts of {old.part_rows} rows of {old.dimension} values"
    return ""


def _describe(flag: str, value: Any) -> str:
    return f"{flag} {value}" if value else f"no {flag}"


def _find_changed_input(old: Sequence[Source], new: Sequence[Source]) -> str:
    before, now = {one.path: one for one in old}, {one.path: one for one in new}
    for path in now:
        if path not in before:
            return f"{path} was not among the inputs of the output"
    for path, source in before.items():
        if path not in now:
            return f"{path} was among the inputs of the output, but is not now"
        if source != now[path]:
            return f"{path} has changed since the output was begun"
    return "" if list(old) == list(new) else "the inputs have another order than when the output was begun"


def cut_requests(
    texts: Sequence[str | None], pending: Iterable[int], max_texts: int, max_bytes: int = MAX_REQUEST_BYTES
) -> Iterator[list[int]]:
    """Yield the rows of each request, in order: at most `max_texts`, and `max_bytes` unless a row alone has more."""
    rows: list[int] = []
    size = 0
    for row in pending:
        text = texts[row]
        if text is None:
            continue
        row_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        if rows and (len(rows) == max_texts or size + row_bytes > max_bytes):
            yield rows
            rows, size = [], 0
        rows.append(row)
        size += row_bytes
    if rows:
        yield rows


def halve(rows: list[int]) -> tuple[list[int], list[int]]:
    """Return the two halves of a request of at least two rows."""
    middle = len(rows) // 2
    return rows[:middle], rows[middle:]


def drop_rows(answer: Answer, rows: Collection[int]) -> Answer:
    """Return an answer without some rows."""
    size = len(answer.vectors) // len(answer.rows)
    kept = [number for number, row in enumerate(answer.rows) if row not in rows]
    vectors = b"".join(answer.vectors[number * size : (number + 1) * size] for number in kept)
    errors = {row: error for row, error in answer.errors.items() if row not in rows}
    return Answer([answer.rows[number] for number in kept], vectors, answer.tokens, answer.truncated, errors)


def encode_record(answer: Answer) -> bytes:
    """Return a record of a journal."""
    payload = _encode(answer)
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def decode_records(data: bytes) -> tuple[list[Answer], int]:
    """Return the intact records at the start of a journal, and their bytes."""
    answers: list[Answer] = []
    end = 0
    while end + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, end)
        payload = data[end + _HEADER.size : end + _HEADER.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            break
        answers.append(_decode(payload))
        end += _HEADER.size + length
    return answers, end
