"""Single files of an output of `scripts/embed`, written of its complete parts."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from embed_errors import RefusedError
from embed_store import Store, replace_file


def list_files(path: Path, format_name: str, *, with_ids: bool) -> list[Path]:
    """Return the paths of the files that `export_file` writes."""
    return [path, _ids_path(path)] if format_name == "npy" and with_ids else [path]


def export_file(store: Store, path: Path, format_name: str, rows: int, *, with_ids: bool) -> None:
    """Write the rows of all parts to one file. Raise `RefusedError` if the parts do not have as many rows."""
    parts = store.list_parts()
    saved = sum(pq.read_metadata(part).num_rows for part in parts)
    if saved != rows:
        text = f"the parts in {store.folder} have {saved:,} rows, but the inputs have {rows:,}"
        raise RefusedError(f"{text}; use --overwrite to begin again")
    if format_name == "npy" and with_ids:
        _write_ids(_ids_path(path), parts)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        if format_name == "npy":
            _write_npy(file, parts, rows)
        else:
            _write_jsonl(file, parts)


def _ids_path(path: Path) -> Path:
    return path.with_suffix(".ids.jsonl")


def _write_npy(file: IO[bytes], parts: list[Path], rows: int) -> None:
    """Write one array [rows, values]; a row with an error has NaN, or 0 in whole numbers."""
    kind: Any = None
    for part in parts:
        for vectors in _read_vectors(part):
            if kind is None:
                kind = vectors.dtype
                header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, header | {"shape": (rows, vectors.shape[1])})
            file.write(np.ascontiguousarray(vectors).data)


def _read_vectors(part: Path) -> Iterator[npt.NDArray[Any]]:
    column = pq.read_table(part, columns=["embedding"]).column("embedding")
    for chunk in column.chunks:
        width = chunk.type.list_size
        vectors = np.zeros((len(chunk), width), chunk.type.value_type.to_pandas_dtype())
        present = ~np.asarray(chunk.is_null())
        vectors[present] = np.asarray(chunk.flatten()).reshape(-1, width)
        if vectors.dtype.kind == "f":
            vectors[~present] = np.nan
        yield vectors


def _write_ids(path: Path, parts: list[Path]) -> None:
    with replace_file(path) as temporary, temporary.open("wb") as file:
        for part in parts:
            for value in pq.read_table(part, columns=["id"]).column("id").to_pylist():
                file.write(msgspec.json.encode(value, enc_hook=str) + b"\n")


def _write_jsonl(file: IO[bytes], parts: list[Path]) -> None:
    """Write a line for each row, with null for the vector of a row with an error."""
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    for part in parts:
        table = pq.read_table(part)
        columns = table.drop_columns(["embedding"])
        vectors = np.concatenate(list(_read_vectors(part)))
        nulls = np.asarray(pa.concat_arrays(table.column("embedding").chunks).is_null())
        if vectors.dtype == np.float16:
            vectors = vectors.astype(np.float32)
        for row, values in enumerate(columns.to_pylist()):
            values["embedding"] = None if nulls[row] else vectors[row]
            file.write(orjson.dumps(values, str, options))
