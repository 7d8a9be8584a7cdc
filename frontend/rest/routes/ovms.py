"""APIs of OVMS beyond OpenAI's: tokenize, the state of the configuration, and KServe's model API."""

import re
import urllib.parse

import msgspec
from sanic import Blueprint, HTTPResponse, Request
from sanic.response import raw

from broker.shared.version import VERSION
from broker.wire.errors import quote
from broker.wire.protocol import Availability, Kind, Option
from frontend.api.answers import ModelReady, ServerMetadata
from frontend.api.errors import ApiError, unknown_model
from frontend.api.model_names import resolve_name
from frontend.api.openapi import ROUTE_NAMES
from frontend.api.rendering import count_token_ids, render_config, render_model_metadata, render_tokens
from frontend.api.schemas import parse_tokenize
from frontend.api.submission import check_max_length
from frontend.config import Config
from frontend.rest import metrics
from frontend.rest.api_keys import KeysError
from frontend.rest.middleware import require_admin
from frontend.rest.routes.job_request import read_job_request
from frontend.rest.routes.openai import JSON
from frontend.rest.unread_answers import UnreadAnswers, send_answer
from frontend.session.broker_client import BrokerClient

#: Path of a model: the name, which may contain slashes, the version, and whether its readiness is requested.
_MODEL = re.compile(r"(?P<name>.+?)(?:/versions/(?P<version>[^/]+))?(?P<ready>/ready)?")

#: Typical length of a token id as text, with its comma.
_TOKEN_BYTES = 7

ovms = Blueprint("ovms")


async def tokenize(request: Request) -> HTTPResponse | None:
    """POST /v3/tokenize: return the token ids of each text."""
    broker: BrokerClient = request.app.ctx.broker
    unread: UnreadAnswers = request.app.ctx.unread
    job = await read_job_request(request, parse_tokenize)
    config: Config = request.app.ctx.config
    check_max_length(job.body, job.model, config.max_request_tokens)
    texts = [text.encode() for text in job.body.inputs]
    with metrics.InFlight(request, job.model.name):
        done = await broker.run(
            job.model.name,
            Kind.TEXT,
            texts,
            job.options,
            job.deadline,
            options=Option.TOKENIZE,
            max_tokens=config.max_request_tokens,
        )
    request.ctx.log |= {"job": done.number}
    rows = [row for row in done.rows if row is not None]
    row_bytes = sum(map(len, rows))
    text_bytes = count_token_ids(job.body, rows, job.model) * _TOKEN_BYTES
    async with unread.reserve_room(text_bytes, job.deadline, waiting=row_bytes) as room:
        body = render_tokens(job.body, rows, job.model)
        headers = {"x-vecmill-warning": job.body.warning} if job.body.warning else {}
        # Free the ids and the texts before the client reads the answer.
        del done, rows, texts, job
        request.body = b""
        return await send_answer(request, room, body, headers, JSON)


for prefix, version in ROUTE_NAMES.items():
    ovms.add_route(tokenize, f"{prefix}/tokenize", methods=["POST"], name=f"tokenize_{version}")


@ovms.get("/v1/config", name="config_status")
async def show_config(request: Request) -> HTTPResponse:
    """GET /v1/config: show the state of every known model."""
    broker: BrokerClient = request.app.ctx.broker
    return raw(render_config(broker.states, broker.models), content_type=JSON)


@ovms.post("/v1/config/reload")
async def reload_config(request: Request) -> HTTPResponse:
    """POST /v1/config/reload: reload the API keys, and let all workers read their configurations again."""
    require_admin(request)
    config: Config = request.app.ctx.config
    failed = "Reloading config file failed. Check server logs for more info."
    broker: BrokerClient = request.app.ctx.broker
    try:
        changed = request.app.ctx.keys.reload()
    except KeysError:
        raise ApiError(500, failed, kind="server_error", code="reload_failed") from None
    # Without a broker there are no models to reload, and workers read their configurations when they start.
    if reloaded := await broker.reload_models(config.deadline_s):
        changed |= reloaded.changed
        if reloaded.failure:
            raise ApiError(500, f"{failed} {reloaded.failure}", kind="server_error", code="reload_failed")
    return raw(render_config(broker.states, broker.models), status=201 if changed else 200, content_type=JSON)


@ovms.get("/v2", name="server_metadata")
async def describe_server(_: Request) -> HTTPResponse:
    """GET /v2: return KServe's server metadata."""
    return raw(msgspec.json.encode(ServerMetadata("vecmill", VERSION, [])), content_type=JSON)


@ovms.get("/v2/models/<path:path>", name="model_metadata")
async def describe_model(request: Request, path: str) -> HTTPResponse:
    """GET /v2/models/{name}[/versions/1][/ready]: return KServe's model metadata, or whether the model is ready."""
    broker: BrokerClient = request.app.ctx.broker
    match = _MODEL.fullmatch(urllib.parse.unquote(path))
    name = match["name"] if match else ""
    resolved = resolve_name(name, broker.models)
    known = resolved.model if resolved else name
    state, model = broker.states.get(known), broker.models.get(known)
    if match is None or state is None or match["version"] not in (None, "1"):
        raise unknown_model(name, "Model with requested name is not found", broker.models)
    if model is None or (match["ready"] and state.state != Availability.AVAILABLE):
        text = f"the model {quote(name)} is not ready; retry later"
        raise ApiError(503, text, kind="server_error", code="not_ready", retry_after_s=5)
    body = msgspec.json.encode(ModelReady(name, ready=True)) if match["ready"] else render_model_metadata(model)
    return raw(body, content_type=JSON)
