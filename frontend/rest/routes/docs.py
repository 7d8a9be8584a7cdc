"""Description of the API: names of the paths, OpenAPI for programs, and Swagger UI for people.

All links are relative, so that they work behind a proxy with a path prefix.

Swagger UI is npm's swagger-ui-dist 5.35.0; its two files are unchanged, but compressed (`gzip -9n`). The policy
below forbids scripts from other servers and inline scripts, because the page needs neither.
"""

import functools
import time
from pathlib import Path

import msgspec
from sanic import Blueprint, HTTPResponse, Request
from sanic.response import raw, redirect

from broker.shared.version import VERSION
from frontend.api.openapi import describe_api
from frontend.config import Config
from frontend.rest.unread_answers import UnreadAnswers, send_answer

_STATIC = Path(__file__).resolve().parent.parent / "static"
_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"

docs = Blueprint("docs")


@docs.get("/", name="index")
async def index(_: Request) -> HTTPResponse:
    """GET /: return the name of the server and its main paths."""
    paths = {"docs": "docs", "openapi": "openapi.json", "embeddings": "v1/embeddings", "models": "v1/models"}
    paths |= {"health": "health", "ready": "v2/health/ready", "metrics": "metrics"}
    return raw(msgspec.json.encode({"name": "vecmill", "version": VERSION} | paths), content_type="application/json")


@docs.get("/openapi.json")
async def openapi(request: Request) -> HTTPResponse:
    """GET /openapi.json: return the description, with the limits of this server's configuration."""
    config: Config = request.app.ctx.config
    return raw(encode_description(config), content_type="application/json")


@functools.cache
def encode_description(config: Config) -> bytes:
    """Return the description of a server with this configuration, as JSON."""
    return msgspec.json.encode(
        describe_api(config.max_inputs, config.max_request_tokens, token_ids=not config.no_token_ids)
    )


@docs.get("/docs")
async def page(request: Request) -> HTTPResponse:
    """GET /docs: return the page of Swagger UI."""
    if request.path.endswith("/"):
        return redirect("../docs")
    headers = {"Content-Security-Policy": _POLICY}
    return raw((_STATIC / "docs.html").read_bytes(), headers=headers, content_type="text/html; charset=utf-8")


async def send_file(request: Request, name: str, content_type: str) -> HTTPResponse | None:
    """Return a file of the page; those of Swagger UI are compressed."""
    path, headers = _STATIC / name, {}
    if not path.exists():
        path = _STATIC / "swagger-ui" / f"{name}.gz"
        headers = {"Content-Encoding": "gzip", "Cache-Control": "max-age=86400"}
    config: Config = request.app.ctx.config
    unread: UnreadAnswers = request.app.ctx.unread
    async with unread.reserve_room(path.stat().st_size, time.monotonic() + config.deadline_s) as room:
        return await send_answer(request, room, path.read_bytes(), headers, content_type)


for endpoint, name, content_type in (
    ("start", "start.js", "text/javascript"),
    ("script", "swagger-ui-bundle.js", "text/javascript"),
    ("style", "swagger-ui.css", "text/css"),
):
    handler = functools.partial(send_file, name=name, content_type=content_type)
    docs.add_route(handler, f"/docs/{name}", name=endpoint)
