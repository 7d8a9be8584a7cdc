"""Store: removal of expired files and of what killed processes have left."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from frontend.batches.errors import ForeignStoreError, StoreError
from frontend.batches.rows import File, FilePart, make_id
from frontend.batches.store import Store, open_store
from frontend.config import StoreConfig

#: Ids as those that `make_id` returns.
FILES = [make_id("file-", number, b"12345678") for number in range(3)]
BATCH = make_id("batch_", 1, b"12345678")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return an empty store."""
    return open_store(StoreConfig(data=str(tmp_path / "data")))


async def add_file(store: Store, file_id: str, expires_at: int | None) -> None:
    await store.contents.put(f"files/{file_id}", b"content")
    file = File(id=file_id, owner="", bytes=7, created_at=1, expires_at=expires_at, filename="a", purpose="batch")
    assert store.database.add_file(file, [FilePart(file_id, 0, f"files/{file_id}", 7)])


def list_names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "data/files").rglob("*") if path.is_file()}


def test_expired_files_lose_their_bytes(store: Store, tmp_path: Path) -> None:
    async def check() -> None:
        await add_file(store, FILES[1], 100)
        await add_file(store, FILES[2], None)
        assert await store.remove_expired(99) == 0
        assert await store.remove_expired(100) == 1
        assert list_names(tmp_path) == {FILES[2]}

    asyncio.run(check())


def test_old_objects_without_row_are_removed(store: Store, tmp_path: Path) -> None:
    async def check() -> None:
        await add_file(store, FILES[0], None)
        for key in (f"files/{FILES[1]}", f"batches/{BATCH}/000000-12345678-output"):
            await store.contents.put(key, b"left")
        (tmp_path / f"data/files/files/{FILES[2]}#1").touch()
        assert await store.remove_orphans() == 0
        make_old(tmp_path)
        assert await store.remove_orphans() == 3
        assert list_names(tmp_path) == {FILES[0], "vecmill-store"}

    asyncio.run(check())


def make_old(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 4000,) * 2)


@pytest.mark.parametrize(
    "key",
    [
        "vecmill.db",
        "notes.txt",
        "other/files/file-1",
        "files/notes.txt",
        f"files/{FILES[0]}.bak",
        f"files/{FILES[0]}#a",
        f"files/x/{FILES[0]}",
        "files/c#1",
        f"{FILES[0]}#1",
        f"batches/{BATCH}/notes",
        "batches/mine/000000-12345678-output",
    ],
)
def test_files_of_others_are_kept(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "shared"
    store = open_store(StoreConfig(data=str(tmp_path / "data"), file_store=str(folder)))
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    make_old(folder)
    assert asyncio.run(store.remove_orphans()) == 0
    assert path.exists()


def test_file_store_of_another_database_is_refused(tmp_path: Path) -> None:
    one, other = (
        open_store(StoreConfig(data=str(tmp_path / name), file_store=str(tmp_path / "shared")))
        for name in ("one", "other")
    )

    async def check() -> None:
        await add_file(one, FILES[0], None)
        make_old(tmp_path / "shared")
        one.check_at_start()
        for call in (asyncio.to_thread(other.check_at_start), other.check_once(), other.remove_orphans()):
            with pytest.raises(ForeignStoreError, match=r"^the file store .*/shared belongs to another database; give"):
                await call
        assert await one.remove_orphans() == 0
        assert (tmp_path / "shared/files" / FILES[0]).exists()

    asyncio.run(check())


@pytest.mark.parametrize("name", ["data", ""])
def test_file_store_around_the_database_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"^the file store .* contains the database of --data; give another folder"):
        open_store(StoreConfig(data=str(tmp_path / "data"), file_store=str(tmp_path / name)))


def test_server_starts_without_its_database(tmp_path: Path) -> None:
    store = open_store(StoreConfig(data=str(tmp_path / "data"), database="postgresql://127.0.0.1:1/name"))
    store.check_at_start()
    with pytest.raises(StoreError, match="the database of --database cannot be used"):
        asyncio.run(store.check_once())


def test_unusable_data_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"^the folder .*/file/data of --data cannot be used: .*Not a directory"):
        open_store(StoreConfig(data=str(tmp_path / "file/data")))
