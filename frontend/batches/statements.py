"""Statements that several methods of `Database` need within their transactions."""

from collections.abc import Collection, Sequence
from typing import TypeVar

import msgspec

from frontend.batches.connections import Execute
from frontend.batches.rows import Batch, Chunk, File, FilePart

R = TypeVar("R", File, Batch)

#: `expires_at` of a file that does not expire.
NEVER = 2**62
#: Condition of a file: an open batch reads it.
IS_READ = "EXISTS (SELECT 1 FROM batches WHERE input_file_id = files.id AND is_open = 1)"


def encode(row: File | Batch | Chunk) -> str:
    """Return a row as text."""
    return msgspec.json.encode(row).decode()


def decode(rows: list[tuple[str]], kind: type[R]) -> R | None:
    """Return the first row, or None if there is none."""
    return msgspec.json.decode(rows[0][0], type=kind) if rows else None


def exclude(column: str, values: Collection[str]) -> str:
    """Return a condition that rows have none of the values in a column."""
    return f"AND {column} NOT IN ({', '.join('?' * len(values))})" if values else ""


def insert_file(execute: Execute, file: File, parts: Sequence[FilePart]) -> None:
    """Add the rows of a file."""
    expires_at = NEVER if file.expires_at is None else file.expires_at
    values = file.id, file.owner, file.purpose, file.bytes, expires_at, encode(file)
    execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", *values)
    for part in parts:
        execute("INSERT INTO parts VALUES (?, ?, ?, ?)", part.file, part.number, part.key, part.bytes)


def delete_file(execute: Execute, file_id: str) -> list[str]:
    """Delete the rows of a file, which must be locked, unless an open batch reads it. Return its objects' keys."""
    if execute("SELECT 1 FROM batches WHERE input_file_id = ? AND is_open = 1 LIMIT 1", file_id):
        return []
    execute("DELETE FROM files WHERE id = ?", file_id)
    return [key for (key,) in execute("DELETE FROM parts WHERE file = ? RETURNING key", file_id)]


def sum_bytes(execute: Execute, owner: str, now: float) -> int:
    """Return the size of all files of an owner, of those that open batches read, and of their results so far."""
    files = f"SELECT COALESCE(SUM(bytes), 0) FROM files WHERE owner = ? AND (expires_at > ? OR {IS_READ})"
    results = "SELECT COALESCE(SUM(bytes), 0) FROM batches WHERE owner = ? AND is_open = 1"
    return int(execute(files, owner, int(now))[0][0]) + int(execute(results, owner)[0][0])


def lock_batch(execute: Execute, batch_id: str, holder: str) -> Batch | None:
    """Return the current row of a batch if the runner has its lease, and let no other transaction change it."""
    statement = "UPDATE batches SET holder = holder WHERE id = ? AND holder = ? AND is_open = 1 RETURNING body"
    return decode(execute(statement, batch_id, holder), Batch)


def update_batch(execute: Execute, batch: Batch) -> None:
    """Save a batch, which must be locked."""
    statement = "UPDATE batches SET is_open = ?, status = ?, body = ? WHERE id = ?"
    execute(statement, int(batch.is_open), batch.status, encode(batch), batch.id)
