"""OpenAI's API, on OpenAI's paths (/v1) and OVMS's (/v3)."""

import time
import urllib.parse

import msgspec
from sanic import Blueprint, HTTPResponse, Request
from sanic.response import raw

from frontend.broker_client import BrokerClient
from frontend.config import Config
from frontend.errors import ApiError, unknown_model
from frontend.schemas import parse_embeddings, parse_headers, render_embeddings, render_model

JSON = "application/json"

#: When this process started to list models: OpenAI's objects carry a time of creation.
_STARTED = int(time.time())

openai = Blueprint("openai")


async def create_embeddings(request: Request) -> HTTPResponse:
    """POST /v1/embeddings: one vector for each input, in the inputs' order."""
    config: Config = request.app.ctx.config
    broker: BrokerClient = request.app.ctx.broker
    wanted = parse_embeddings(request.body, config.max_inputs)
    terms = parse_headers(request.headers, config.deadline_s)
    done = await broker.embed(wanted.model, wanted.kind, wanted.inputs, terms)
    made = len(done.rows[0]) // 4
    if wanted.dimensions not in (None, made):
        raise ApiError(400, f"the model makes vectors of {made} dimensions and no others", param="dimensions")
    body = render_embeddings(wanted.model, done.rows, done.tokens, as_base64=wanted.base64)
    return raw(body, content_type=JSON)


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
        raise unknown_model(name)
    return raw(msgspec.json.encode(render_model(model, _STARTED)), content_type=JSON)


for version in ("v1", "v3"):
    openai.add_route(create_embeddings, f"/{version}/embeddings", methods=["POST"], name=f"embeddings_{version}")
    openai.add_route(list_models, f"/{version}/models", methods=["GET"], name=f"models_{version}")
    openai.add_route(retrieve_model, f"/{version}/models/<name:path>", methods=["GET"], name=f"model_{version}")
