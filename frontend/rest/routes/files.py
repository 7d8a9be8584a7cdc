"""OpenAI's API of files: upload, list, describe, download and delete."""

import asyncio
import contextlib
import logging
import os
import time
import urllib.parse
from email.utils import formatdate

from sanic import Blueprint, HTTPResponse, Request, Sanic
from sanic.response import raw

from frontend.api.file_answers import FileDeleted
from frontend.api.file_requests import (
    MAX_FILES,
    is_id,
    matches_tag,
    parse_range,
    too_many_bytes,
    unknown_file,
)
from frontend.api.openapi import ROUTE_NAMES
from frontend.batches.errors import StoreError, StoreFullError
from frontend.batches.objects import render_file, render_files
from frontend.batches.rows import File, FilePart, make_id
from frontend.batches.store import open_store
from frontend.batches.threads import call_database
from frontend.config import Config
from frontend.rest.routes.stored import (
    check_room,
    get_owner,
    get_store,
    read_page,
    render_store_error,
    send_object,
)
from frontend.rest.unread_answers import UnreadAnswers
from frontend.rest.uploads import Uploads

log = logging.getLogger(__name__)

OCTETS = "application/octet-stream"

files = Blueprint("files")
files.exception(StoreError)(render_store_error)


@files.before_server_start
async def start_store(app: Sanic) -> None:  # type: ignore[type-arg]
    """Open the store of files and batches, if one is configured."""
    config: Config = app.ctx.config
    app.ctx.store = await asyncio.to_thread(open_store, config) if config.data else None
    app.ctx.uploads = Uploads(config)
    if app.ctx.store and app.ctx.keys.required:
        # A server starts without its database.
        with contextlib.suppress(StoreError):
            if await call_database(app.ctx.store.database.sum_bytes, "", time.time()):
                log.warning("files that were made without API keys exist, which no key finds; see docs/batches.md")


async def create_file(request: Request) -> HTTPResponse | None:
    """POST /v1/files: store a file, and return its object."""
    config: Config = request.app.ctx.config
    uploads: Uploads = request.app.ctx.uploads
    store, owner = get_store(request), get_owner(request)
    await store.check_once()
    await check_room(request, store, owner)
    file_id = make_id("file-", time.time_ns(), os.urandom(8))
    key = f"files/{file_id}"
    received = await uploads.receive(request, store.contents, key, owner or request.ip)
    created_at, expires_after_s = int(time.time()), received.form.expires_after_s
    file = File(
        id=file_id,
        owner=owner,
        bytes=received.bytes,
        created_at=created_at,
        expires_at=None if expires_after_s is None else created_at + expires_after_s,
        filename=received.form.filename,
        purpose=received.form.purpose,
    )
    parts = [FilePart(file_id, 0, key, received.bytes)]
    try:
        added = await call_database(store.database.add_file, file, parts, config.max_stored_bytes)
    except StoreFullError:
        # After other errors the row may exist, because the connection may have ended at the commit. If there is no row,
        # `Store.remove_orphans` removes the object later.
        await store.contents.delete(await call_database(store.database.find_unused_keys, [key]))
        raise
    if not added:
        await store.contents.delete([key])
        raise too_many_bytes(config.max_stored_bytes)
    request.ctx.log |= {"file": file_id, "bytes": file.bytes}
    return await send_object(request, render_file(file))


async def list_files(request: Request) -> HTTPResponse | None:
    """GET /v1/files: return a page of the key's files."""
    store, page = get_store(request), read_page(request, MAX_FILES, MAX_FILES)
    rows, has_more = await call_database(
        store.database.list_files,
        get_owner(request),
        time.time(),
        purpose=page.purpose,
        after=page.after,
        limit=page.limit,
        ascending=page.ascending,
    )
    return await send_object(request, render_files(rows, has_more))


async def use_file(request: Request, file_id: str) -> HTTPResponse | None:
    """GET or DELETE /v1/files/{file_id}: return a file's object, or delete the file.

    One route, because Sanic names no methods in `Allow` if several routes have the same path with a parameter.
    """
    if request.method == "DELETE":
        return await _delete_file(request, file_id)
    return await send_object(request, render_file(await _find_file(request, file_id)))


async def _delete_file(request: Request, file_id: str) -> HTTPResponse | None:
    """Delete a file. An open batch that reads it is completed all the same."""
    store, file_id = get_store(request), urllib.parse.unquote(file_id)
    keys = (
        await call_database(store.database.remove_file, file_id, get_owner(request), time.time())
        if is_id(file_id)
        else None
    )
    if keys is None:
        raise unknown_file(file_id)
    await store.contents.delete(keys)
    return await send_object(request, FileDeleted(file_id, "file", deleted=True))


async def retrieve_content(request: Request, file_id: str) -> HTTPResponse | None:
    """GET /v1/files/{file_id}/content: return a file's bytes, or a range of them."""
    unread: UnreadAnswers = request.app.ctx.unread
    store, file = get_store(request), await _find_file(request, file_id)
    # A file never changes.
    tag = f'"{file.id}"'
    name = urllib.parse.quote(file.filename)
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Last-Modified": formatdate(file.created_at, usegmt=True),
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
    }
    if matches_tag(request.headers.get("if-none-match", ""), tag):
        return raw(b"", status=304, headers=headers)
    begin, end, status = 0, file.bytes, 200
    if request.method == "GET" and request.headers.get("if-range", tag) in (tag, headers["Last-Modified"]):
        found = parse_range(request.headers.get("range", ""), file.bytes)
        if found:
            (begin, end), status = found, 206
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{file.bytes}"
    if request.method == "HEAD":
        return raw(b"", headers=headers | {"content-length": str(file.bytes)}, content_type=OCTETS)
    request.ctx.log |= {"file": file.id, "bytes": end - begin}
    parts = await call_database(store.database.list_parts, file.id)
    blocks = store.contents.read_range(parts, begin, end)
    return await unread.send_blocks(request, blocks, end - begin, status, headers, OCTETS)


async def _find_file(request: Request, file_id: str) -> File:
    """Return a file of the request's key. Raise `ApiError` 404 if there is none."""
    store, file_id = get_store(request), urllib.parse.unquote(file_id)
    if is_id(file_id) and (
        file := await call_database(store.database.find_file, file_id, get_owner(request), time.time())
    ):
        return file
    raise unknown_file(file_id)


for prefix, version in ROUTE_NAMES.items():
    path, one = f"{prefix}/files", f"{prefix}/files/<file_id>"
    files.add_route(create_file, path, methods=["POST"], name=f"upload_{version}", stream=True)
    files.add_route(list_files, path, methods=["GET"], name=f"files_{version}")
    files.add_route(use_file, one, methods=["GET", "DELETE"], name=f"file_{version}")
    files.add_route(retrieve_content, f"{one}/content", methods=["GET"], name=f"file_content_{version}")
