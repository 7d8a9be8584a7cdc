"""Readers of all formats of inputs: rows as texts, and the columns to copy."""

import csv
import gzip
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from embed_errors import RefusedError
from embed_options import Options

#: Format of each ending, also before `.gz` and `.zst`.
FORMATS = {
    **{".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".jsonl": "jsonl", ".ndjson": "jsonl"},
    **{".csv": "csv", ".tsv": "tsv", ".txt": "text", ".md": "text"},
}
#: Rows of a block. The types of JSONL's columns are those of the first block.
BLOCK_ROWS = 4096
_ALL = ("*",)
_NO_COLUMNS = pa.table([], names=[])
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


class Columns(NamedTuple):
    """Which columns make the text, and which are copied."""

    #: Literal texts and names of columns in turn: the template `{a}: {b}` is `("", "a", ": ", "b", "")`.
    template: tuple[str, ...]
    id: str = ""
    keep: tuple[str, ...] = ()

    @property
    def text_names(self) -> tuple[str, ...]:
        """Names of the columns that make the text."""
        return self.template[1::2]

    def choose_copied(self, names: Sequence[str], path: str) -> list[tuple[str, str]]:
        """Return the columns to copy as pairs of name in the input and in the output.

        Raise `RefusedError` if a column does not exist or two have one name.
        """
        keep = [name for name in names if name not in (self.id, "embedding")] if self.keep == _ALL else self.keep
        if missing := next((name for name in (self.id, *keep) if name and name not in names), ""):
            raise RefusedError(f"{path} has no column {missing!r}; it has {', '.join(map(repr, names))}")
        if "id" in keep and self.id != "id":
            raise RefusedError(f"{path} has a column 'id', as the output has; set --id id")
        if "embedding" in keep:
            raise RefusedError(
                "a kept column cannot have the name 'embedding', which is that of the vectors; rename it"
            )
        return [(self.id, "id")] * bool(self.id) + [(name, name) for name in keep if name != self.id]

    def make_text(self, row: dict[str, Any]) -> str:
        """Return the text of a row. Raise `ValueError` if a column is missing or null, or is no text or number."""
        parts = list(self.template)
        for place in range(1, len(parts), 2):
            value = row.get(parts[place])
            if value is None:
                raise ValueError(f"the row has no {parts[place]!r}")
            if not isinstance(value, str | int | float):
                raise ValueError(f"{parts[place]!r} is not a text")
            parts[place] = str(value)
        return "".join(parts)


class Block(NamedTuple):
    """Consecutive rows of one file."""

    #: None: the row has no text, and `problems` has the reason.
    texts: list[str | None]
    problems: dict[int, str]
    columns: pa.Table


def choose_columns(options: Options) -> Columns:
    """Return the columns that the options choose. Raise `RefusedError` if the template has none."""
    if not options.template:
        return Columns(("", options.text or "text", ""), options.id, options.keep)
    pieces = re.split(r"\{([^{}]+)\}", options.template)
    if len(pieces) == 1:
        raise RefusedError(
            f"--template {options.template!r} names no column; write columns in braces, such as {{title}}"
        )
    pieces[::2] = [re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found[0]], piece) for piece in pieces[::2]]
    return Columns(tuple(pieces), options.id, options.keep)


def read_blocks(path: str, format_name: str, columns: Columns) -> Iterator[Block]:
    """Yield the rows of a file. Raise `RefusedError` if it cannot be read."""
    try:
        yield from _READERS[format_name](path, columns)
    except (OSError, EOFError, pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise RefusedError(f"{path} cannot be read as {format_name}: {error}") from None


def count_file_rows(path: str, format_name: str) -> int:
    """Return the rows of a Parquet file, or the lines of another one."""
    if format_name == "parquet":
        return int(pq.read_metadata(path).num_rows)
    with _open(path) as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return max(0, lines - (format_name in ("csv", "tsv")))


# --- tables ----------------------------------------------------------------------------------------------------------


def _read_parquet(path: str, columns: Columns) -> Iterator[Block]:
    source = io.BytesIO(sys.stdin.buffer.read()) if path == "-" else path
    with pq.ParquetFile(source) as file:
        wanted, copied = _choose_from_table(file.schema_arrow.names, columns, path)
        for batch in file.iter_batches(BLOCK_ROWS, columns=wanted):
            yield _make_block(pa.Table.from_batches([batch]), columns, copied)


def _read_arrow(path: str, columns: Columns) -> Iterator[Block]:
    with _open(path) as file:
        start = file.peek(6)[:6]
        reader = pa.ipc.open_stream(file) if start != b"ARROW1" else None
        batches: Iterable[pa.RecordBatch]
        if reader is None:
            whole = pa.ipc.open_file(pa.memory_map(path) if path != "-" else io.BytesIO(file.read()))
            batches, schema = map(whole.get_batch, range(whole.num_record_batches)), whole.schema
        else:
            batches, schema = reader, reader.schema
        wanted, copied = _choose_from_table(schema.names, columns, path)
        for batch in batches:
            for start_row in range(0, batch.num_rows, BLOCK_ROWS):
                piece = batch.slice(start_row, BLOCK_ROWS).select(wanted)
                yield _make_block(pa.Table.from_batches([piece]), columns, copied)


def _choose_from_table(names: Sequence[str], columns: Columns, path: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the columns to read, and those of them to copy."""
    _check_text_names(names, columns, path)
    copied = columns.choose_copied(names, path)
    return list(dict.fromkeys([*columns.text_names, *(name for name, _ in copied)])), copied


def _check_text_names(names: Sequence[str], columns: Columns, path: str) -> None:
    if missing := next((name for name in columns.text_names if name not in names), ""):
        listed = ", ".join(map(repr, names))
        raise RefusedError(f"{path} has no column {missing!r}; choose the text with --text: it has {listed}")


def _make_block(table: pa.Table, columns: Columns, copied: list[tuple[str, str]]) -> Block:
    names = columns.text_names
    values = {name: table.column(name).cast(pa.string()).to_pylist() for name in names}
    texts: list[str | None]
    problems: dict[int, str] = {}
    if columns.template[::2] == ("", ""):
        texts = list(values[names[0]])
        problems = {row: f"the row has no {names[0]!r}" for row, text in enumerate(texts) if text is None}
    else:
        rows = (dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True))
        texts, problems = _make_texts(rows, columns)
    kept = pa.table([table.column(name) for name, _ in copied], names=[name for _, name in copied])
    return Block(texts, problems, kept)


# --- lines -----------------------------------------------------------------------------------------------------------


def _open(path: str) -> io.BufferedReader:
    """Return an open file, decompressed by its ending."""
    if path == "-":
        return cast(io.BufferedReader, sys.stdin.buffer)
    if path.lower().endswith(".gz"):
        return io.BufferedReader(gzip.open(path))
    if path.lower().endswith(".zst"):
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(path), "zstd"), 1 << 20)
    return io.BufferedReader(io.FileIO(path), 1 << 20)


def _read_text(path: str, columns: Columns) -> Iterator[Block]:
    if columns.keep or columns.id:
        raise RefusedError(f"{path} is read as lines of text, which have no columns; leave out --id and --keep")
    for lines in _read_lines(path):
        texts, problems = _make_each(lines, lambda line: line.decode())
        yield Block(texts, problems, _NO_COLUMNS)


def _read_jsonl(path: str, columns: Columns) -> Iterator[Block]:
    copied: list[tuple[str, str]] = []
    kinds: dict[str, Any] = {}
    decoder = msgspec.json.Decoder(dict[str, Any])
    for number, lines in enumerate(_read_lines(path)):
        rows, problems = _make_each(lines, decoder.decode)
        dicts: list[dict[str, Any]] = [row or {} for row in rows]
        if number == 0:
            names = list(dict.fromkeys(name for row in dicts for name in row))
            if any(dicts):
                _check_text_names(names, columns, path)
            copied = columns.choose_copied(names, path)
        texts, missing = _make_texts(dicts, columns)
        arrays = []
        for name, _ in copied:
            array = _make_column([row.get(name) for row in dicts], kinds.get(name))
            kinds.setdefault(name, array.type)
            arrays.append(array)
        yield Block(texts, missing | problems, pa.table(arrays, names=[name for _, name in copied]))


def _make_column(values: list[Any], kind: Any) -> pa.Array:
    """Return values as a column of one type; values of several types, lists and objects become JSON texts."""
    found = {type(value) for value in values if value is not None}
    plain = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    if kind is None:
        wanted = float if found == {int, float} else next(iter(found)) if len(found) == 1 else str
        kind = plain.get(wanted, pa.string())
    if kind == pa.string():
        values = [
            value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()
            for value in values
        ]
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _read_csv(path: str, columns: Columns, delimiter: str = ",") -> Iterator[Block]:
    csv.field_size_limit(1 << 30)
    with _open(path) as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter)
        names = next(rows, [])
        _check_text_names(names, columns, path)
        copied = columns.choose_copied(names, path)
        while block := list(itertools.islice(rows, BLOCK_ROWS)):
            dicts: list[dict[str, Any]] = [dict(zip(names, row, strict=False)) for row in block if row]
            texts, problems = _make_texts(dicts, columns)
            arrays = [pa.array([row.get(name) for row in dicts], pa.string()) for name, _ in copied]
            yield Block(texts, problems, pa.table(arrays, names=[name for _, name in copied]))


def _read_lines(path: str) -> Iterator[list[bytes]]:
    """Yield lists of lines without their ends; a byte order mark at the start is skipped."""
    with _open(path) as file:
        first = True
        while lines := [line.rstrip(b"\r\n") for line in itertools.islice(file, BLOCK_ROWS)]:
            if first:
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            first = False
            yield lines


def _make_texts(rows: Iterable[dict[str, Any]], columns: Columns) -> tuple[list[str | None], dict[int, str]]:
    return _make_each(rows, columns.make_text)


def _make_each(rows: Iterable[Any], make: Callable[[Any], Any]) -> tuple[list[Any], dict[int, str]]:
    """Return what is made of each row, and the reason for each row of which it cannot be made."""
    made: list[Any] = []
    problems: dict[int, str] = {}
    for number, row in enumerate(rows):
        try:
            made.append(make(row))
        except (ValueError, msgspec.DecodeError) as error:
            made.append(None)
            problems[number] = str(error)
    return made, problems


_READERS: dict[str, Callable[[str, Columns], Iterator[Block]]] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": lambda path, columns: _read_csv(path, columns, "\t"),
    "text": _read_text,
}
