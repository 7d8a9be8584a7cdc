"""nginx in front of the server: a path prefix, and connections that are kept as long as nginx keeps them by default."""

import asyncio
import json
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from tests.clients.golden import GOLDEN, KEY, TEXTS, check_answer, make_body
from tests.harness.api_keys import make_header
from tests.harness.servers import Server

#: nginx's default `keepalive_timeout` of connections to a server, also that of many other proxies.
IDLE_S = 60.0
CONNECTIONS = 1000
#: The second requests begin this much before and after `IDLE_S`.
SPREAD_S = 0.1


@pytest.mark.parametrize("location", ["kept", "default"])
def test_docs_page_is_complete_behind_path_prefix(nginx: str, location: str) -> None:
    with httpx.Client(base_url=nginx) as client:
        page = client.get(f"/{location}/docs")
        links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
        script = next(link for link in links if "start" in link)
        start = client.get(urljoin(str(page.url), script))
        # Swagger UI resolves the description's URL from the page.
        links += re.findall(r'url: "([^"]+)"', start.text)
        assert len(links) >= 4
        answers = {link: client.get(urljoin(str(page.url), link)).status_code for link in links}
    assert answers == dict.fromkeys(links, 200)


@pytest.mark.parametrize("location", ["kept", "default"])
def test_description_names_the_path_prefix(nginx: str, location: str) -> None:
    with httpx.Client(base_url=nginx) as client:
        description = client.get(f"/{location}/openapi.json")
        base = urljoin(str(description.url), description.json()["servers"][0]["url"])
        url = f"{base.rstrip('/')}/v1/embeddings"
        answer = client.post(url, json=make_body(TEXTS), headers=make_header(KEY), timeout=60)
    check_answer(answer.json())


# --- idle connections ------------------------------------------------------------------------------------------------


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


async def post_twice(url: str, number: int) -> list[bool]:
    """Post, wait until the connection's idle time is about `IDLE_S`, and post again; return which were answered."""
    connection = await connect(url)
    answered = [await connection.post(number)]
    await asyncio.sleep(IDLE_S + SPREAD_S * (2 * number / CONNECTIONS - 1))
    answered.append(await connection.post(number))
    connection.writer.close()
    return answered


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.timeout(200)
def test_requests_at_proxys_idle_time_are_answered(server: Server, nginx: str) -> None:
    """Send 1,000 requests as a proxy's pool does, and 1,000 through nginx, on connections that were idle for 60 s."""

    async def post_all() -> list[list[bool]]:
        urls = (server.url, f"{nginx}/kept")
        return await asyncio.gather(*(post_twice(url, number) for url in urls for number in range(CONNECTIONS)))

    answered = asyncio.run(post_all())
    assert len(answered) == 2 * CONNECTIONS
    lost = sum(not both for pair in answered for both in pair)
    assert lost == 0
