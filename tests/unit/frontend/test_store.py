"""Store: removal of expired files and of what killed processes have left."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from frontend.batches.errors import StoreError
from frontend.batches.rows import File, FilePart
from frontend.batches.store import Store, open_store
from frontend.config import StoreConfig


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
        await add_file(store, "file-1", 100)
        await add_file(store, "file-2", None)
        assert await store.remove_expired(99) == 0
        assert await store.remove_expired(100) == 1
        assert list_names(tmp_path) == {"file-2"}

    asyncio.run(check())


def test_old_objects_without_row_are_removed(store: Store, tmp_path: Path) -> None:
    async def check() -> None:
        await add_file(store, "file-1", None)
        for key in ("files/file-2", "batches/batch_1/0-output"):
            await store.contents.put(key, b"left")
        (tmp_path / "data/files/files/file-3#1").touch()
        assert await store.remove_orphans() == 0
        for path in (tmp_path / "data/files").rglob("*"):
            os.utime(path, (time.time() - 4000,) * 2)
        assert await store.remove_orphans() == 3
        assert list_names(tmp_path) == {"file-1"}

    asyncio.run(check())


def test_unusable_data_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"^the folder .*/file/data of --data cannot be used: .*Not a directory"):
        open_store(StoreConfig(data=str(tmp_path / "file/data")))
