"""Requests on connections that were idle for as long as a proxy, or the server, keeps idle connections."""

import asyncio
import contextlib
import json
import re
import resource
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.clients.golden import KEY
from tests.harness.servers import Server

#: nginx's default `keepalive_timeout` of connections to a server, also that of many other proxies.
PROXY_IDLE_S = 60.0
CONNECTIONS = 1000
#: The second requests are sent from this much before to this much after the idle time.
SPREAD_S = 0.1


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Allow this process a connection for each request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass(slots=True)
class Connection:
    """Kept-alive connection of a client that retries no request."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    path: str

    async def post(self) -> int:
        """Post a body that the frontend answers alone, and return the status; 0 without an answer.

        The model does not exist, so that the queue of 1,000 requests does not matter. A proxy does not repeat a POST.
        """
        body = json.dumps({"model": "absent", "input": "text"}).encode()
        lines = [f"POST {self.path}/v1/embeddings HTTP/1.1", "Host: vecmill", f"Authorization: Bearer {KEY}"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
        try:
            self.writer.write("\r\n".join(lines).encode() + body)
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.I)
            await self.reader.readexactly(int(length[1]) if length else 0)
        except (ConnectionError, asyncio.IncompleteReadError):
            return 0
        return int(head.split(b" ", 2)[1])


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Connection]:
    """Open a connection, and close it at the end."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield Connection(reader, writer, parts.path)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def post_twice(url: str, number: int, idle_s: float) -> tuple[int, int]:
    """Post, let the connection be idle for about `idle_s`, and post again; return both statuses."""
    async with connect(url) as connection:
        first = await connection.post()
        await asyncio.sleep(idle_s + SPREAD_S * (2 * number / CONNECTIONS - 1))
        return first, await connection.post()


async def post_on_all(idle_s: float, *urls: str) -> Counter[tuple[int, int]]:
    """Post twice on 1,000 connections to each URL; return how often each pair of statuses came."""
    posts = (post_twice(url, number, idle_s) for url in urls for number in range(CONNECTIONS))
    return Counter(await asyncio.gather(*posts))


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.timeout(200)
def test_requests_at_proxys_idle_time_are_answered(server: Server, nginx: str) -> None:
    """Keep connections as long as nginx does by default: directly, as another proxy would, and through nginx."""
    statuses = asyncio.run(post_on_all(PROXY_IDLE_S, server.url, f"{nginx}/kept"))
    assert statuses == {(404, 404): 2 * CONNECTIONS}


@pytest.mark.usefixtures("many_descriptors")
def test_requests_at_announced_idle_time_are_answered(tmp_path: Path) -> None:
    """Keep connections as long as the header Keep-Alive says."""
    server = Server(tmp_path, VECMILL_FRONTEND_IDLE_TIMEOUT_S="5")
    try:
        assert server.embed(["a"]).headers["keep-alive"] == "timeout=5"
        assert asyncio.run(post_on_all(5.0, server.url)) == {(404, 404): CONNECTIONS}
    finally:
        server.program.close()
