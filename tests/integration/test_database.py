"""Rows of files and batches in SQLite and in a real PostgreSQL."""

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from frontend.batches import connections
from frontend.batches.connections import PostgresConnection, SqliteConnection, connect
from frontend.batches.database import Database
from frontend.batches.errors import StoreError, StoreFullError, TooManyBatchesError
from frontend.batches.rows import Batch, Chunk, File, FilePart, Purpose, make_id
from tests.harness.postgres import run_postgres

numbers = itertools.count(1)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a PostgreSQL server."""
    with run_postgres(tmp_path_factory.mktemp("postgres") / "server") as url:
        yield url


def drop_tables(url: str) -> None:
    connection = PostgresConnection(url)
    connection.transact(lambda execute: execute("DROP TABLE settings, files, parts, batches, chunks"))
    connection.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def open_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """Return a function that opens one more connection to the same, empty database."""
    opened: list[Database] = []
    url = request.getfixturevalue("postgres") if request.param == "postgresql" else ""

    def open_one() -> Database:
        opened.append(Database(connect(url, tmp_path)))
        return opened[-1]

    if url:
        drop_tables(url)
    yield open_one
    for database in opened:
        database.close()


@pytest.fixture
def database(open_database: Callable[[], Database]) -> Database:
    """Return an empty database."""
    return open_database()


def add_file(
    database: Database, owner: str = "", purpose: Purpose = "batch", expires_at: int | None = None, size: int = 10
) -> File:
    file = File(
        id=make_id("file-", next(numbers), b"12345678"), owner=owner, bytes=size, created_at=100, expires_at=expires_at,
        filename="a.jsonl", purpose=purpose,
    )  # fmt: skip
    parts = [FilePart(file.id, number, f"files/{file.id}-{number}", size // 2) for number in range(2)]
    assert database.add_file(file, parts)
    return file


def add_batch(database: Database, owner: str = "", input_file_id: str = "") -> Batch:
    batch = Batch(
        id=make_id("batch_", next(numbers), b"12345678"),
        owner=owner,
        endpoint="/v1/embeddings",
        input_file_id=input_file_id or add_file(database, owner).id,
        completion_window="24h",
        created_at=100,
        expires_at=86500,
        metadata={"name": "ü\0"},
    )
    assert database.add_batch(batch)
    return batch


def make_chunk(batch: Batch, number: int) -> Chunk:
    return Chunk(
        batch=batch.id, number=number, first_line=number * 4, end_line=number * 4 + 4, input_offset_end=9,
        output_key=f"batches/{batch.id}/{number}-output", output_bytes=30, error_bytes=2, completed=3,
        failed=1, tokens=7,
    )  # fmt: skip


def test_file_belongs_to_its_owner(database: Database) -> None:
    file = add_file(database, "key a")
    assert database.find_file(file.id, "key a", 200) == file
    assert [part.number for part in database.list_parts(file.id)] == [0, 1]
    assert database.find_file(file.id, "key b", 200) is None
    assert database.remove_file(file.id, "key b", 200) is None
    assert database.list_files("key b", 200, limit=5) == ([], False)
    assert (database.sum_bytes("key a", 200), database.sum_bytes("key b", 200)) == (10, 0)
    assert database.remove_file(file.id, "key a", 200) == [f"files/{file.id}-0", f"files/{file.id}-1"]
    assert database.find_file(file.id, "key a", 200) is None
    assert database.list_parts(file.id) == []


def test_pages_go_on_after_a_deleted_file(database: Database) -> None:
    files = [add_file(database, "key a", "batch" if number % 2 else "user_data") for number in range(6)]
    add_file(database, "key b")
    assert database.list_files("key a", 200, limit=4) == (files[:1:-1], True)
    database.remove_file(files[2].id, "key a", 200)
    assert database.list_files("key a", 200, after=files[2].id, limit=2) == (files[1::-1], False)
    assert database.list_files("key a", 200, after=files[2].id, limit=9, ascending=True) == (files[3:], False)
    assert database.list_files("key a", 200, purpose="batch", limit=9) == (files[5::-2], False)


def test_files_beyond_the_limit_are_refused(database: Database) -> None:
    file = add_file(database, "key a", size=10)
    more = msgspec.structs.replace(file, id=make_id("file-", next(numbers), b"12345678"))
    assert not database.add_file(more, [], max_stored_bytes=19)
    assert database.find_file(more.id, "key a", 200) is None
    assert database.add_file(more, [], max_stored_bytes=20)


def test_expired_file_is_removed(database: Database) -> None:
    file, kept = add_file(database, expires_at=300), add_file(database)
    assert database.find_file(file.id, "", 299) == file
    assert database.find_file(file.id, "", 300) is None
    assert database.list_files("", 300, limit=9) == ([kept], False)
    assert database.pop_expired_files(299) == []
    assert database.pop_expired_files(300) == [f"files/{file.id}-0", f"files/{file.id}-1"]
    assert database.list_parts(file.id) == []


def test_input_of_an_open_batch_is_kept(database: Database) -> None:
    expiring, deleted = add_file(database, expires_at=300), add_file(database)
    batches = [add_batch(database, input_file_id=file.id) for file in (expiring, deleted)]
    assert database.remove_file(deleted.id, "", 200) == []
    assert database.find_file(deleted.id, "", 200) is None
    assert database.remove_file(deleted.id, "", 200) is None
    assert database.pop_expired_files(400) == []
    assert len(database.list_parts(expiring.id)) == len(database.list_parts(deleted.id)) == 2
    for batch in batches:
        assert database.claim_batch("runner", 400, 30) == batch
        assert database.finish_batch(msgspec.structs.replace(batch, status="completed"), "runner")
    assert len(database.pop_expired_files(400)) == 4
    assert database.pop_expired_files(400) == []


def test_batch_needs_its_input(database: Database) -> None:
    file = add_file(database, "key a")
    batch = Batch(
        id="batch_1", owner="key b", endpoint="/v1/embeddings", input_file_id=file.id, completion_window="24h",
        created_at=100, expires_at=200,
    )  # fmt: skip
    assert not database.add_batch(batch)
    assert database.find_batch("batch_1", "key b") is None
    assert database.add_batch(msgspec.structs.replace(batch, owner="key a"))


def test_batches_are_listed_by_owner(database: Database) -> None:
    batches = [add_batch(database, "key a") for _ in range(3)]
    add_batch(database, "key b")
    assert database.list_batches("key a", limit=2) == (batches[:0:-1], True)
    assert database.list_batches("key a", after=batches[1].id, limit=2) == (batches[:1], False)
    assert database.find_batch(batches[0].id, "key a") == batches[0]
    assert database.find_batch(batches[0].id, "key b") is None


def test_oldest_free_batch_is_claimed(open_database: Callable[[], Database]) -> None:
    one, other = open_database(), open_database()
    first, second = add_batch(one), add_batch(one)
    # A second after their creation, because the clock of PostgreSQL may be late by less.
    assert one.claim_batch("one", 101, 30) == first
    assert other.claim_batch("other", 101, 30) == second
    assert one.claim_batch("one", 129, 30) is None
    assert one.renew_lease(first.id, "one", 129, 30) == first
    assert one.claim_batch("third", 132, 30) == second
    assert other.renew_lease(second.id, "other", 132, 30) is None
    one.release_lease(first.id, "other")
    assert one.claim_batch("other", 133, 30) is None
    one.release_lease(first.id, "one")
    assert other.claim_batch("other", 133, 30) == first


def test_waiting_batches_are_claimed_after_others(database: Database) -> None:
    first, second = add_batch(database), add_batch(database)
    assert database.claim_batch("runner", 200, 30) == first
    database.release_lease(first.id, "runner", 201)
    assert database.claim_batch("runner", 202, 30, deferred=[second.id]) == first
    database.release_lease(first.id, "runner", 203)
    assert database.claim_batch("runner", 204, 30) == second
    assert database.claim_batch("runner", 205, 30, ["key a"], [first.id]) is None
    cancelled = database.cancel_batch(first.id, "", 206)
    assert database.claim_batch("runner", 207, 30, [""], [first.id]) == cancelled


def test_concurrent_runners_claim_different_batches(open_database: Callable[[], Database]) -> None:
    databases = [open_database() for _ in range(4)]
    batches = [add_batch(databases[0]) for _ in range(8)]
    claimed: list[str] = []

    def claim(number: int) -> None:
        while len(claimed) < len(batches):
            if batch := databases[number].claim_batch(f"runner {number}", 100, 30):
                claimed.append(batch.id)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == [batch.id for batch in batches]


def test_chunk_is_committed_once(database: Database) -> None:
    batch = add_batch(database)
    assert not database.commit_chunk(make_chunk(batch, 0), "runner")
    assert database.claim_batch("runner", 100, 30)
    assert [database.commit_chunk(make_chunk(batch, number), "runner") for number in (0, 1, 1)] == [True, True, False]
    assert database.list_chunks(batch.id) == [make_chunk(batch, 0), make_chunk(batch, 1)]
    found = database.find_batch(batch.id, "")
    assert found is not None
    assert (found.completed, found.failed, found.input_tokens) == (6, 2, 14)


def test_bytes_of_open_batches_count(database: Database) -> None:
    file = add_file(database, "key a", expires_at=300)
    batch = add_batch(database, "key a", file.id)
    assert database.remove_file(file.id, "key a", 200) == []
    # The open batch keeps its input, also if it is deleted or has expired.
    assert database.sum_bytes("key a", 200) == database.sum_bytes("key a", 400) == 10
    assert database.claim_batch("runner", 200, 30)
    assert database.commit_chunk(make_chunk(batch, 0), "runner")
    assert (database.sum_bytes("key a", 200), database.sum_bytes("key b", 200)) == (42, 0)
    output = msgspec.structs.replace(file, id="file-output", expires_at=None, bytes=32)
    assert database.finish_batch(msgspec.structs.replace(batch, status="completed"), "runner", [(output, [])])
    assert database.sum_bytes("key a", 200) == 32


def test_open_batches_are_limited(database: Database) -> None:
    first, second = add_batch(database, "key a"), add_batch(database, "key a")
    more = msgspec.structs.replace(second, id=make_id("batch_", next(numbers), b"12345678"))
    with pytest.raises(TooManyBatchesError):
        database.add_batch(more, max_open=2)
    assert database.count_open() == {"validating": 2, "in_progress": 0, "finalizing": 0, "cancelling": 0}
    add_batch(database, "key b")
    database.cancel_batch(second.id, "key a", 110)
    assert database.count_open() == {"validating": 2, "in_progress": 0, "finalizing": 0, "cancelling": 1}
    assert database.claim_batch("runner", 200, 30, ["key b"])
    assert database.claim_batch("runner", 200, 30, ["key b"])
    assert database.finish_batch(msgspec.structs.replace(first, status="completed"), "runner")
    assert database.add_batch(more, max_open=2)


def test_old_batches_are_removed(database: Database) -> None:
    batches = [
        msgspec.structs.replace(add_batch(database), id=make_id("batch_", seconds * 10**9, b"12345678"))
        for seconds in (100, 200, 300)
    ]
    for batch in batches:
        assert database.add_batch(batch)
    while found := database.claim_batch("runner", 200, 30):
        if found.id != batches[0].id:
            assert database.finish_batch(msgspec.structs.replace(found, status="completed"), "runner")
    database.release_lease(batches[0].id, "runner")
    assert database.remove_batches(0.0) == 0
    # Three have ids of the first second.
    assert database.remove_batches(300.0) == 4
    assert database.find_batch(batches[1].id, "") is None
    assert database.find_batch(batches[0].id, "")
    assert database.find_batch(batches[2].id, "")


def test_lost_lease_changes_nothing(database: Database) -> None:
    batch = add_batch(database)
    assert database.claim_batch("old", 100, 30)
    assert database.claim_batch("new", 131, 30)
    batch.status = "completed"
    assert not database.save_batch(batch, "old")
    assert not database.commit_chunk(make_chunk(batch, 0), "old")
    assert not database.finish_batch(batch, "old", [(add_file(database), [])])
    found = database.find_batch(batch.id, "")
    assert found is not None
    assert (found.status, found.completed) == ("validating", 0)


def test_cancellation_survives_the_runner(database: Database) -> None:
    batch = add_batch(database, "key a")
    assert database.claim_batch("runner", 100, 30)
    assert database.cancel_batch(batch.id, "key b", 110) is None
    cancelled = database.cancel_batch(batch.id, "key a", 110)
    assert cancelled is not None
    assert (cancelled.status, cancelled.cancelling_at) == ("cancelling", 110)
    assert database.save_batch(msgspec.structs.replace(batch, status="in_progress", total=8), "runner")
    renewed = database.renew_lease(batch.id, "runner", 111, 30)
    assert renewed is not None
    assert (renewed.status, renewed.total, renewed.cancelling_at) == ("cancelling", 8, 110)
    assert database.finish_batch(msgspec.structs.replace(renewed, status="cancelled", cancelled_at=112), "runner")
    again = database.cancel_batch(batch.id, "key a", 120)
    assert again is not None
    assert (again.status, again.cancelling_at) == ("cancelled", 110)


def test_batch_that_completes_while_it_is_cancelled_ends_as_cancelled(database: Database) -> None:
    """The runner, whose row still has the status `completed`, gets the row as it was saved."""
    batch = add_batch(database)
    assert database.claim_batch("runner", 100, 30)
    assert database.cancel_batch(batch.id, "", 110)
    ended = database.finish_batch(msgspec.structs.replace(batch, status="completed", completed_at=112), "runner")
    assert ended == database.find_batch(batch.id, "")
    assert ended is not None
    assert (ended.status, ended.cancelled_at, ended.completed_at) == ("cancelled", 112, None)


def test_finished_batch_has_its_files(database: Database) -> None:
    batch = add_batch(database)
    assert database.claim_batch("runner", 100, 30)
    assert database.commit_chunk(make_chunk(batch, 0), "runner")
    key = f"batches/{batch.id}/0-output"
    assert database.find_unused_keys([key, "batches/batch_other/0-output", "files/x"]) == {
        "batches/batch_other/0-output",
        "files/x",
    }
    output = File(id="file-output", owner="", bytes=5, created_at=100, filename="output.jsonl", purpose="batch_output")
    ended = msgspec.structs.replace(batch, status="completed", output_file_id=output.id)
    assert database.finish_batch(ended, "runner", [(output, [FilePart(output.id, 0, key, 5)])])
    assert database.find_file(output.id, "", 200) == output
    assert database.list_parts(output.id) == [FilePart(output.id, 0, key, 5)]
    assert database.list_chunks(batch.id) == []
    assert database.claim_batch("runner", 500, 30) is None
    assert database.renew_lease(batch.id, "runner", 500, 30) is None
    assert database.find_unused_keys([key, f"batches/{batch.id}/1-output"]) == {f"batches/{batch.id}/1-output"}


def test_failed_transaction_commits_nothing(database: Database) -> None:
    file = add_file(database)
    again = msgspec.structs.replace(file, id="file-2")
    with pytest.raises(StoreError, match="cannot be used"):
        database.add_file(again, [FilePart("file-2", 0, "key", 1)] * 2)
    assert database.find_file("file-2", "", 200) is None
    assert database.list_parts("file-2") == []
    assert database.find_file(file.id, "", 200) == file


def test_tables_are_created_after_a_failure(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drop_tables(postgres)
    one, other = Database(PostgresConnection(postgres)), Database(PostgresConnection(postgres))
    with monkeypatch.context() as broken:
        broken.setattr(connections, "SCHEMA", (*connections.SCHEMA, "CREATE nothing"))
        with pytest.raises(StoreError, match="syntax error"):
            one.sum_bytes("", 100)
    add_file(one)
    # A user who may not create tables can use those that exist.
    monkeypatch.setattr(connections, "SCHEMA", ("CREATE nothing",))
    assert other.sum_bytes("", 100) == 10
    for database in (one, other):
        database.close()


def test_silent_server_is_given_up(postgres: str) -> None:
    connection = PostgresConnection(f"{postgres}{'&' if '?' in postgres else '?'}keepalives_idle=7")
    shown = connection.transact(lambda execute: execute("SHOW statement_timeout"))
    assert shown == [("15s",)]
    parameters = connection._writer._connection.info.get_parameters()
    assert (parameters["tcp_user_timeout"], parameters["keepalives_idle"]) == ("10000", "7")
    connection.close()


def test_clocks_of_hosts_may_differ(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Database(PostgresConnection(postgres)), Database(PostgresConnection(postgres))
    batch = add_batch(one)
    while (claimed := one.claim_batch("one", time.time(), 6)) and claimed.id != batch.id:
        pass
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 100)
    other.count_open()
    other.keep_setting("a", "b")
    assert other.claim_batch("other", time.time(), 6) is None
    assert one.renew_lease(batch.id, "one", time.time() - 100, 6)
    for database in (one, other):
        database.close()


def test_lost_connection_is_opened_again(postgres: str) -> None:
    connection, other = PostgresConnection(postgres), PostgresConnection(postgres)
    database = Database(connection)
    file = add_file(database)
    statement = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
    )
    other.transact(lambda execute: execute(statement))
    assert database.find_file(file.id, "", 200) == file
    for one in (connection, other):
        one.close()


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("mysql://host/name", r"^--database begins with 'mysql'; give postgresql://USER@HOST/NAME, or leave it empty$"),
        ("postgresql://host/name?x=1", "^the database of --database cannot be used: invalid URI query parameter"),
    ],
)
def test_unusable_database_is_named(url: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=text):
        connect(url, tmp_path)


def test_missing_server_is_named(tmp_path: Path) -> None:
    database = Database(connect("postgresql://127.0.0.1:1/name", tmp_path))
    with pytest.raises(StoreError, match=r"^the database of --database cannot be used: connection failed"):
        database.find_file("file-1", "", 200)


def test_full_disk_ends_the_transaction(tmp_path: Path) -> None:
    connection = SqliteConnection(tmp_path / "vecmill.db")
    database = Database(connection)
    file = add_file(database)
    pages = connection.transact(lambda execute: execute("PRAGMA page_count"))[0][0]
    connection.transact(lambda execute: execute(f"PRAGMA max_page_count = {pages}"))
    large = msgspec.structs.replace(file, id="file-2", filename="x" * 100_000)
    with pytest.raises(StoreFullError, match=r"vecmill.db is full: database or disk is full; make space$"):
        database.add_file(large, [])
    assert database.find_file(file.id, "", 200) == file
    connection.transact(lambda execute: execute(f"PRAGMA max_page_count = {pages + 1000}"))
    assert database.add_file(large, [])
    database.close()


def test_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "vecmill.db").write_text("not a database" * 1000)
    with pytest.raises(StoreError, match=r"vecmill.db cannot be used: file is not a database$"):
        connect("", tmp_path)


def test_readers_do_not_wait_for_writers(tmp_path: Path) -> None:
    database = Database(connect("", tmp_path))
    file = add_file(database)
    other = sqlite3.connect(tmp_path / "vecmill.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writer = threading.Thread(target=add_file, args=(database,))
    writer.start()
    assert database.find_file(file.id, "", 200) == file
    assert database.list_files("", 200, limit=5) == ([file], False)
    assert writer.is_alive()
    other.execute("COMMIT")
    writer.join()
    other.close()
    database.close()


def test_sqlite_waits_for_another_process(tmp_path: Path) -> None:
    database = Database(connect("", tmp_path))
    other = sqlite3.connect(tmp_path / "vecmill.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.1, lambda: other.execute("COMMIT"))
    timer.start()
    add_file(database)
    timer.join()
    other.close()
    database.close()
