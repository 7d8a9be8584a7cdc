"""Connections to SQLite and PostgreSQL: transactions of statements that both understand.

Statements have `?` for parameters. A transaction that writes begins with an UPDATE or an INSERT of the row that it
depends on, so that PostgreSQL locks this row; SQLite locks the whole file.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from frontend.batches.errors import StoreError, convert_error

log = logging.getLogger(__name__)

T = TypeVar("T")
Row = tuple[Any, ...]
#: Runs a statement with its parameters, and returns the rows.
Execute = Callable[..., list[Row]]

#: Name of the SQLite database.
DATABASE_NAME = "vecmill.db"
#: Seconds to wait for the lock of another process.
BUSY_S = 15.0
#: Difference of the clocks, in seconds, from which a warning is logged.
MAX_OFFSET_S = 1.0
#: Settings of a session of PostgreSQL. Without them, a network that drops all packets blocks a statement for hours.
_SETTINGS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
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
    """Database. Methods may be called from any thread."""

    @property
    def clock_offset_s(self) -> float:
        """Seconds by which the database's clock is ahead of this host's, as of the last transaction."""

    def transact(self, function: Callable[[Execute], T]) -> T:
        """Return the result of the function, which runs statements in one transaction.

        Raise `StoreError` if the database cannot be used; then the transaction is not committed, except perhaps if the
        connection ended at the commit.
        """

    def read(self, function: Callable[[Execute], T]) -> T:
        """Do as `transact` for a function that changes nothing. It does not wait for transactions that write."""

    def close(self) -> None:
        """Close the connection."""


class SqliteConnection:
    """SQLite database in a file, in WAL mode, so that readers do not wait for writers."""

    clock_offset_s = 0.0

    def __init__(self, path: Path) -> None:
        """Open the file, or create it. Raise `StoreError` if it cannot be used."""
        self._name = f"the database {path}"
        # Readers have a connection of their own, because the writer may wait for another process.
        self._writer, self._reader = (self._open(path), threading.Lock()), (self._open(path), threading.Lock())
        self.transact(lambda execute: [execute(statement) for statement in SCHEMA])

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error as error:
            raise convert_error(self._name, error) from None
        return connection

    def transact(self, function: Callable[[Execute], T]) -> T:
        """See `Connection`."""
        return self._run("BEGIN IMMEDIATE", *self._writer, function)

    def read(self, function: Callable[[Execute], T]) -> T:
        """See `Connection`."""
        return self._run("BEGIN", *self._reader, function)

    def _run(
        self, begin: str, connection: sqlite3.Connection, lock: threading.Lock, function: Callable[[Execute], T]
    ) -> T:
        def execute(statement: str, *parameters: Any) -> list[Row]:
            return connection.execute(statement, parameters).fetchall()

        with lock:
            try:
                connection.execute(begin)
                try:
                    result = function(execute)
                    connection.execute("COMMIT")
                    return result
                finally:
                    if connection.in_transaction:
                        # An error such as a full disk may have ended the transaction.
                        with contextlib.suppress(sqlite3.Error):
                            connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise convert_error(self._name, error) from None

    def close(self) -> None:
        """See `Connection`."""
        for connection, lock in (self._writer, self._reader):
            with lock:
                connection.close()


class _PostgresSession:
    """Session of PostgreSQL, which is opened again after it was lost."""

    def __init__(self, url: str, psycopg: Any) -> None:
        self._psycopg = psycopg
        self._url = url
        self._lock = threading.Lock()
        self._connection: Any = None
        self.clock_offset_s = 0.0

    def transact(self, function: Callable[[Execute], T]) -> T:
        """Return the result of the function, run in a transaction."""
        with self._lock, self._open().transaction():
            return function(self._execute)

    def _open(self) -> Any:
        """Return a connection that works."""
        if self._connection is not None:
            try:
                self._read_clock()
                return self._connection
            except self._psycopg.Error:
                self._drop()
        # What the URL has comes first.
        self._connection = self._psycopg.connect(
            **(_SETTINGS | self._psycopg.conninfo.conninfo_to_dict(self._url)), autocommit=True
        )
        try:
            # Not as an option of the connection, which poolers such as PgBouncer refuse.
            self._execute(f"SET statement_timeout = {int(BUSY_S * 1000)}")
            self._create_tables()
            self._read_clock()
        except BaseException:
            self._drop()
            raise
        if abs(self.clock_offset_s) > MAX_OFFSET_S:
            text = "this host's clock differs from the database's by %.1f s; synchronize both"
            log.warning(text, self.clock_offset_s)
        return self._connection

    def _read_clock(self) -> None:
        row = self._execute("SELECT EXTRACT(EPOCH FROM clock_timestamp())::double precision")[0]
        self.clock_offset_s = row[0] - time.time()

    def _create_tables(self) -> None:
        """Create the tables, unless the last one exists: the user may not be allowed to create any."""
        if self._execute("SELECT to_regclass('chunks')")[0][0] is not None:
            return
        with self._connection.transaction():
            # Two sessions that create a table at once would fail.
            self._execute("SELECT pg_advisory_xact_lock(?)", _CREATION_LOCK)
            for statement in SCHEMA:
                self._execute(statement)

    def _execute(self, statement: str, *parameters: Any) -> list[Row]:
        # `prepare` would break behind a pooler such as PgBouncer.
        cursor = self._connection.execute(statement.replace("?", "%s"), parameters, prepare=False)
        return cursor.fetchall() if cursor.description else []

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        connection.close()

    def close(self) -> None:
        """Close the session."""
        with self._lock:
            if self._connection is not None:
                self._drop()


class PostgresConnection:
    """PostgreSQL database. A transaction connects if there is no session, so that a program starts without it."""

    def __init__(self, url: str) -> None:
        """Raise `StoreError` if the URL is invalid."""
        # Takes 0.1 s, and only hosts with PostgreSQL need it.
        import psycopg

        self._psycopg = psycopg
        with self._convert_errors():
            psycopg.conninfo.conninfo_to_dict(url)
        self._writer, self._reader = _PostgresSession(url, psycopg), _PostgresSession(url, psycopg)

    @property
    def clock_offset_s(self) -> float:
        """See `Connection`."""
        return self._writer.clock_offset_s

    def transact(self, function: Callable[[Execute], T]) -> T:
        """See `Connection`."""
        with self._convert_errors():
            return self._writer.transact(function)

    def read(self, function: Callable[[Execute], T]) -> T:
        """See `Connection`."""
        with self._convert_errors():
            return self._reader.transact(function)

    @contextlib.contextmanager
    def _convert_errors(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.Error as error:
            raise convert_error("the database of --database", error) from None

    def close(self) -> None:
        """See `Connection`."""
        self._writer.close()
        self._reader.close()


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
