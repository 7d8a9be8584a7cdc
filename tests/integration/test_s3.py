"""Files in a real S3 server: through the file store, and over HTTP."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from frontend.batches import batch_run
from frontend.batches import contents as module
from frontend.batches.contents import Contents, open_contents
from frontend.batches.errors import ForeignStoreError, StoreError, TooLargeError
from frontend.batches.rows import FilePart
from frontend.batches.store import open_store
from frontend.config import StoreConfig
from tests.harness.batches import Bench, FakeBroker, line
from tests.harness.processes import Cluster, until
from tests.harness.s3 import BUCKET, run_s3

KEY, CHUNK_KEY = "files/file-" + "0" * 32, f"batches/batch_{'0' * 32}/000000-12345678-output"
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the variables of a server."""
    with run_s3(tmp_path_factory.mktemp("s3") / "server") as variables:
        yield variables


@pytest.fixture
def contents(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Contents:
    """Return a file store with a prefix of its own."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return open_contents(f"s3://{BUCKET}/{tmp_path.name}", tmp_path)


async def list_keys(contents: Contents) -> list[str]:
    return sorted([key async for keys in contents.list_old_keys(-60) for key in keys])


def run(function: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await function()

    asyncio.run(main())


def test_object_is_stored_and_read(contents: Contents) -> None:
    async def check() -> None:
        blocks = [os.urandom(700_000) for _ in range(10)]
        async with contents.upload(KEY, 10_000_000) as upload:
            for block in blocks:
                await upload.write(block)
        await contents.put(CHUNK_KEY, b"x" * 9)
        parts = [FilePart("a", 0, KEY, 7_000_000), FilePart("a", 1, CHUNK_KEY, 9)]
        whole = b"".join(blocks) + b"x" * 9
        assert b"".join([block async for block in contents.read_range(parts)]) == whole
        assert (
            b"".join([block async for block in contents.read_range(parts, 6_999_990, 7_000_003)]) == whole[6_999_990:-6]
        )
        assert await list_keys(contents) == [CHUNK_KEY, KEY]
        await contents.delete([KEY, CHUNK_KEY, "files/none"])
        assert await list_keys(contents) == []

    run(check)


@pytest.mark.parametrize("stalls", [False, True])
def test_broken_answers_are_continued(
    variables: dict[str, str], contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stalls: bool
) -> None:
    """Read through a proxy that ends each answer, or stops to send it, after 600 kB."""
    answers: list[int] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = int(variables["AWS_ENDPOINT"].rpartition(":")[2])
        server, to_server = await asyncio.open_connection("127.0.0.1", port)
        try:
            to_server.write(await reader.readuntil(b"\r\n\r\n"))
            answers.append(0)
            while answers[-1] < 600_000 and (block := await server.read(50_000)):
                answers[-1] += len(block)
                writer.write(block)
                await writer.drain()
            if stalls:
                await reader.read()
        finally:
            to_server.close()
            writer.close()

    async def check() -> None:
        content = os.urandom(2_000_000)
        await contents.put(KEY, content)
        proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
        through = open_contents(f"s3://{BUCKET}/{tmp_path.name}", tmp_path)
        assert b"".join([block async for block in through.read_range([FilePart("a", 0, KEY, len(content))])]) == content
        assert len(answers) >= 4
        proxy.close()

    # obstore itself continues a body only soon after its request.
    monkeypatch.setattr(module, "_RETRIES", module._RETRIES | {"max_retries": 0})
    monkeypatch.setattr(module, "_TIMEOUTS", module._TIMEOUTS | {"read_timeout": timedelta(seconds=0.3)})
    run(check)


def test_failed_upload_leaves_no_object(contents: Contents) -> None:
    async def fail() -> None:
        async with contents.upload(KEY, 20_000_000) as upload:
            for _ in range(12):
                await upload.write(b"x" * 1_000_000)
            raise ZeroDivisionError

    async def check() -> None:
        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await list_keys(contents) == []

    run(check)


def test_upload_beyond_the_limit_leaves_no_object(contents: Contents) -> None:
    async def fail() -> None:
        async with contents.upload(KEY, 8_000_000) as upload:
            for _ in range(12):
                await upload.write(b"x" * 1_000_000)

    async def check() -> None:
        with pytest.raises(TooLargeError):
            await fail()
        assert await list_keys(contents) == []

    run(check)


def test_leftovers_are_removed(variables: dict[str, str], contents: Contents, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/{tmp_path.name}"
    one, other = (open_store(StoreConfig(data=str(tmp_path / name), file_store=url)) for name in ("one", "other"))

    async def check() -> None:
        await contents.put(KEY, b"left")
        await contents.put("files/notes.txt", b"of others")
        assert await one.remove_orphans(3600) == 0
        with pytest.raises(ForeignStoreError, match=f"^the file store {url} belongs to another database"):
            await other.remove_orphans(-60)
        assert await list_keys(contents) == [KEY]
        assert await one.remove_orphans(-60) == 1
        assert await list_keys(contents) == []
        assert b"".join([block async for block in contents.read_range([FilePart("a", 0, "files/notes.txt", 9)])])

    run(check)


def test_batch_runs_in_s3(
    variables: dict[str, str], contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "FIRST_PART_LINES", 4)
    bench = Bench(tmp_path, file_store=f"s3://{BUCKET}/{tmp_path.name}")

    async def check() -> None:
        bench.broker = FakeBroker()
        batch = await bench.add([line(str(number), f"text {number}") for number in range(10)])
        await bench.claim("0123456789abcdef").run()
        row = bench.find(batch)
        assert (row.status, row.completed) == ("completed", 10)
        assert [one["custom_id"] for one in await bench.read(row.output_file_id)] == [*map(str, range(10))]
        # The input and three chunks, all with keys that Vecmill makes.
        assert len(await list_keys(contents)) == 4

    run(check)


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ENDPOINT", "http://127.0.0.1:1")]
)
def test_unusable_server_is_named(
    contents: Contents, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/x"
    other = open_contents(url, tmp_path)

    async def check() -> None:
        with pytest.raises(StoreError, match=f"^the file store {url} cannot be used: "):
            await other.put(KEY, b"x")

    run(check)


def test_files_are_served_from_s3(cluster: Cluster, variables: dict[str, str]) -> None:
    flags = ("--data", str(cluster.folder / "data"), "--file-store", f"s3://{BUCKET}/served")
    cluster.broker()
    cluster.frontend(*flags, environ=variables)
    until(lambda: cluster.health().get("broker") == "connected", what="the frontend")
    content = os.urandom(6_000_000)
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
    field = b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b--\r\n'
    file = httpx.post(f"{cluster.url}/v1/files", content=head + content + field, headers=FORM, timeout=30).json()
    url = f"{cluster.url}/v1/files/{file['id']}"
    assert httpx.get(f"{url}/content", timeout=30).content == content
    assert httpx.get(f"{url}/content", headers={"Range": "bytes=-5"}).content == content[-5:]
    assert httpx.delete(url).json()["deleted"]
    assert httpx.get(f"{url}/content").status_code == 404
    assert not (cluster.folder / "data/files").exists()
