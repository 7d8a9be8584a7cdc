"""OpenAI's API, under OpenAI's prefix (/v1) and those of OVMS (/v3, /v3/v1)."""

import functools
import time
import urllib.parse

import msgspec
from sanic import Blueprint, HTTPResponse, Request
from sanic.response import raw

from broker.wire.protocol import ModelInfo
from frontend.api.errors import unknown_model
from frontend.api.model_names import list_names, resolve_name
from frontend.api.openapi import ROUTE_NAMES
from frontend.api.rendering import build_model_object, render_embeddings, render_models
from frontend.api.schemas import EmbeddingsRequest, parse_embeddings
from frontend.api.submission import apply_model_defaults, build_submission
from frontend.config import Config
from frontend.rest import metrics
from frontend.rest.routes.job_request import read_job_request
from frontend.rest.unread_answers import UnreadAnswers, send_answer
from frontend.session.broker_client import BrokerClient
from frontend.session.pending import Pending
from frontend.session.rendering import render_pending

JSON = "application/json"

#: Time of creation in OpenAI's model objects, in seconds since 1970: the start of this process.
_STARTED = int(time.time())

#: Typical length of an input's error in an answer.
_ERROR_BYTES = 250

openai = Blueprint("openai")


async def create_embeddings(request: Request) -> HTTPResponse | None:
    """POST /v1/embeddings: return a vector for each input, in the order of the inputs."""
    config: Config = request.app.ctx.config
    broker: BrokerClient = request.app.ctx.broker
    unread: UnreadAnswers = request.app.ctx.unread
    parse = functools.partial(parse_embeddings, truncate=config.truncate, token_ids=not config.no_token_ids)
    job = await read_job_request(request, parse)
    wanted = apply_model_defaults(job.body, job.model)
    prepared = build_submission(wanted, job.model, config.dimensions_policy, config.max_request_tokens)
    deadline, started, warning = job.deadline, job.started, prepared.warning
    if not prepared.inputs:
        body = render_embeddings(wanted, {}, 0, truncated={}, errors=prepared.errors)
        async with unread.reserve_room(len(body), deadline, waiting=len(body)) as room:
            return await send_answer(request, room, body, _build_headers(None, warning, started), JSON)
    with metrics.InFlight(request, job.model.name):
        done = await broker.run(
            job.model.name,
            prepared.kind,
            prepared.inputs,
            job.options,
            deadline,
            options=prepared.options,
            per_item=wanted.error_policy == "per_item",
            max_tokens=config.max_request_tokens,
        )
    truncated = sum(done.truncated.values())
    request.ctx.log |= {"tokens": done.tokens, "truncated": truncated, "job": done.number}
    metrics.observe_times(job.model.name, done.queue_us, done.inference_us)
    row_bytes = sum(len(row) for row in done.rows if row is not None)
    text_bytes = _estimate_bytes(row_bytes, wanted) + _ERROR_BYTES * (len(prepared.errors) + len(done.failures))
    async with unread.reserve_room(text_bytes, deadline, waiting=row_bytes) as room:
        headers = _build_headers(done, warning, started)
        if wanted.truncate_option:
            headers["x-truncated-tokens"] = str(truncated)
        body = render_pending(wanted, job.model, prepared, done)
        # Free the vectors and the inputs before the client reads the answer.
        del done, prepared, job, wanted
        request.body = b""
        return await send_answer(request, room, body, headers, JSON)


def _estimate_bytes(row_bytes: int, body: EmbeddingsRequest) -> int:
    """Return the length of rows as text: 4 bytes for 3 in base64, else about 13 for the 4 bytes of a float32."""
    return row_bytes * 4 // 3 if body.encoding_format == "base64" else row_bytes * 13 // 4


def _build_headers(done: Pending | None, warning: str, started: float) -> dict[str, str]:
    """Return headers with times in milliseconds, under TEI's names.

    If the inputs ran in several batches, the times are the longest wait and the longest inference.
    """
    headers = {"x-total-time": f"{(time.monotonic() - started) * 1000:.3f}"}
    if done:
        headers["x-queue-time"] = f"{done.queue_us / 1000:.3f}"
        headers["x-inference-time"] = f"{done.inference_us / 1000:.3f}"
        computed, hit, coalesced = done.sources
        headers["x-vecmill-cache"] = f"hit={hit}, coalesced={coalesced}, computed={computed}"
    if warning:
        headers["x-vecmill-warning"] = warning
    return headers


async def list_models(request: Request) -> HTTPResponse:
    """GET /v1/models: list the models that have a worker now, also under their aliases."""
    broker: BrokerClient = request.app.ctx.broker
    return raw(render_models(list_names(_find_served(broker)), _STARTED), content_type=JSON)


def _find_served(broker: BrokerClient) -> dict[str, ModelInfo]:
    return {name: model for name, model in broker.models.items() if model.workers}


async def retrieve_model(request: Request, name: str) -> HTTPResponse:
    """GET /v1/models/{name}: describe a model; the name may contain slashes."""
    broker: BrokerClient = request.app.ctx.broker
    if not name:
        return await list_models(request)
    name = urllib.parse.unquote(name)
    served = _find_served(broker)
    resolved = resolve_name(name, served)
    if resolved is None:
        raise unknown_model(name, "Model not found", served)
    return raw(msgspec.json.encode(build_model_object(name, served[resolved.model], _STARTED)), content_type=JSON)


for prefix, version in ROUTE_NAMES.items():
    openai.add_route(create_embeddings, f"{prefix}/embeddings", methods=["POST"], name=f"embeddings_{version}")
    openai.add_route(list_models, f"{prefix}/models", methods=["GET"], name=f"models_{version}")
    openai.add_route(retrieve_model, f"{prefix}/models/<name:path>", methods=["GET"], name=f"model_{version}")
