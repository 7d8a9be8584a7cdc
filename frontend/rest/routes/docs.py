"""The description of the API: OpenAPI for programs, and Swagger UI on it for people.

Swagger UI is npm's swagger-ui-dist 5.35.0; its two files are as they come, but compressed (`gzip -9n`). Nothing is
loaded from elsewhere, and no script stands in the page, so that the policy below can forbid both.
"""

import time
from pathlib import Path

import msgspec
from sanic import Blueprint, HTTPResponse, Request
from sanic.response import raw

from frontend.api.openapi import specification
from frontend.config import Config
from frontend.rest.unread_answers import UnreadAnswers, send_answer

_STATIC = Path(__file__).resolve().parent.parent / "static"
_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
#: The specification does not change while a process lives.
_SPECIFICATION = msgspec.json.encode(specification())

docs = Blueprint("docs")


@docs.get("/openapi.json")
async def openapi(_: Request) -> HTTPResponse:
    """OpenAPI 3.1."""
    return raw(_SPECIFICATION, content_type="application/json")


@docs.get("/docs")
async def page(_: Request) -> HTTPResponse:
    """Swagger UI."""
    headers = {"Content-Security-Policy": _POLICY}
    return raw((_STATIC / "docs.html").read_bytes(), headers=headers, content_type="text/html; charset=utf-8")


@docs.get("/docs/start.js")
async def start(_: Request) -> HTTPResponse:
    """What starts it."""
    return raw((_STATIC / "start.js").read_bytes(), content_type="text/javascript")


@docs.get("/docs/swagger-ui-bundle.js")
async def script(request: Request) -> HTTPResponse | None:
    """Its code."""
    return await _packed(request, "swagger-ui-bundle.js.gz", "text/javascript")


@docs.get("/docs/swagger-ui.css")
async def style(request: Request) -> HTTPResponse | None:
    """Its looks."""
    return await _packed(request, "swagger-ui.css.gz", "text/css")


async def _packed(request: Request, name: str, content_type: str) -> HTTPResponse | None:
    headers = {"Content-Encoding": "gzip", "Cache-Control": "max-age=86400"}
    config: Config = request.app.ctx.config
    unread: UnreadAnswers = request.app.ctx.unread
    path = _STATIC / "swagger-ui" / name
    async with unread.reserve_room(path.stat().st_size, time.monotonic() + config.deadline_s) as room:
        return await send_answer(request, room, path.read_bytes(), headers, content_type)
