"""`scripts/embed`: its HTTP client with a server of this process."""

import asyncio
import base64
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from embed_client import Client, Model, RequestError  # noqa: E402  after the path is set
from embed_errors import RefusedError  # noqa: E402

from tests.harness.processes import free_port  # noqa: E402

MODEL = Model("m", 1, "r")


def use_server(act: Callable[[str], Awaitable[None]], *warnings: str) -> None:
    """Run `act` with the URL of a server whose answers have these warnings in turn."""
    left = list(warnings)

    async def answer(_: web.Request) -> web.Response:
        item = {"index": 0, "embedding": base64.b64encode(bytes(4)).decode()}
        return web.json_response(
            {"data": [item], "usage": {"total_tokens": 1}}, headers={"x-vecmill-warning": left.pop(0)}
        )

    async def run() -> None:
        application = web.Application()
        application.router.add_post("/v1/embeddings", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            await act(f"http://127.0.0.1:{port}")
        finally:
            await runner.cleanup()

    asyncio.run(run())


def test_each_warning_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    async def act(url: str) -> None:
        async with Client(url, "", {}) as client:
            for _ in range(4):
                await client.embed(MODEL, [0], ["text"], 1)

    use_server(act, "input_type was ignored", "", "replaced: 1", "replaced: 2")
    assert capsys.readouterr().err.splitlines() == [
        "vecmill embed: warning: input_type was ignored",
        "vecmill embed: warning: replaced: 1",
    ]


def test_connection_errors_are_plain_sentences() -> None:
    async def list_models(url: str) -> None:
        async with Client(url, "", {}) as client:
            await client.list_models()

    port = free_port()
    with pytest.raises(RequestError) as closed:
        asyncio.run(list_models(f"http://127.0.0.1:{port}"))
    assert str(closed.value) == f"no connection to 127.0.0.1:{port}: Connection refused"


def test_failure_of_tls_is_not_retried() -> None:
    async def act(url: str) -> None:
        async with Client(url.replace("http:", "https:"), "", {}) as client:
            with pytest.raises(RefusedError, match=r"TLS with https://127\.0\.0\.1:\d+ fails"):
                await client.find_model("", 300)
            with pytest.raises(RefusedError, match="SSL_CERT_FILE"):
                await client.embed(MODEL, [0], ["text"], 1)

    use_server(act)
