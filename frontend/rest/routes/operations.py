"""Health and metrics: /v2/health as KServe defines it, /health for people, /metrics for Prometheus."""

import asyncio
import logging
import os
import time
from pathlib import Path

import msgspec
from sanic import Blueprint, HTTPResponse, Request, Sanic
from sanic.response import raw

from frontend.api.answers import HealthAnswer, ServedModel, ServerLive, ServerReady
from frontend.api.errors import ApiError
from frontend.config import Config
from frontend.rest import metrics
from frontend.rest.routes.openai import JSON
from frontend.rest.unread_answers import UnreadAnswers, send_answer
from frontend.session.broker_client import BrokerClient
from frontend.welcome import format_curl, format_url, read_published_address

log = logging.getLogger(__name__)

#: Seconds between two looks whether a model is served.
READY_INTERVAL_S = 0.25

operations = Blueprint("operations")


@operations.after_server_start
async def start_announcement(app: Sanic) -> None:  # type: ignore[type-arg]
    """Start the task that logs when the server is ready."""
    app.ctx.tasks.append(asyncio.create_task(_announce_readiness(app)))


async def _announce_readiness(app: Sanic) -> None:  # type: ignore[type-arg]
    """Log the first served model and a curl command, once for all processes on the port.

    The port is the published one if compose.yaml gives it.
    """
    config: Config = app.ctx.config
    broker: BrokerClient = app.ctx.broker
    while not (served := [name for name, model in broker.models.items() if model.workers]):
        await asyncio.sleep(READY_INTERVAL_S)
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        try:
            (Path(folder) / "ready").touch(exist_ok=False)
        except FileExistsError:
            return
    host, port = read_published_address(os.environ) or (config.host, config.port)
    url = format_url(host, port, tls=bool(config.tls_cert))
    curl = format_curl(url, served[0], needs_key=app.ctx.keys.required)
    log.info("ready: %s at %s; %s/docs describes all paths; try: %s", served[0], url, url, curl)


@operations.get("/v2/health/live")
async def live(_: Request) -> HTTPResponse:
    """Answer 200 while this process serves."""
    return raw(msgspec.json.encode(ServerLive(live=True)), content_type=JSON)


@operations.get("/v2/health/ready")
async def ready(request: Request) -> HTTPResponse:
    """Answer 200 if a worker is connected, which means that it has completed an inference. Else raise a 503."""
    broker: BrokerClient = request.app.ctx.broker
    if not any(model.workers for model in broker.models.values()):
        raise ApiError(503, "Server is not ready", kind="server_error", code="not_ready", retry_after_s=1)
    return raw(msgspec.json.encode(ServerReady(ready=True)), content_type=JSON)


@operations.get("/health")
async def health(request: Request) -> HTTPResponse:
    """Return the state of the broker, the workers and the models, with status 200 also if the broker is away."""
    broker: BrokerClient = request.app.ctx.broker
    stats = await broker.fresh_stats()
    state = HealthAnswer(
        status="ready" if any(model.workers for model in broker.models.values()) else "not ready",
        broker="connected" if broker.connected else "away",
        workers=len(stats.workers) if stats else 0,
        models={name: ServedModel(model.workers, model.revision) for name, model in broker.models.items()},
        open_jobs=stats.open_jobs if stats else 0,
        queued_jobs=stats.queued_jobs if stats else 0,
        counters=stats.counters if stats else {},
        worker_list=[msgspec.structs.asdict(worker) for worker in stats.workers] if stats else [],
    )
    return raw(msgspec.json.encode(state), content_type=JSON)


@operations.get("/metrics", name="metrics")
async def scrape(request: Request) -> HTTPResponse | None:
    """Return this frontend's metrics for Prometheus."""
    config: Config = request.app.ctx.config
    unread: UnreadAnswers = request.app.ctx.unread
    broker: BrokerClient = request.app.ctx.broker
    for model in broker.models:
        metrics.create_model_series(model)
    body, content_type = metrics.render_metrics(request.headers.get("accept", ""), broker_connected=broker.connected)
    async with unread.reserve_room(len(body), time.monotonic() + config.deadline_s, waiting=len(body)) as room:
        return await send_answer(request, room, body, {}, content_type)
