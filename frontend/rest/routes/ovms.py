"""What OVMS has beside OpenAI's API: its tokenize, its view of the configuration, and KServe's API of models."""

import re
import time
import urllib.parse

import msgspec
from sanic import Blueprint, HTTPResponse, Request
from sanic.response import raw

from broker.shared.version import VERSION
from broker.wire.protocol import Kind, Option, State
from frontend.api.errors import ApiError, quote, unknown_model
from frontend.api.rendering import count_token_ids, render_config, render_tokens
from frontend.api.schemas import parse_tokenize
from frontend.api.submission import check_max_length
from frontend.config import Config
from frontend.rest import metrics
from frontend.rest.api_keys import KeysError
from frontend.rest.middleware import require_admin
from frontend.rest.routes.openai import JSON, PREFIXES
from frontend.rest.routes.request_options import read_request_options
from frontend.rest.unread_answers import UnreadAnswers, send_answer
from frontend.session.broker_client import BrokerClient

#: A model's name, which may hold slashes, its one version, and what is asked of it.
_MODEL = re.compile(r"(?P<name>.+?)(?:/versions/(?P<version>[^/]+))?(?P<ready>/ready)?")

#: A token's id as text, and a comma.
_TOKEN_BYTES = 7

ovms = Blueprint("ovms")


async def tokenize(request: Request) -> HTTPResponse | None:
    """POST /v3/tokenize: token ids of each text."""
    started = time.monotonic()
    config: Config = request.app.ctx.config
    broker: BrokerClient = request.app.ctx.broker
    unread: UnreadAnswers = request.app.ctx.unread
    wanted = parse_tokenize(request.body, config.max_inputs)
    terms = read_request_options(request)
    model = await broker.find_model(wanted.model)
    request.ctx.log |= {"model": wanted.model, "inputs": len(wanted.texts)}
    check_max_length(wanted, model)
    texts = [text.encode() for text in wanted.texts]
    until = started + terms.deadline_s
    with metrics.Waiting(request, wanted.model):
        done = await broker.run(wanted.model, Kind.TEXT, texts, terms, until, options=Option.TOKENISE)
    request.ctx.log |= {"job": done.number}
    rows = [row for row in done.rows if row is not None]
    ids = sum(map(len, rows)) // 4
    async with unread.reserve_room(count_token_ids(wanted, rows, model) * _TOKEN_BYTES, until, waiting=ids * 4) as room:
        body = render_tokens(wanted, rows, model)
        # What it was made of need not wait for the client to read it.
        del done, rows, texts, wanted
        request.body = b""
        return await send_answer(request, room, body, {}, JSON)


for version, prefix in PREFIXES.items():
    ovms.add_route(tokenize, f"{prefix}/tokenize", methods=["POST"], name=f"tokenize_{version}")


@ovms.get("/v1/config")
async def config_status(request: Request) -> HTTPResponse:
    """How every known model is doing, as OVMS tells it."""
    broker: BrokerClient = request.app.ctx.broker
    return raw(render_config(broker.states), content_type=JSON)


@ovms.post("/v1/config/reload")
async def reload_config(request: Request) -> HTTPResponse:
    """Read the API keys anew: all that a frontend has of configuration that can change. Models are their workers'."""
    require_admin(request)
    try:
        changed = request.app.ctx.keys.reload()
    except KeysError:
        text = "Reloading config file failed. Check server logs for more info."
        raise ApiError(500, text, kind="server_error", code="reload_failed") from None
    broker: BrokerClient = request.app.ctx.broker
    return raw(render_config(broker.states), status=201 if changed else 200, content_type=JSON)


@ovms.get("/v2")
async def server_metadata(_: Request) -> HTTPResponse:
    """KServe's description of the server."""
    return raw(msgspec.json.encode({"name": "vecmill", "version": VERSION, "extensions": []}), content_type=JSON)


@ovms.get("/v2/models/<path:path>")
async def model_metadata(request: Request, path: str) -> HTTPResponse:
    """KServe's description of a model, and whether it can be asked."""
    broker: BrokerClient = request.app.ctx.broker
    asked = _MODEL.fullmatch(urllib.parse.unquote(path))
    name = asked["name"] if asked else ""
    state, model = broker.states.get(name), broker.models.get(name)
    if asked is None or state is None or asked["version"] not in (None, "1"):
        raise unknown_model(name, "Model with requested name is not found")
    if model is None or (asked["ready"] and state.state != State.AVAILABLE):
        text = f"the model {quote(name)} is not ready"
        raise ApiError(503, text, kind="server_error", code="not_ready", retry_after_s=5)
    if asked["ready"]:
        return raw(msgspec.json.encode({"name": name, "ready": True}), content_type=JSON)
    metadata = {
        "name": name,
        "versions": ["1"],
        "platform": "OpenVINO",
        "inputs": [{"name": "input", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, model.dimension]}],
    }
    return raw(msgspec.json.encode(metadata), content_type=JSON)
