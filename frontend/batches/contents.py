"""Bytes of files in a local folder or in S3, through obstore. Methods run on the event loop.

An object never changes; a write that failed may be repeated with the same content. An object is complete or missing:
S3 and obstore's folders put it into place at the end.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import obstore
from obstore.store import LocalStore, from_url

from broker.shared.files import sync_path
from frontend.batches.errors import MissingContentError, StoreError, TooLargeError, convert_error
from frontend.batches.rows import FilePart, is_key, is_unfinished_key

#: Bytes of one part of an upload to S3, whose parts have at least 5 MiB, and parts that are sent at a time.
_PART_BYTES, _PARTS_AT_ONCE = 5 * 1024 * 1024, 2
#: Retries of a request to S3. The default is 180 s, for which a client of this server would wait.
_RETRIES: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=15)}
#: Limits on a request to S3: on the wait for its answer and on each pause in the answer, and on the whole request. A
#: client may read a file for hours; obstore's default for the whole request is 30 s.
_TIMEOUTS: Any = {"read_timeout": timedelta(seconds=120), "timeout": timedelta(days=1)}
#: Folders of all objects but that of the identity, and its key.
_FOLDERS, _IDENTITY_KEY = ("files", "batches"), "vecmill-store"
#: Bytes that are read at a time.
READ_BYTES = 256 * 1024


class Line(NamedTuple):
    """Line of a file."""

    #: Without the line end; None if the line is longer than allowed.
    content: bytes | None
    #: Offset in the file after the line and its end.
    end: int


class Upload:
    """Object that is being written. `bytes` is its size so far."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._blocks: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(1)
        self.putting: asyncio.Future[Any] | None = None

    async def write(self, block: bytes) -> None:
        """Append bytes. Raise `TooLargeError` if the object would exceed its limit."""
        self.bytes += len(block)
        if self.bytes > self._max_bytes:
            raise TooLargeError
        if block:
            await self.send(block)

    async def send(self, block: bytes | Exception | None) -> None:
        """Hand a block, the reason to stop, or the end (None) to obstore. Return at once if obstore has failed."""
        assert self.putting
        waiting = asyncio.ensure_future(self._blocks.put(block))
        try:
            await asyncio.wait((waiting, self.putting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self.putting.done():
            self.putting.result()

    async def list_blocks(self) -> AsyncIterator[bytes]:
        """Yield the blocks for obstore, which removes what it has written if this method raises, but not otherwise."""
        while (block := await self._blocks.get()) is not None:
            if isinstance(block, Exception):
                raise block
            yield block


class _AbortedError(Exception):
    """An upload has ended early."""


class Contents:
    """File store. All methods raise `StoreError` if it cannot be used."""

    def __init__(self, store: Any, folder: Path | None, name: str) -> None:
        """`folder` is the folder of a local store, and `name` is the store's name in errors."""
        self._store = store
        self._folder = folder
        #: For messages.
        self.name = name

    # --- writing -----------------------------------------------------------------------------------------------------

    async def put(self, key: str, content: bytes) -> None:
        """Write an object. It is on the disk when this method returns."""
        with self._convert_errors():
            await obstore.put_async(self._store, key, content, use_multipart=False)
            await self._sync(key)

    @contextlib.asynccontextmanager
    async def upload(self, key: str, max_bytes: int) -> AsyncIterator[Upload]:
        """Write an object in blocks. It exists after the context has ended, but not if the context raises.

        Memory is bounded: `Upload.write` waits until the store has taken the previous blocks.
        """
        upload = Upload(max_bytes)
        with self._convert_errors():
            upload.putting = asyncio.ensure_future(
                obstore.put_async(
                    self._store,
                    key,
                    upload.list_blocks(),
                    chunk_size=_PART_BYTES,
                    max_concurrency=_PARTS_AT_ONCE,
                )
            )
            try:
                yield upload
                await upload.send(None)
                await upload.putting
                await self._sync(key)
            except BaseException:
                await self._abort(key, upload)
                raise

    async def _abort(self, key: str, upload: Upload) -> None:
        """End an upload, and remove what it has written, also if the caller is cancelled meanwhile."""

        async def abort() -> None:
            assert upload.putting
            with contextlib.suppress(Exception):
                await upload.send(_AbortedError())
                await upload.putting
            # The context may have failed after the last block.
            with contextlib.suppress(StoreError):
                await self.delete([key])

        await asyncio.shield(asyncio.ensure_future(abort()))

    async def _sync(self, key: str) -> None:
        """Write an object of a local folder, and its name, to the disk. obstore itself does not sync."""
        if self._folder:
            path = self._folder / key
            # All folders up to the store's, because those between may be new.
            above = [parent for parent in path.parents if parent.is_relative_to(self._folder)]
            await asyncio.to_thread(_sync_paths, [path, *above])

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. Those that do not exist are ignored."""
        for key in keys:
            with self._convert_errors(), contextlib.suppress(FileNotFoundError):
                await obstore.delete_async(self._store, key)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def read_range(
        self, parts: Sequence[FilePart], start: int = 0, end: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes from `start` to before `end` of a file, in blocks of about READ_BYTES."""
        begin = 0
        for part in parts:
            first, last = max(0, start - begin), part.bytes if end is None else min(part.bytes, end - begin)
            begin += part.bytes
            while first < last:
                requested = first
                try:
                    with self._convert_errors(reads=True):
                        found = await obstore.get_async(self._store, part.key, options={"range": (first, last)})
                        stream = found.stream(min_chunk_size=READ_BYTES)
                    while first < last:
                        with self._convert_errors(reads=True):
                            block = bytes(await anext(stream))
                        first += len(block)
                        yield block
                except StoreError as error:
                    # obstore resumes a body only within `retry_timeout` after its request.
                    if first == requested or isinstance(error, MissingContentError):
                        raise

    async def read_lines(
        self, parts: Sequence[FilePart], start: int = 0, *, max_line_bytes: int
    ) -> AsyncGenerator[Line, None]:
        """Yield the lines of a file from an offset, split at LF alone. Lines may end with a CR.

        The last line needs no line end. Memory is bounded by the maximum length of a line.
        """
        held, skipping, offset = bytearray(), False, start
        async for block in self.read_range(parts, start):
            begin = 0
            while (end := block.find(b"\n", begin)) >= 0:
                size = end - begin
                too_long = skipping or len(held) + size > max_line_bytes
                content = None if too_long else bytes(held) + block[begin:end] if held else block[begin:end]
                offset += size + 1
                held.clear()
                skipping, begin = False, end + 1
                yield Line(content, offset)
            offset += len(block) - begin
            if skipping or len(held) + len(block) - begin > max_line_bytes:
                held.clear()
                skipping = True
            else:
                held += block[begin:]
        if held or skipping:
            yield Line(None if skipping else bytes(held), offset)

    # --- upkeep ------------------------------------------------------------------------------------------------------

    def identify(self, identity: str) -> str:
        """Write the identity of a new file store, and return that of the file store. Blocks."""
        with self._convert_errors():
            found = self._read_identity()
            if not found:
                # An empty file is what a power cut left of an object that had not been synced.
                mode: Literal["create", "overwrite"] = "create" if found is None else "overwrite"
                with contextlib.suppress(obstore.exceptions.AlreadyExistsError):
                    obstore.put(self._store, _IDENTITY_KEY, identity.encode(), mode=mode, use_multipart=False)
                if self._folder:
                    _sync_paths([self._folder / _IDENTITY_KEY, self._folder])
                found = self._read_identity()
            return found or ""

    def _read_identity(self) -> str | None:
        """Return the identity in the file store, or None if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return bytes(obstore.get(self._store, _IDENTITY_KEY).bytes()).decode(errors="replace")
        return None

    def contains(self, path: Path) -> bool:
        """Return whether a file is in the folder of a local file store."""
        return self._folder is not None and path.resolve().is_relative_to(self._folder.resolve())

    async def list_old_keys(self, min_age_s: float) -> AsyncIterator[list[str]]:
        """Yield the keys of Vecmill's objects that are older than `min_age_s`, in lists."""
        before = time.time() - min_age_s
        for folder in _FOLDERS:
            with self._convert_errors():
                async for objects in obstore.list(self._store, folder, chunk_size=500):
                    old = [found["path"] for found in objects if found["last_modified"].timestamp() < before]
                    yield list(filter(is_key, old))

    def remove_unfinished(self, min_age_s: float) -> int:
        """Remove what uploads of killed processes have left in a local folder, and return the number of files.

        S3 does so by a lifecycle rule of the bucket (AbortIncompleteMultipartUpload). Blocks.
        """
        before, count = time.time() - min_age_s, 0
        for folder in _FOLDERS if self._folder else ():
            assert self._folder
            for path in (self._folder / folder).rglob("*#*"):
                with contextlib.suppress(OSError):
                    if is_unfinished_key(str(path.relative_to(self._folder))) and path.stat().st_mtime < before:
                        path.unlink()
                        count += 1
        return count

    @contextlib.contextmanager
    def _convert_errors(self, *, reads: bool = False) -> Iterator[None]:
        try:
            yield
        except (obstore.exceptions.BaseError, OSError, StopAsyncIteration) as error:
            if reads and isinstance(error, FileNotFoundError | StopAsyncIteration):
                text = f"{self.name} has less of a file than was written; restore it from a backup"
                raise MissingContentError(text) from None
            raise convert_error(self.name, error) from None


def _sync_paths(paths: Iterable[Path]) -> None:
    for path in paths:
        sync_path(path)


def open_contents(url: str, data: Path) -> Contents:
    """Return the file store at a URL, or the folder `files` in `data` if the URL is empty.

    Raise `StoreError` if it cannot be used. S3 is not contacted.
    """
    if not url or "://" not in url or url.startswith("file://"):
        folder = Path(url.removeprefix("file://")) if url else data / "files"
        name = f"the file store {folder}"
        try:
            if not folder.is_dir():
                os.makedirs(folder, exist_ok=True)
                sync_path(folder.absolute().parent)
            return Contents(LocalStore(folder.absolute(), automatic_cleanup=True), folder.absolute(), name)
        except (obstore.exceptions.BaseError, OSError) as error:
            raise convert_error(name, error) from None
    if not url.startswith("s3://"):
        raise StoreError(f"--file-store is {url!r}; give a folder or s3://BUCKET/PREFIX")
    name = f"the file store {url}"
    try:
        # Endpoint, region and credentials are in AWS_* variables. Only loopback and private networks have plain HTTP.
        plain = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", "")).startswith("http://")
        client: Any = {"allow_http": plain, **_TIMEOUTS}
        return Contents(from_url(url, client_options=client, retry_config=_RETRIES), None, name)
    except obstore.exceptions.BaseError as error:
        raise convert_error(name, error) from None
