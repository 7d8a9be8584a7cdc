"""Requests on connections that were idle for as long as a proxy, or the server, keeps idle connections."""

import asyncio
import json
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.clients.golden import GOLDEN, KEY, check_answer, make_body
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

    async def post(self, number: int) -> bool:
        """Post one golden text; return False if the connection ends without an answer."""
        row = GOLDEN[number % len(GOLDEN)]
        body = json.dumps(make_body(row["text"])).encode()
        lines = [f"POST {self.path}/v1/embeddings HTTP/1.1", "Host: vecmill", f"Authorization: Bearer {KEY}"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
        try:
            self.writer.write("\r\n".join(lines).encode() + body)
            status, head = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)
        except (ConnectionError, asyncio.IncompleteReadError):
            return False
        found = re.search(rb"content-length: (\d+)", head, re.I)
        assert found, head
        answer = json.loads(await self.reader.readexactly(int(found[1])))
        assert b" 200 " in status, (status, answer)
        check_answer(answer, [row])
        return True


async def connect(url: str) -> Connection:
    """Open a connection."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    return Connection(reader, writer, parts.path)


async def post_twice(url: str, number: int, idle_s: float) -> bool:
    """Post, let the connection be idle for about `idle_s`, and post again; return whether both were answered."""
    connection = await connect(url)
    first = await connection.post(number)
    await asyncio.sleep(idle_s + SPREAD_S * (2 * number / CONNECTIONS - 1))
    second = await connection.post(number)
    connection.writer.close()
    return first and second


async def count_lost(idle_s: float, *urls: str) -> int:
    """Post twice on 1,000 connections to each URL; return how many got no answer."""
    posts = (post_twice(url, number, idle_s) for url in urls for number in range(CONNECTIONS))
    return (await asyncio.gather(*posts)).count(False)


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.timeout(200)
def test_requests_at_proxys_idle_time_are_answered(server: Server, nginx: str) -> None:
    """Keep connections as long as nginx does by default: directly, as another proxy would, and through nginx."""
    assert asyncio.run(count_lost(PROXY_IDLE_S, server.url, f"{nginx}/kept")) == 0


@pytest.mark.usefixtures("many_descriptors")
def test_requests_at_announced_idle_time_are_answered(tmp_path: Path) -> None:
    """Keep connections as long as the header Keep-Alive says."""
    server = Server(tmp_path, VECMILL_FRONTEND_IDLE_TIMEOUT_S="5")
    try:
        assert server.embed(["a"]).headers["keep-alive"] == "timeout=5"
        assert asyncio.run(count_lost(5.0, server.url)) == 0
    finally:
        server.program.close()
