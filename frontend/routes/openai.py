"""OpenAI's API, on OpenAI's paths (/v1) and OVMS's (/v3)."""

import time
import urllib.parse

import msgspec
from sanic import Blueprint, HTTPResponse, Request
from sanic.response import raw

from frontend import metrics
from frontend.broker_client import BrokerClient
from frontend.config import Config
from frontend.errors import from_failure, unknown_model
from frontend.fitting import fit
from frontend.pending import Pending
from frontend.rendering import render_embeddings, render_model, shape
from frontend.routes.terms import terms_of
from frontend.schemas import parse_embeddings

JSON = "application/json"
#: Where the paths of OpenAI's API begin: as OpenAI has them, and as OVMS does.
PREFIXES = {"v1": "/v1", "v3": "/v3", "v3_v1": "/v3/v1"}

#: When this process started to list models: OpenAI's objects carry a time of creation.
_STARTED = int(time.time())

openai = Blueprint("openai")


async def create_embeddings(request: Request) -> HTTPResponse:
    """POST /v1/embeddings: one vector for each input, in the inputs' order."""
    started = time.monotonic()
    config: Config = request.app.ctx.config
    broker: BrokerClient = request.app.ctx.broker
    wanted = parse_embeddings(request.body, config.max_inputs)
    terms = terms_of(request)
    model = await broker.find_model(wanted.model)
    note = request.ctx.log
    note |= {"model": wanted.model, "inputs": len(wanted.documents)}
    fitted = fit(wanted, model, config.dimensions_policy, config.max_request_tokens)
    if not fitted.inputs:
        body = render_embeddings(wanted, {}, 0, cut={}, bad=fitted.bad)
        return raw(body, content_type=JSON, headers=_headers(None, fitted.warning, started))
    with metrics.Waiting(request, wanted.model):
        done = await broker.run(
            wanted.model,
            fitted.kind,
            fitted.inputs,
            terms,
            started + terms.deadline_s,
            options=fitted.options,
            per_item=wanted.per_item,
            max_tokens=config.max_request_tokens,
        )
    place = fitted.places
    rows = {place[at]: row for at, row in enumerate(done.rows) if row is not None}
    vectors = dict(zip(rows, shape(list(rows.values()), wanted, model), strict=True))
    cut = {place[at]: tokens for at, tokens in done.cut.items()}
    bad = fitted.bad | {place[at]: from_failure(one.code, one.text) for at, one in done.failures.items()}
    headers = _headers(done, fitted.warning, started)
    if wanted.truncate:
        headers["x-truncated-tokens"] = str(sum(cut.values()))
    note |= {"tokens": done.tokens, "truncated": sum(cut.values()), "job": done.number}
    body = render_embeddings(wanted, vectors, done.tokens, cut=cut, bad=bad)
    return raw(body, content_type=JSON, headers=headers)


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
