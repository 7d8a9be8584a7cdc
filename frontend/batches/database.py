"""Rows of files and batches in SQLite or PostgreSQL. Methods block and may be called from any thread.

All methods raise `StoreError` if the database cannot be used. Times are seconds since 1970, by this host's clock;
leases are kept by the database's clock, so that the clocks of hosts may differ.
"""

from collections.abc import Collection, Sequence

import msgspec

from frontend.batches.connections import Connection, Execute
from frontend.batches.errors import DamagedRowError, TooManyBatchesError
from frontend.batches.rows import OPEN, Batch, Chunk, File, FilePart, add_chunk, cancel, make_id, merge_batch
from frontend.batches.statements import (
    IS_READ,
    decode,
    delete_file,
    encode,
    exclude,
    insert_file,
    lock_batch,
    sum_bytes,
    update_batch,
)

#: `expires_at` of a file that its owner has deleted while a batch reads it.
_DELETED = 0
#: `lease_until` of a batch that was cancelled while no runner had it.
_CANCELLED = -1.0
#: Most files that one call removes.
MAX_REMOVED = 500


class Database:
    """Files, their parts, batches and their chunks."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    # --- files -------------------------------------------------------------------------------------------------------

    def add_file(self, file: File, parts: Sequence[FilePart], max_stored_bytes: int = 0) -> bool:
        """Add a file. Return False, and add no file, if its owner's files would exceed `max_stored_bytes`; 0: no limit.

        Two uploads that end at the same moment may both be added in PostgreSQL.
        """

        def add(execute: Execute) -> bool:
            stored = sum_bytes(execute, file.owner, file.created_at) if max_stored_bytes else 0
            if max_stored_bytes and stored + file.bytes > max_stored_bytes:
                return False
            insert_file(execute, file, parts)
            return True

        return self._connection.transact(add)

    def find_file(self, file_id: str, owner: str, now: float) -> File | None:
        """Return a file of this owner that has neither expired nor been deleted."""
        statement = "SELECT body FROM files WHERE id = ? AND owner = ? AND expires_at > ?"
        rows = self._connection.read(lambda execute: execute(statement, file_id, owner, int(now)))
        return decode(rows, File)

    def list_parts(self, file: str) -> list[FilePart]:
        """Return the parts of a file in order, also if the file has expired or been deleted while a batch reads it."""
        statement = "SELECT file, number, key, bytes FROM parts WHERE file = ? ORDER BY number"
        return [FilePart(*row) for row in self._connection.read(lambda execute: execute(statement, file))]

    def list_files(
        self, owner: str, now: float, *, purpose: str = "", after: str = "", limit: int, ascending: bool = False
    ) -> tuple[list[File], bool]:
        """Return files of an owner in the order of creation, the latest first, and whether there are more.

        `after` is the id of the last file of the previous page.
        """
        condition = "expires_at > ? AND (purpose = ? OR ? = '')"
        rows, more = self._list("files", owner, condition, (int(now), purpose, purpose), after, limit, ascending)
        return [msgspec.json.decode(body, type=File) for body in rows], more

    def remove_file(self, file_id: str, owner: str, now: float) -> list[str] | None:
        """Remove a file. Return the keys of objects to delete, or None if the owner has no such file.

        While an open batch reads the file, only its owner does not find it any more; `pop_expired_files` removes it
        later.
        """

        def remove(execute: Execute) -> list[str] | None:
            statement = "UPDATE files SET expires_at = ? WHERE id = ? AND owner = ? AND expires_at > ? RETURNING id"
            found = execute(statement, _DELETED, file_id, owner, int(now))
            return delete_file(execute, file_id) if found else None

        return self._connection.transact(remove)

    def pop_expired_files(self, now: float) -> list[str]:
        """Remove files that have expired or been deleted and that no open batch reads.

        Return the keys of objects to delete. A call removes at most MAX_REMOVED files.
        """

        def pop(execute: Execute) -> list[str]:
            statement = f"""UPDATE files SET expires_at = expires_at WHERE id IN (
                SELECT id FROM files WHERE expires_at <= ? AND NOT {IS_READ}
                ORDER BY expires_at LIMIT {MAX_REMOVED}) RETURNING id"""
            return [key for (file_id,) in execute(statement, int(now)) for key in delete_file(execute, file_id)]

        return self._connection.transact(pop)

    def sum_bytes(self, owner: str, now: float) -> int:
        """Return the size of all files of an owner, of those that open batches read, and of their results so far."""
        return self._connection.read(lambda execute: sum_bytes(execute, owner, now))

    # --- batches -----------------------------------------------------------------------------------------------------

    def add_batch(self, batch: Batch, max_open: int = 0) -> bool:
        """Add a batch. Return False, and add no batch, if its owner has no such input file any more.

        Raise `TooManyBatchesError` if the owner has `max_open` open batches; 0: no limit.
        """

        def add(execute: Execute) -> bool:
            statement = "UPDATE files SET bytes = bytes WHERE id = ? AND owner = ? AND expires_at > ? RETURNING id"
            if not execute(statement, batch.input_file_id, batch.owner, batch.created_at):
                return False
            count = "SELECT COUNT(*) FROM batches WHERE owner = ? AND is_open = 1"
            if max_open and execute(count, batch.owner)[0][0] >= max_open:
                raise TooManyBatchesError
            values = batch.id, batch.owner, batch.input_file_id, int(batch.is_open), batch.status
            turn = batch.created_at + self._connection.clock_offset_s
            execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, 0, '', ?, ?)", *values, turn, encode(batch))
            return True

        return self._connection.transact(add)

    def find_batch(self, batch_id: str, owner: str) -> Batch | None:
        """Return a batch of this owner."""
        statement = "SELECT body FROM batches WHERE id = ? AND owner = ?"
        return decode(self._connection.read(lambda execute: execute(statement, batch_id, owner)), Batch)

    def list_batches(self, owner: str, *, after: str = "", limit: int) -> tuple[list[Batch], bool]:
        """Return batches of an owner, the latest first, and whether there are more; see `list_files`."""
        rows, more = self._list("batches", owner, "1 = 1", (), after, limit, ascending=False)
        return [msgspec.json.decode(body, type=Batch) for body in rows], more

    def cancel_batch(self, batch_id: str, owner: str, now: float) -> Batch | None:
        """Cancel a batch, unless it has ended. Return its row, or None if the owner has no such batch."""

        def change(execute: Execute) -> Batch | None:
            statement = "UPDATE batches SET is_open = is_open WHERE id = ? AND owner = ? RETURNING body"
            batch = decode(execute(statement, batch_id, owner), Batch)
            if batch:
                update_batch(execute, cancel(batch, int(now)))
                # The next claim takes a cancelled batch first, also if the batch is deferred.
                execute("UPDATE batches SET lease_until = ? WHERE id = ? AND holder = ''", _CANCELLED, batch_id)
            return batch

        return self._connection.transact(change)

    # --- runners -----------------------------------------------------------------------------------------------------

    def claim_batch(
        self,
        holder: str,
        now: float,
        lease_s: float,
        busy_owners: Collection[str] = (),
        deferred: Collection[str] = (),
    ) -> Batch | None:
        """Lease the oldest open batch that no runner holds, of another owner than these, to the runner `holder`.

        The age of a batch that was released because it waits begins at its release. Batches that are `deferred` are
        left to other runners, unless they have been cancelled. Return None if there is none, or if another runner has
        claimed the batch at the same moment. Raise `DamagedRowError` if the row cannot be decoded.
        """
        now += self._connection.clock_offset_s
        others = exclude("owner", busy_owners) + exclude("id", deferred)
        others = f"AND (lease_until = {_CANCELLED} OR (1 = 1 {others}))"
        statement = f"""UPDATE batches SET holder = ?, lease_until = ? WHERE lease_until <= ? AND id = (
            SELECT id FROM batches WHERE is_open = 1 AND lease_until <= ? {others} ORDER BY lease_until, id LIMIT 1)
            RETURNING id, body"""
        values = holder, now + lease_s, now, now, *busy_owners, *deferred
        rows = self._connection.transact(lambda execute: execute(statement, *values))
        try:
            return msgspec.json.decode(rows[0][1], type=Batch) if rows else None
        except msgspec.MsgspecError as error:
            raise DamagedRowError(rows[0][0], str(error)) from None

    def count_open(self) -> dict[str, int]:
        """Return the number of batches that have not ended, by status."""
        statement = "SELECT status, COUNT(*) FROM batches WHERE is_open = 1 GROUP BY status"
        counts: dict[str, int] = dict(self._connection.read(lambda execute: execute(statement)))
        return {status: counts.get(status, 0) for status in OPEN}

    def renew_lease(self, batch_id: str, holder: str, now: float, lease_s: float) -> Batch | None:
        """Renew a lease. Return the current row, which may have been cancelled, or None if the lease is lost."""
        now += self._connection.clock_offset_s
        statement = "UPDATE batches SET lease_until = ? WHERE id = ? AND holder = ? AND is_open = 1 RETURNING body"
        return decode(
            self._connection.transact(lambda execute: execute(statement, now + lease_s, batch_id, holder)), Batch
        )

    def release_lease(self, batch_id: str, holder: str, turn: float = 0.0) -> None:
        """Let other runners claim the batch at once, after the batches with an earlier `turn`."""
        statement = "UPDATE batches SET holder = '', lease_until = ? WHERE id = ? AND holder = ?"
        turn = turn and turn + self._connection.clock_offset_s
        self._connection.transact(lambda execute: execute(statement, turn, batch_id, holder))

    def save_batch(self, batch: Batch, holder: str) -> bool:
        """Save a batch except for its counts, which only `commit_chunk` changes, and keep a cancellation.

        Return False, and change no row, if the lease is lost.
        """

        def save(execute: Execute) -> bool:
            current = lock_batch(execute, batch.id, holder)
            if current:
                update_batch(execute, merge_batch(current, msgspec.structs.replace(batch)))
            return current is not None

        return self._connection.transact(save)

    def commit_chunk(self, chunk: Chunk, holder: str) -> bool:
        """Commit a chunk and its counts at once. Return False if the lease is lost or the chunk has been committed."""

        def commit(execute: Execute) -> bool:
            current = lock_batch(execute, chunk.batch, holder)
            if current is None:
                return False
            statement = "INSERT INTO chunks VALUES (?, ?, ?) ON CONFLICT DO NOTHING RETURNING number"
            if not execute(statement, chunk.batch, chunk.number, encode(chunk)):
                return False
            update_batch(execute, add_chunk(current, chunk))
            size = chunk.output_bytes + chunk.error_bytes
            execute("UPDATE batches SET bytes = bytes + ? WHERE id = ?", size, chunk.batch)
            return True

        return self._connection.transact(commit)

    def list_chunks(self, batch: str) -> list[Chunk]:
        """Return the committed chunks of an open batch in order."""
        statement = "SELECT body FROM chunks WHERE batch = ? ORDER BY number"
        rows = self._connection.read(lambda execute: execute(statement, batch))
        return [msgspec.json.decode(body, type=Chunk) for (body,) in rows]

    def finish_batch(
        self, batch: Batch, holder: str, files: Sequence[tuple[File, Sequence[FilePart]]] = ()
    ) -> Batch | None:
        """End a batch: add its files, save its row as in `save_batch`, forget its chunks, and release the lease.

        Return the row as it was saved. Return None, and change no row, if the lease is lost.
        """

        def finish(execute: Execute) -> Batch | None:
            current = lock_batch(execute, batch.id, holder)
            if current is None:
                return None
            for file, parts in files:
                insert_file(execute, file, parts)
            ended = merge_batch(current, msgspec.structs.replace(batch))
            update_batch(execute, ended)
            execute("DELETE FROM chunks WHERE batch = ?", batch.id)
            execute("UPDATE batches SET holder = '', lease_until = 0 WHERE id = ?", batch.id)
            return ended

        return self._connection.transact(finish)

    # --- upkeep ------------------------------------------------------------------------------------------------------

    def remove_batches(self, before: float) -> int:
        """Remove batches that have ended and were created before a time. Return their number."""
        statement = "DELETE FROM batches WHERE is_open = 0 AND id < ? RETURNING id"
        first = make_id("batch_", int(before * 1e9), b"")
        return len(self._connection.transact(lambda execute: execute(statement, first)))

    def keep_setting(self, name: str, value: str) -> str:
        """Note a setting of the whole store unless it has a value. Return the value."""

        def keep(execute: Execute) -> str:
            execute("INSERT INTO settings VALUES (?, ?) ON CONFLICT DO NOTHING", name, value)
            return str(execute("SELECT value FROM settings WHERE name = ?", name)[0][0])

        return self._connection.transact(keep)

    def find_unused_keys(self, keys: Collection[str]) -> set[str]:
        """Return the keys of objects that belong neither to a file nor to an open batch."""
        statement = """SELECT 1 FROM parts WHERE key = ?
            UNION ALL SELECT 1 FROM batches WHERE id = ? AND is_open = 1 LIMIT 1"""

        def find(execute: Execute) -> set[str]:
            unused = set()
            for key in keys:
                # The key of a batch's object is batches/ID/NAME.
                folder, _, rest = key.partition("/")
                batch = rest.partition("/")[0] if folder == "batches" else ""
                if not execute(statement, key, batch):
                    unused.add(key)
            return unused

        return self._connection.read(find)

    def _list(
        self,
        table: str,
        owner: str,
        condition: str,
        values: tuple[object, ...],
        after: str,
        limit: int,
        ascending: bool,
    ) -> tuple[list[str], bool]:
        """Return the bodies of a page of rows, and whether there are more."""
        sign, order = (">", "ASC") if ascending else ("<", "DESC")
        statement = f"""SELECT body FROM {table} WHERE owner = ? AND {condition} AND (id {sign} ? OR ? = '')
            ORDER BY id {order} LIMIT ?"""
        rows = self._connection.read(lambda execute: execute(statement, owner, *values, after, after, limit + 1))
        return [body for (body,) in rows[:limit]], len(rows) > limit
