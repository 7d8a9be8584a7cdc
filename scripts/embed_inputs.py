"""Which files `scripts/embed` reads, and their rows as parts of fixed numbers of rows.

A row's number depends only on the inputs and their order, so that a run that is resumed cuts the same parts.
"""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from embed_errors import RefusedError
from embed_plan import Source
from embed_readers import FORMATS, Block, Columns, count_file_rows, read_blocks

STDIN = "-"
_COMPRESSED = (".gz", ".zst")


class Input(NamedTuple):
    """A file and its format; the path `-` is stdin."""

    path: str
    format: str

    def describe(self) -> Source:
        """Return the path, size and time of modification, by which a changed file is recognized."""
        if self.path == STDIN:
            return Source(STDIN, 0, 0)
        stat = os.stat(self.path)
        return Source(os.path.abspath(self.path), stat.st_size, stat.st_mtime_ns)


class Part(NamedTuple):
    """Rows that are written to one file, before they are embedded."""

    number: int
    first_row: int
    #: None: the row has no text, and `problems` has the reason.
    texts: list[str | None]
    problems: dict[int, str]
    #: The id and the kept columns.
    columns: pa.Table

    def digest(self) -> str:
        """Return a hash of the texts and ids, by which a part of other inputs is recognized."""
        found = hashlib.blake2b(digest_size=16)
        for text in self.texts:
            found.update(b"\1" if text is None else b"\0" + text.encode("utf-8", "surrogatepass"))
        for column in self.columns.columns:
            found.update("\0".join(map(str, column.to_pylist())).encode("utf-8", "surrogatepass"))
        return found.hexdigest()


def find_inputs(inputs: Sequence[str], format_name: str, *, has_fields: bool) -> list[Input]:
    """Return the files of paths, folders and patterns, in order. Raise `RefusedError` if there are none."""
    if list(inputs) == [STDIN]:
        return [Input(STDIN, format_name or ("jsonl" if has_fields else "text"))]
    found = [Input(path, format_name or _choose_format(path)) for name in inputs for path in _find_files(name)]
    if repeated := next((one.path for one, count in Counter(found).items() if count > 1), ""):
        raise RefusedError(f"{repeated} is given twice; give each input once")
    return found


def _find_files(name: str) -> list[str]:
    path = Path(name)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path)))
        if known := [str(file) for file in files if _find_format(str(file))]:
            return known
        raise RefusedError(f"the folder {name} has no file whose name ends in one of {', '.join(FORMATS)}")
    if path.exists():
        return [name]
    if matches := sorted(match for match in glob.glob(name, recursive=True) if Path(match).is_file()):
        return matches
    raise RefusedError(f"there is no input {name}; give a file, a folder, or a pattern in quotes")


def _is_hidden(path: Path) -> bool:
    return any(name.startswith((".", "_")) for name in path.parts)


def _find_format(path: str) -> str:
    name = path.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return FORMATS.get(Path(name).suffix, "")


def _choose_format(path: str) -> str:
    if found := _find_format(path):
        return found
    raise RefusedError(f"the name of {path} has none of the endings {', '.join(FORMATS)}; set --input-format")


def read_parts(inputs: Sequence[Input], columns: Columns, part_rows: int, limit: int) -> Iterator[Part]:
    """Yield all rows in parts of `part_rows`, the last of which may be shorter."""
    first = 0
    texts: list[str | None] = []
    problems: dict[int, str] = {}
    tables: list[pa.Table] = []
    for block in _read_limited(inputs, columns, limit):
        start = 0
        while start < len(block.texts):
            taken = min(part_rows - len(texts), len(block.texts) - start)
            rows = range(start, start + taken)
            problems |= {len(texts) + row - start: block.problems[row] for row in rows if row in block.problems}
            texts += block.texts[start : start + taken]
            tables.append(block.columns.slice(start, taken))
            start += taken
            if len(texts) == part_rows:
                yield _make_part(first, part_rows, texts, problems, tables, columns)
                first += part_rows
                texts, problems, tables = [], {}, []
    if texts:
        yield _make_part(first, part_rows, texts, problems, tables, columns)


def _make_part(
    first: int,
    part_rows: int,
    texts: list[str | None],
    problems: dict[int, str],
    tables: list[pa.Table],
    columns: Columns,
) -> Part:
    table = pa.concat_tables(tables)
    if not columns.id:
        numbers = pa.array(range(first, first + len(texts)), pa.int64())
        # A table without columns has no length.
        table = table.add_column(0, "id", numbers) if table.num_columns else pa.table({"id": numbers})
    return Part(first // part_rows, first, texts, problems, table)


def _read_limited(inputs: Sequence[Input], columns: Columns, limit: int) -> Iterator[Block]:
    """Yield the blocks of all inputs, with the columns of the first, up to `limit` rows; 0: all."""
    left = limit
    schema: pa.Schema | None = None
    for one in inputs:
        for block in read_blocks(one.path, one.format, columns):
            schema = schema or block.columns.schema
            fitted = block._replace(columns=_fit_columns(block.columns, schema, one.path))
            if limit and len(block.texts) >= left:
                yield Block(fitted.texts[:left], fitted.problems, fitted.columns.slice(0, left))
                return
            left -= len(block.texts)
            yield fitted


def _fit_columns(table: pa.Table, schema: pa.Schema, path: str) -> pa.Table:
    """Return the columns in the types of the first block. Raise `RefusedError` if they do not fit."""
    if table.schema.equals(schema):
        return table
    for field in schema:
        if field.name not in table.schema.names:
            raise RefusedError(f"{path} has no column {field.name!r}, but the first input has; leave it out of --keep")
        try:
            index = table.schema.get_field_index(field.name)
            table = table.set_column(index, field, table.column(index).cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            kind = table.schema.field(field.name).type
            text = f"the column {field.name!r} has {kind} in {path}, but {field.type} at the start of the inputs"
            raise RefusedError(f"{text}; give its values one type") from None
    return table.select(schema.names)


def count_rows(inputs: Sequence[Input]) -> int | None:
    """Return about how many rows the inputs have, or None for stdin. Reads all files but Parquet."""
    if any(one.path == STDIN for one in inputs):
        return None
    return sum(count_file_rows(one.path, one.format) for one in inputs)
