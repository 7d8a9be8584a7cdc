"""OpenAI's API of batches: create, list, describe and cancel. Runners (`python -m frontend.batches`) compute them."""

import os
import time
import urllib.parse

from sanic import Blueprint, HTTPResponse, Request

from frontend.api.errors import ApiError
from frontend.api.file_requests import (
    DEFAULT_BATCHES,
    MAX_BATCHES,
    is_id,
    parse_batch,
    parse_window_s,
    too_many_batches,
    unknown_batch,
    unknown_file,
)
from frontend.api.model_names import list_names
from frontend.api.openapi import ROUTE_NAMES
from frontend.api.schemas import parse_caching
from frontend.batches.errors import StoreError, TooManyBatchesError
from frontend.batches.objects import render_batch, render_batches
from frontend.batches.rows import Batch, make_id
from frontend.batches.threads import call_database
from frontend.config import ANSWER_SETTINGS, Config
from frontend.rest.api_keys import Key
from frontend.rest.routes.stored import (
    check_room,
    get_owner,
    get_store,
    read_page,
    render_store_error,
    send_object,
)

batches = Blueprint("batches")
batches.exception(StoreError)(render_store_error)


async def create_batch(request: Request) -> HTTPResponse | None:
    """POST /v1/batches: start a batch, and return its object."""
    config: Config = request.app.ctx.config
    store, owner = get_store(request), get_owner(request)
    body = parse_batch(request.body)
    file_id, now, key = body.input_file_id, int(time.time()), _get_key(request)
    file = await call_database(store.database.find_file, file_id, owner, now) if is_id(file_id) else None
    if file is None:
        raise unknown_file(file_id, "input_file_id")
    if file.purpose != "batch":
        text = f"the purpose of the file {file_id} is {file.purpose}; upload it with the purpose batch"
        raise ApiError(400, text, param="input_file_id", code="invalid_value")
    await check_room(request, store, owner)
    batch = Batch(
        id=make_id("batch_", time.time_ns(), os.urandom(8)),
        owner=owner,
        endpoint=body.endpoint,
        input_file_id=file_id,
        completion_window=body.completion_window,
        created_at=now,
        expires_at=now + parse_window_s(body.completion_window),
        metadata=body.metadata,
        output_expires_after_s=body.output_expires_after.seconds if body.output_expires_after else None,
        client_jobs=key.jobs_in_flight if key else 0,
        client_tokens=key.tokens_per_minute if key else 0,
        caching=int(parse_caching(request.headers)),
        settings={name: getattr(config, name) for name in ANSWER_SETTINGS},
        served=list(list_names(request.app.ctx.broker.models)),
    )
    try:
        added = await call_database(store.database.add_batch, batch, config.max_open_batches)
    except TooManyBatchesError:
        raise too_many_batches(config.max_open_batches) from None
    if not added:
        raise unknown_file(file_id, "input_file_id")
    request.ctx.log |= {"batch": batch.id}
    return await send_object(request, render_batch(batch))


async def list_batches(request: Request) -> HTTPResponse | None:
    """GET /v1/batches: return a page of the key's batches."""
    store, page = get_store(request), read_page(request, MAX_BATCHES, DEFAULT_BATCHES)
    rows, has_more = await call_database(
        store.database.list_batches, get_owner(request), after=page.after, limit=page.limit
    )
    return await send_object(request, render_batches(rows, has_more))


async def retrieve_batch(request: Request, batch_id: str) -> HTTPResponse | None:
    """GET /v1/batches/{batch_id}: return a batch's object."""
    store, batch_id = get_store(request), urllib.parse.unquote(batch_id)
    batch = await call_database(store.database.find_batch, batch_id, get_owner(request)) if is_id(batch_id) else None
    if batch is None:
        raise unknown_batch(batch_id)
    return await send_object(request, render_batch(batch))


async def cancel_batch(request: Request, batch_id: str) -> HTTPResponse | None:
    """POST /v1/batches/{batch_id}/cancel: let the runner end the batch with the results so far. The body is ignored."""
    store, batch_id = get_store(request), urllib.parse.unquote(batch_id)
    owner = get_owner(request)
    batch = await call_database(store.database.cancel_batch, batch_id, owner, time.time()) if is_id(batch_id) else None
    if batch is None:
        raise unknown_batch(batch_id)
    if not batch.is_open:
        raise ApiError(409, f"Cannot cancel a batch with status '{batch.status}'.", param="batch_id")
    return await send_object(request, render_batch(batch))


def _get_key(request: Request) -> Key | None:
    key: Key | None = request.ctx.key
    return key


for prefix, version in ROUTE_NAMES.items():
    path, one = f"{prefix}/batches", f"{prefix}/batches/<batch_id>"
    batches.add_route(create_batch, path, methods=["POST"], name=f"create_batch_{version}")
    batches.add_route(list_batches, path, methods=["GET"], name=f"batches_{version}")
    batches.add_route(retrieve_batch, one, methods=["GET"], name=f"batch_{version}")
    batches.add_route(cancel_batch, f"{one}/cancel", methods=["POST"], name=f"cancel_batch_{version}")
