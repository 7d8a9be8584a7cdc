"""File store in a local folder: objects are complete or missing, and files are read in ranges and lines."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import obstore
import pytest

from frontend.batches import contents as module
from frontend.batches.contents import Contents, open_contents
from frontend.batches.errors import StoreError, StoreFullError, TooLargeError, convert_error
from frontend.batches.rows import FilePart


def run(tmp_path: Path, function: Callable[[Contents], Awaitable[None]]) -> None:
    async def main() -> None:
        await function(open_contents("", tmp_path))

    asyncio.run(main())


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def put_parts(contents: Contents, *texts: bytes) -> list[FilePart]:
    parts = [FilePart("file-1", number, f"batches/b/{number}-output", len(text)) for number, text in enumerate(texts)]
    for part, text in zip(parts, texts, strict=True):
        await contents.put(part.key, text)
    return parts


async def read(contents: Contents, parts: Sequence[FilePart], *bounds: int) -> bytes:
    return b"".join([block async for block in contents.read_range(parts, *bounds)])


async def upload_blocks(contents: Contents, blocks: Sequence[bytes], max_bytes: int, *, fails: bool = False) -> None:
    async with contents.upload("files/a", max_bytes) as upload:
        for block in blocks:
            await upload.write(block)
        if fails:
            raise ZeroDivisionError


def test_upload_is_written_in_blocks(tmp_path: Path) -> None:
    async def check(contents: Contents) -> None:
        blocks = [os.urandom(700_000) for _ in range(9)]
        async with contents.upload("files/a", 7_000_000) as upload:
            for block in blocks:
                await upload.write(block)
            assert not (tmp_path / "files/files/a").exists()
        assert (tmp_path / "files/files/a").read_bytes() == b"".join(blocks)

    run(tmp_path, check)


@pytest.mark.parametrize("blocks", [[], [b"x" * 6_000_000], [b"x"] * 3])
def test_failed_upload_leaves_no_file(tmp_path: Path, blocks: list[bytes]) -> None:
    async def check(contents: Contents) -> None:
        with pytest.raises(ZeroDivisionError):
            await upload_blocks(contents, blocks, 7_000_000, fails=True)
        assert list_files(tmp_path) == []

    run(tmp_path, check)


def test_cancelled_upload_leaves_no_file(tmp_path: Path) -> None:
    async def check(contents: Contents) -> None:
        written = asyncio.Event()

        async def upload_slowly() -> None:
            async with contents.upload("files/a", 7_000_000) as upload:
                await upload.write(b"x" * 6_000_000)
                written.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(upload_slowly())
        await written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list_files(tmp_path) == []

    run(tmp_path, check)


def test_too_large_upload_is_refused(tmp_path: Path) -> None:
    async def check(contents: Contents) -> None:
        with pytest.raises(TooLargeError):
            await upload_blocks(contents, [b"x" * 6, b"x" * 5], 10)
        assert list_files(tmp_path) == []

    run(tmp_path, check)


def test_store_that_fails_ends_the_upload(tmp_path: Path) -> None:
    async def check(contents: Contents) -> None:
        (tmp_path / "files/files").write_text("a file in place of the folder")
        with pytest.raises(StoreError, match=r"^the file store .*/files cannot be used: "):
            await upload_blocks(contents, [b"x" * 100_000] * 100, 10_000_000)
        with pytest.raises(StoreError, match="cannot be used"):
            await contents.put("files/b", b"x")

    run(tmp_path, check)


@pytest.mark.parametrize(
    "text",
    [
        "Generic LocalFileSystem error: No space left on device (os error 28)\n\nDebug source",
        "database or disk is full",
        'could not extend file "base/1": No space left on device',
    ],
)
def test_full_disk_is_named(text: str) -> None:
    error = convert_error("the store", RuntimeError(text))
    assert isinstance(error, StoreFullError)
    assert str(error) == f"the store is full: {text.splitlines()[0]}; make space"
    assert type(convert_error("the store", RuntimeError("gone"))) is StoreError


def test_ranges_span_parts(tmp_path: Path) -> None:
    async def check(contents: Contents) -> None:
        texts = [b"0123", b"", b"45", b"6789"]
        parts, whole = await put_parts(contents, *texts), b"".join(texts)
        for start in range(11):
            assert await read(contents, parts, start) == whole[start:]
            for end in range(start, 11):
                assert await read(contents, parts, start, end) == whole[start:end]

    run(tmp_path, check)


def test_missing_object_is_an_error(tmp_path: Path) -> None:
    async def check(contents: Contents) -> None:
        parts = await put_parts(contents, b"0123")
        (tmp_path / "files" / parts[0].key).write_bytes(b"01")
        with pytest.raises(StoreError, match=r"has less of a file than was written; restore it from a backup$"):
            await read(contents, parts)
        await contents.delete([parts[0].key, parts[0].key])
        with pytest.raises(StoreError, match="has less of a file"):
            await read(contents, parts)

    run(tmp_path, check)


@pytest.mark.parametrize(("blocks", "complete"), [(0, False), (1, True), (2, True)])
def test_broken_read_goes_on_after_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int, complete: bool
) -> None:
    real, requested = obstore.get_async, []

    async def get_async(store: object, key: str, options: Any) -> object:
        requested.append(options["range"])
        assert len(requested) < 20
        found = await real(store, key, options=options)  # type: ignore[arg-type]

        async def stream(min_chunk_size: int) -> AsyncIterator[bytes]:
            for byte in bytes(await found.bytes_async())[:blocks]:
                yield bytes([byte])
            raise obstore.exceptions.GenericError("the body has ended early")

        return SimpleNamespace(stream=stream)

    async def check(contents: Contents) -> None:
        parts = await put_parts(contents, b"0123", b"456789")
        if complete:
            assert await read(contents, parts, 1, 9) == b"12345678"
            rests = [[(first, end) for first in range(start, end, blocks)] for start, end in ((1, 4), (0, 5))]
            assert requested == rests[0] + rests[1]
        else:
            with pytest.raises(StoreError, match="the body has ended early"):
                await read(contents, parts)

    monkeypatch.setattr(obstore, "get_async", get_async)
    run(tmp_path, check)


@pytest.mark.parametrize("block_bytes", [1, 3, 1000])
def test_lines_are_read_from_an_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    async def check(contents: Contents) -> None:
        texts = [b"ab\r\n\ncd", b"e\nlonger than ten\n", b"too long here\nend"]
        parts, whole = await put_parts(contents, *texts), b"".join(texts)
        lines = [line async for line in contents.read_lines(parts, max_line_bytes=10)]
        assert [line.content for line in lines] == [b"ab\r", b"", b"cde", None, None, b"end"]
        assert [whole[line.end - 1 : line.end] for line in lines] == [b"\n"] * 5 + [b"d"]
        for number, line in enumerate(lines):
            rest = [other async for other in contents.read_lines(parts, line.end, max_line_bytes=10)]
            assert rest == lines[number + 1 :]

    monkeypatch.setattr(module, "READ_BYTES", block_bytes)
    run(tmp_path, check)


def test_leftovers_are_found_by_age(tmp_path: Path) -> None:
    async def check(contents: Contents) -> None:
        batch = "batches/batch_" + "0" * 32
        keys = [f"{batch}/{number:06}-12345678-output" for number in range(3)]
        for key in keys[:2]:
            await contents.put(key, b"x")
        old, unfinished = tmp_path / "files" / keys[0], tmp_path / f"files/{keys[2]}#1"
        unfinished.touch()
        for path in (old, unfinished):
            os.utime(path, (time.time() - 100,) * 2)
        assert [key async for keys in contents.list_old_keys(50) for key in keys] == keys[:1]
        assert (contents.remove_unfinished(200), contents.remove_unfinished(50)) == (0, 1)
        assert list_files(tmp_path) == [f"files/{key}" for key in keys[:2]]
        await contents.delete(keys[:2])
        assert list(tmp_path.rglob("*")) == [tmp_path / "files"]

    run(tmp_path, check)


def test_new_folders_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(module, "sync_path", lambda path: synced.append(str(path.relative_to(tmp_path))))

    async def check(contents: Contents) -> None:
        await contents.put("batches/b/0-output", b"x")

    run(tmp_path, check)
    assert synced == [".", *(f"files{name}" for name in ("/batches/b/0-output", "/batches/b", "/batches", ""))]


@pytest.mark.parametrize("left", [None, b""])
def test_identity_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bytes | None) -> None:
    contents, synced = open_contents("", tmp_path), []
    identity = tmp_path / "files/vecmill-store"
    if left is not None:
        # What a power cut leaves of a file that was not synced.
        identity.write_bytes(left)
    monkeypatch.setattr(module, "sync_path", lambda path: synced.append((path, identity.read_text())))
    assert contents.identify("first") == "first"
    assert synced == [(identity, "first"), (tmp_path / "files", "first")]
    assert contents.identify("second") == "first"
    assert len(synced) == 2


@pytest.mark.parametrize("url", ["gs://bucket/prefix", "https://host/prefix"])
def test_other_store_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(StoreError, match=f"^--file-store is '{url}'; give a folder or s3://BUCKET/PREFIX$"):
        open_contents(url, tmp_path)
