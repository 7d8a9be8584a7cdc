"""Uploads with a slow file store, and with a database that fails. No test opens a connection."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sanic import Request
from sanic.compat import Header

from frontend.api.errors import ApiError
from frontend.batches.contents import Contents
from frontend.batches.errors import StoreError, StoreFullError
from frontend.batches.rows import File, FilePart
from frontend.batches.store import Store, open_store
from frontend.config import Config, StoreConfig
from frontend.rest.routes import files
from frontend.rest.upload_slots import SLOW_AGE_S, UploadSlots
from frontend.rest.uploads import Received, Uploads

HEAD = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
HEAD += b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
PARTS = [HEAD + b"{}", b"{}", b"\r\n--b--\r\n"]


class Body:
    """Body that arrives in parts, in place of Sanic's stream."""

    request_bytes_left = None
    keep_alive, request_body, expecting_continue = True, True, False

    def __init__(self, parts: Sequence[bytes]) -> None:
        self.parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        for part in parts:
            self.parts.put_nowait(part)

    async def read(self) -> bytes | None:
        return await self.parts.get()


def make_request(body: Body, **context: Any) -> Request:
    headers = Header({"content-type": "multipart/form-data; boundary=b"})
    app, ctx = SimpleNamespace(ctx=SimpleNamespace(**context)), SimpleNamespace(key=None, log={})
    return cast(Request, SimpleNamespace(headers=headers, stream=body, app=app, ctx=ctx, ip="address"))


class SlowContents:
    """File store that takes a block when `ready` is set. `writing` is set while a block waits."""

    def __init__(self) -> None:
        self.ready, self.writing = asyncio.Event(), asyncio.Event()
        self.bytes = 0
        #: Called at each block.
        self.before: Callable[[], None] = lambda: None

    @contextlib.asynccontextmanager
    async def upload(self, *_: object) -> AsyncIterator["SlowContents"]:
        yield self

    async def write(self, block: bytes) -> None:
        self.bytes += len(block)
        self.before()
        self.writing.set()
        await self.ready.wait()


def test_upload_that_waits_for_the_store_goes_on() -> None:
    async def check() -> None:
        now, contents, uploads, body = [0.0], SlowContents(), Uploads(Config()), Body(PARTS[:2])
        uploads._slots = slots = UploadSlots(1, lambda: now[0])
        upload = asyncio.create_task(
            uploads.receive(make_request(body), cast(Contents, contents), "files/a", "slow client")
        )
        await contents.writing.wait()
        now[0] += SLOW_AGE_S + 1
        with pytest.raises(ApiError, match=r"^too many files are uploaded at once; send this one again$"):
            slots.open("new client")
        contents.ready.set()
        body.parts.put_nowait(PARTS[2])
        body.parts.put_nowait(None)
        assert (await upload).bytes == 4
        slots.open("new client")

    asyncio.run(check())


def test_upload_that_waits_for_its_client_makes_room() -> None:
    async def check() -> None:
        now, contents, uploads, body = [0.0], SlowContents(), Uploads(Config()), Body(PARTS[:1])
        contents.ready.set()
        uploads._slots = slots = UploadSlots(1, lambda: now[0])
        upload = asyncio.create_task(
            uploads.receive(make_request(body), cast(Contents, contents), "files/a", "slow client")
        )
        await contents.writing.wait()
        # The task waits for the next part after the turns in which it takes the first.
        while not next(iter(slots._open)).waiting:
            await asyncio.sleep(0)
        now[0] += SLOW_AGE_S + 1
        slots.open("new client")
        with pytest.raises(ApiError, match="arrives the most slowly"):
            await upload

    asyncio.run(check())


def test_slow_store_is_not_the_clients_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        contents, loop, config = SlowContents(), asyncio.get_running_loop(), Config()
        contents.ready.set()
        real, offset_s = loop.time, [0.0]
        monkeypatch.setattr(loop, "time", lambda: real() + offset_s[0])

        def pass_time() -> None:
            offset_s[0] += config.body_timeout_s + 1

        contents.before = pass_time
        body = Body([])
        upload = asyncio.create_task(
            Uploads(config).receive(make_request(body), cast(Contents, contents), "files/a", "client")
        )
        for part in (*PARTS, None):
            body.parts.put_nowait(part)
            while not (body.parts.empty() or upload.done()):
                await asyncio.sleep(0)
        assert (await upload).bytes == 4

    asyncio.run(check())


# --- failing database ------------------------------------------------------------------------------------------------


class PutUploads:
    """Uploads that have arrived."""

    async def receive(self, _: Request, contents: Contents, key: str, __: str) -> Received:
        await contents.put(key, b"{}")
        form = SimpleNamespace(expires_after_s=None, filename="a.jsonl", purpose="batch")
        return Received(form, 2)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return an empty store."""
    return open_store(StoreConfig(data=str(tmp_path / "data")))


async def upload_file(store: Store) -> None:
    await files.create_file(make_request(Body([]), config=Config(), uploads=PutUploads(), store=store))


def list_objects(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "data/files/files").glob("*")]


def test_file_of_an_unacknowledged_commit_keeps_its_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_file = store.database.add_file

    def lose_connection(file: File, parts: Sequence[FilePart], max_bytes: int) -> bool:
        add_file(file, parts, max_bytes)
        raise StoreError("the connection has ended")

    monkeypatch.setattr(store.database, "add_file", lose_connection)
    with pytest.raises(StoreError, match="the connection has ended"):
        asyncio.run(upload_file(store))
    (file,), _ = store.database.list_files("", time.time(), limit=2)
    assert list_objects(tmp_path) == [file.id]


@pytest.mark.parametrize(("error", "count"), [(StoreError, 1), (StoreFullError, 0)])
def test_file_without_row_is_removed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[StoreError], count: int
) -> None:
    def fail(*_: object) -> bool:
        raise error("the database has failed")

    monkeypatch.setattr(store.database, "add_file", fail)
    with pytest.raises(error, match="the database has failed"):
        asyncio.run(upload_file(store))
    assert len(list_objects(tmp_path)) == count
    # What is left is found later.
    assert asyncio.run(store.remove_orphans(-60)) == count
    assert list_objects(tmp_path) == []
