"""Connections to SQLite and PostgreSQL: transactions of statements that both understand.

Statements have `?` for parameters. A transaction that writes begins with an UPDATE or an INSERT of the row that it
depends on, so that PostgreSQL locks this row; SQLite locks the whole file.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from frontend.batches.errors import StoreError, convert_error

T = TypeVar("T")
Row = tuple[Any, ...]
#: Runs a statement with its parameters, and returns the rows.
Execute = Callable[..., list[Row]]

#: Name of the SQLite database.
DATABASE_NAME = "vecmill.db"
#: Seconds to wait for the lock of another process.
BUSY_S = 15.0
#: Key of PostgreSQL's advisory lock while tables are created; any number that no other program uses.
_CREATION_LOCK = 0x7665636D696C6C

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS files (id TEXT PRIMARY KEY, owner TEXT NOT NULL, purpose TEXT NOT NULL,
        bytes BIGINT NOT NULL, expires_at BIGINT NOT NULL, body TEXT NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS files_by_owner ON files (owner, id)",
    "CREATE INDEX IF NOT EXISTS files_by_expiry ON files (expires_at)",
    """CREATE TABLE IF NOT EXISTS parts (file TEXT NOT NULL, number INTEGER NOT NULL, key TEXT NOT NULL,
        bytes BIGINT NOT NULL, PRIMARY KEY (file, number))""",
    "CREATE INDEX IF NOT EXISTS parts_by_key ON parts (key)",
    """CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, owner TEXT NOT NULL, input_file_id TEXT NOT NULL,
        is_open INTEGER NOT NULL, status TEXT NOT NULL, bytes BIGINT NOT NULL, holder TEXT NOT NULL,
        lease_until DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS batches_by_owner ON batches (owner, id)",
    "CREATE INDEX IF NOT EXISTS batches_by_owner_and_state ON batches (owner, is_open)",
    "CREATE INDEX IF NOT EXISTS batches_by_state ON batches (is_open, id)",
    "CREATE INDEX IF NOT EXISTS batches_by_input ON batches (input_file_id, is_open)",
    """CREATE TABLE IF NOT EXISTS chunks (batch TEXT NOT NULL, number INTEGER NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (batch, number))""",
)


class Connection(Protocol):
    """Database that runs one transaction at a time. Methods may be called from any thread."""

    def transact(self, function: Callable[[Execute], T]) -> T:
        """Return the result of the function, which runs statements in one transaction.

        Raise `StoreError` if the database cannot be used; then nothing is committed, or, if the connection ended at
        the commit, everything.
        """

    def close(self) -> None:
        """Close the connection."""


class SqliteConnection:
    """SQLite database in a file, in WAL mode, so that readers do not wait for writers."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it. Raise `StoreError` if it cannot be used."""
        self._name = f"the database {path}"
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error as error:
            raise convert_error(self._name, error) from None
        self.transact(lambda execute: [execute(statement) for statement in SCHEMA])

    def transact(self, function: Callable[[Execute], T]) -> T:
        """See `Connection`."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    result = function(self._execute)
                    self._connection.execute("COMMIT")
                    return result
                finally:
                    if self._connection.in_transaction:
                        # An error such as a full disk may have ended the transaction.
                        with contextlib.suppress(sqlite3.Error):
                            self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise convert_error(self._name, error) from None

    def _execute(self, statement: str, *parameters: Any) -> list[Row]:
        return self._connection.execute(statement, parameters).fetchall()

    def close(self) -> None:
        """See `Connection`."""
        with self._lock:
            self._connection.close()


class PostgresConnection:
    """PostgreSQL database. A transaction connects if there is no connection, so that a program starts without it."""

    def __init__(self, url: str) -> None:
        """Raise `StoreError` if the URL is invalid."""
        # Takes 0.1 s, and only hosts with PostgreSQL need it.
        import psycopg

        self._psycopg = psycopg
        self._url = url
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Row] | None = None
        with self._convert_errors():
            psycopg.conninfo.conninfo_to_dict(url)

    def transact(self, function: Callable[[Execute], T]) -> T:
        """See `Connection`."""
        with self._lock, self._convert_errors(), self._open().transaction():
            return function(self._execute)

    def _open(self) -> Any:
        """Return a connection that works."""
        if self._connection is not None:
            try:
                self._connection.execute("SELECT 1")
                return self._connection
            except self._psycopg.Error:
                self._connection.close()
        self._connection = None
        self._connection = self._psycopg.connect(self._url, autocommit=True, connect_timeout=int(BUSY_S))
        with self._connection.transaction():
            # Two sessions that create a table at once would fail.
            self._execute("SELECT pg_advisory_xact_lock(?)", _CREATION_LOCK)
            for statement in SCHEMA:
                self._execute(statement)
        return self._connection

    def _execute(self, statement: str, *parameters: Any) -> list[Row]:
        assert self._connection is not None
        # `prepare` would break behind a pooler such as PgBouncer.
        cursor = self._connection.execute(statement.replace("?", "%s"), parameters, prepare=False)
        return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def _convert_errors(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.Error as error:
            raise convert_error("the database of --database", error) from None

    def close(self) -> None:
        """See `Connection`."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()


def connect(database: str, data: Path) -> Connection:
    """Return the database of a URL, or that in the folder `data` if the URL is empty.

    Raise `StoreError` if it cannot be used.
    """
    if not database:
        return SqliteConnection(data / DATABASE_NAME)
    scheme = database.partition("://")[0]
    if scheme not in ("postgresql", "postgres"):
        raise StoreError(f"--database begins with {scheme[:20]!r}; give postgresql://USER@HOST/NAME, or leave it empty")
    return PostgresConnection(database)
