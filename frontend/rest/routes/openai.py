"""OpenAI's API, on OpenAI's paths (/v1) and OVMS's (/v3)."""

import time
import urllib.parse

import msgspec
from sanic import Blueprint, HTTPResponse, Request
from sanic.response import raw

from broker.wire.protocol import ModelInfo
from frontend.api.errors import from_failure, unknown_model
from frontend.api.rendering import render_embeddings, render_model, shape
from frontend.api.schemas import EmbeddingsRequest, parse_embeddings
from frontend.api.submission import PreparedSubmission, build_submission
from frontend.config import Config
from frontend.rest import metrics
from frontend.rest.routes.request_options import read_request_options
from frontend.rest.unread_answers import UnreadAnswers, send_answer
from frontend.session.broker_client import BrokerClient
from frontend.session.pending import Pending

JSON = "application/json"
#: Where the paths of OpenAI's API begin: as OpenAI has them, and as OVMS does.
PREFIXES = {"v1": "/v1", "v3": "/v3", "v3_v1": "/v3/v1"}

#: When this process started to list models: OpenAI's objects carry a time of creation.
_STARTED = int(time.time())

#: About how long an input's error is in an answer.
_ERROR_BYTES = 250

openai = Blueprint("openai")


async def create_embeddings(request: Request) -> HTTPResponse | None:
    """POST /v1/embeddings: one vector for each input, in the inputs' order."""
    started = time.monotonic()
    config: Config = request.app.ctx.config
    broker: BrokerClient = request.app.ctx.broker
    unread: UnreadAnswers = request.app.ctx.unread
    wanted = parse_embeddings(request.body, config.max_inputs)
    terms = read_request_options(request)
    model = await broker.find_model(wanted.model)
    note = request.ctx.log
    note |= {"model": wanted.model, "inputs": len(wanted.documents)}
    fitted = build_submission(wanted, model, config.dimensions_policy, config.max_request_tokens)
    until = started + terms.deadline_s
    if not fitted.inputs:
        body = render_embeddings(wanted, {}, 0, cut={}, bad=fitted.bad)
        async with unread.reserve_room(len(body), until, waiting=len(body)) as room:
            return await send_answer(request, room, body, _headers(None, fitted.warning, started), JSON)
    with metrics.Waiting(request, wanted.model):
        done = await broker.run(
            wanted.model,
            fitted.kind,
            fitted.inputs,
            terms,
            until,
            options=fitted.options,
            per_item=wanted.per_item,
            max_tokens=config.max_request_tokens,
        )
    note |= {"tokens": done.tokens, "truncated": sum(done.truncated.values()), "job": done.number}
    metrics.observe_times(wanted.model, done.queue_us, done.inference_us)
    row_bytes = sum(len(row) for row in done.rows if row is not None)
    text_bytes = _text_bytes(row_bytes, wanted) + _ERROR_BYTES * (len(fitted.bad) + len(done.failures))
    async with unread.reserve_room(text_bytes, until, waiting=row_bytes) as room:
        headers = _headers(done, fitted.warning, started)
        if wanted.truncate:
            headers["x-truncated-tokens"] = str(note["truncated"])
        body = _render(wanted, model, fitted, done)
        # What it was made of need not wait for the client to read it.
        del done, fitted, wanted
        request.body = b""
        return await send_answer(request, room, body, headers, JSON)


def _render(wanted: EmbeddingsRequest, model: ModelInfo, fitted: PreparedSubmission, done: Pending) -> bytes:
    place = fitted.places
    rows = {place[at]: row for at, row in enumerate(done.rows) if row is not None}
    vectors = dict(zip(rows, shape(list(rows.values()), wanted, model), strict=True))
    cut = {place[at]: tokens for at, tokens in done.truncated.items()}
    bad = fitted.bad | {place[at]: from_failure(one.code, one.text) for at, one in done.failures.items()}
    return render_embeddings(wanted, vectors, done.tokens, cut=cut, bad=bad)


def _text_bytes(row_bytes: int, wanted: EmbeddingsRequest) -> int:
    """About how long rows are as text: in base64 4 bytes for 3, else a float32 with some 12 digits, sign and point."""
    return row_bytes * 4 // 3 if wanted.base64 else row_bytes * 13 // 4


def _headers(done: Pending | None, warning: str, started: float) -> dict[str, str]:
    """Times in milliseconds, by TEI's names; of a request whose inputs ran in several batches the longest wait and the
    longest inference."""
    headers = {"x-total-time": f"{(time.monotonic() - started) * 1000:.3f}"}
    if done:
        headers["x-queue-time"] = f"{done.queue_us / 1000:.3f}"
        headers["x-inference-time"] = f"{done.inference_us / 1000:.3f}"
    if warning:
        headers["x-vecmill-warning"] = warning
    return headers


async def list_models(request: Request) -> HTTPResponse:
    """GET /v1/models: what has a live worker now."""
    broker: BrokerClient = request.app.ctx.broker
    served = [render_model(model, _STARTED) for model in broker.models.values() if model.workers]
    return raw(msgspec.json.encode({"object": "list", "data": served}), content_type=JSON)


async def retrieve_model(request: Request, name: str) -> HTTPResponse:
    """GET /v1/models/{id}; an id may hold slashes."""
    broker: BrokerClient = request.app.ctx.broker
    name = urllib.parse.unquote(name)
    model = broker.models.get(name)
    if model is None or not model.workers:
        raise unknown_model(name, "Model not found")
    return raw(msgspec.json.encode(render_model(model, _STARTED)), content_type=JSON)


for version, prefix in PREFIXES.items():
    openai.add_route(create_embeddings, f"{prefix}/embeddings", methods=["POST"], name=f"embeddings_{version}")
    openai.add_route(list_models, f"{prefix}/models", methods=["GET"], name=f"models_{version}")
    openai.add_route(retrieve_model, f"{prefix}/models/<name:path>", methods=["GET"], name=f"model_{version}")
