"""What the routes of files and batches share: the store, and the owners of files and batches."""

import logging
import time

import msgspec
from sanic import HTTPResponse, Request
from sanic.response import raw

from frontend.api.errors import ApiError
from frontend.api.file_requests import Page, files_disabled, parse_page, too_many_bytes
from frontend.batches.errors import StoreError, StoreFullError
from frontend.batches.store import Store
from frontend.batches.threads import call_database
from frontend.config import Config
from frontend.rest.api_keys import Key
from frontend.rest.routes.openai import JSON
from frontend.rest.unread_answers import UnreadAnswers, send_answer

log = logging.getLogger(__name__)


def get_store(request: Request) -> Store:
    """Return the store of files and batches. Raise `ApiError` 404 if the server has none."""
    store: Store | None = request.app.ctx.store
    if store is None:
        raise files_disabled(request.path)
    return store


def get_owner(request: Request) -> str:
    """Return the owner of the request's files; "" without API keys."""
    key: Key | None = request.ctx.key
    return key.client if key else ""


async def check_room(request: Request, store: Store, owner: str) -> None:
    """Raise `ApiError` 413 if an owner's files have as many bytes as allowed."""
    config: Config = request.app.ctx.config
    stored = await call_database(store.database.sum_bytes, owner, time.time()) if config.max_stored_bytes else 0
    if stored and stored >= config.max_stored_bytes:
        raise too_many_bytes(config.max_stored_bytes)


def read_page(request: Request, max_limit: int, default_limit: int) -> Page:
    """Return the page that a request's query asks for. Raise `ApiError` 400 if it is invalid."""
    return parse_page({name: values[-1] for name, values in request.args.items()}, max_limit, default_limit)


async def send_object(request: Request, answer: msgspec.Struct) -> HTTPResponse | None:
    """Send an answer of any size as JSON."""
    config: Config = request.app.ctx.config
    unread: UnreadAnswers = request.app.ctx.unread
    body = msgspec.json.encode(answer)
    async with unread.reserve_room(len(body), time.monotonic() + config.deadline_s, waiting=len(body)) as room:
        return await send_answer(request, room, body, {}, JSON)


def render_store_error(_: Request, error: StoreError) -> HTTPResponse:
    """Return the answer for a store that cannot be used. Only the log has the reason."""
    log.error("could not serve a request for files or batches: %s", error)
    if isinstance(error, StoreFullError):
        text = "the server's disk for files is full; delete files that are no longer needed, or try again later"
        answer = ApiError(507, text, kind="server_error", code="insufficient_storage")
    else:
        text = "the server's store of files cannot be used now; its log has the reason"
        answer = ApiError(503, text, kind="server_error", code="store_unavailable", retry_after_s=5)
    return raw(answer.body(), status=answer.status, headers=answer.headers(), content_type=JSON)
