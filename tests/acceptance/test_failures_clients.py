"""Clients that leave, killed frontends and frozen brokers, as users see them. Real processes."""

import asyncio
import contextlib
import json
import random
import signal
import socket
from collections.abc import AsyncIterator, Sequence

import httpx
import pytest

from broker.core.pool import MAX_HELD
from tests.harness.clients import Asker, awaited, body, load, right
from tests.harness.processes import Cluster, Program, free_port, until


def start_second_frontend(cluster: Cluster) -> tuple[Program, str]:
    """Start another frontend, and return it with its URL."""
    port = free_port()
    frontend, url = cluster.frontend("--port", str(port)), f"http://127.0.0.1:{port}"
    until(lambda: "connected to broker" in frontend.output)
    return frontend, url


async def check_vectors(answers: "dict[str, asyncio.Task[httpx.Response]]") -> None:
    """Wait for all answers, and check their vectors."""
    assert all([right(await answer, (text,)) for text, answer in answers.items()])


def test_jobs_of_killed_frontend_leave_queue(cluster: Cluster) -> None:
    cluster.all(requests=1)
    frontend, url = start_second_frontend(cluster)

    async def run() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            asker = Asker(cluster, client)
            others = await asker.occupy()
            lost = await asker.ask(*(f"lost {number}" for number in range(8)), url=url)
            others["last"] = await asker.ask("last")
            frontend.signal(signal.SIGKILL)
            await awaited(lambda: cluster.number("queued_jobs") == 1)
            asker.release()
            with pytest.raises(httpx.TransportError):
                await lost
            await check_vectors(others)

    asyncio.run(run())
    assert cluster.count("jobs_cancelled") == 8
    assert cluster.count("jobs_dispatched") == MAX_HELD + 1
    assert cluster.number("open_jobs") == 0


def test_queued_jobs_of_departed_client_are_never_dispatched(cluster: Cluster) -> None:
    cluster.all(requests=1)

    async def run() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            asker = Asker(cluster, client)
            others = await asker.occupy()
            departed = await asker.ask("gone", "gone too")
            others["last"] = await asker.ask("last")
            departed.cancel()
            await awaited(lambda: cluster.count("jobs_cancelled") == 2)
            asker.release()
            await check_vectors(others)

    asyncio.run(run())
    assert cluster.count("jobs_dispatched") == MAX_HELD + 1


def test_expired_queued_jobs_are_never_dispatched(cluster: Cluster) -> None:
    cluster.all(requests=1)

    async def run() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            asker = Asker(cluster, client)
            others = await asker.occupy()
            headers = {"x-vecmill-deadline-ms": "500"}
            late = await client.post(f"{cluster.url}/v1/embeddings", json=body("late", "late too"), headers=headers)
            assert late.status_code == 504
            assert late.json()["error"]["code"] == "deadline_exceeded"
            asker.release()
            await check_vectors(others)

    asyncio.run(run())
    assert cluster.count("jobs_failed") == 2
    assert cluster.count("jobs_dispatched") == MAX_HELD


class Storm:
    """Connections of which half are aborted: before the request is complete, or after a number of other answers."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._dice = random.Random(seed)
        self._answered = 0
        #: (number of answers, connection to abort after them), the soonest last.
        self._doomed: list[tuple[int, int, asyncio.StreamWriter]] = []

    async def rage(self, connections: int) -> Sequence[int]:
        """Return the statuses of the requests that were not aborted."""
        numbers = list(range(connections))
        self._dice.shuffle(numbers)
        stays = set(numbers[: connections // 2])
        requests = [self._stay(number) if number in stays else self._give_up(number) for number in range(connections)]
        statuses = await asyncio.gather(*requests)
        return [status for status in statuses if status]

    async def _connect(self, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        content = json.dumps(body(f"text {number}", f"and text {number}")).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        return reader, writer, head.encode() + content

    async def _stay(self, number: int) -> int:
        reader, writer, request = await self._connect(number)
        writer.write(request)
        answer = await reader.read()
        await _close(writer)
        self._answered += 1
        self._abort(self._answered)
        head, _, content = answer.partition(b"\r\n\r\n")
        texts = (f"text {number}", f"and text {number}")
        assert right(httpx.Response(200, content=content), texts)
        return int(head.split()[1])

    async def _give_up(self, number: int) -> int:
        reader, writer, request = await self._connect(number)
        writer.write(request[: self._dice.choice([0, 20, len(request) - 1] + 7 * [len(request)])])
        self._doomed.append((self._dice.randrange(400), number, writer))
        self._doomed.sort(reverse=True)
        self._abort(self._answered)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        await _close(writer)
        return 0

    def _abort(self, answered: int) -> None:
        while self._doomed and self._doomed[-1][0] <= answered:
            self._doomed.pop()[2].transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def test_storm_of_aborted_requests_leaves_no_jobs(cluster: Cluster) -> None:
    cluster.all(us_per_token=100)
    statuses = asyncio.run(Storm(cluster.port, seed=20).rage(1000))
    assert len(statuses) == 500
    assert set(statuses) == {200}
    until(lambda: cluster.number("open_jobs") == 0)
    assert cluster.count("jobs_cancelled") > 0
    assert cluster.count("jobs_admitted") == sum(
        cluster.count(name) for name in ("jobs_answered", "jobs_cancelled", "jobs_failed")
    )
    assert right(httpx.post(f"{cluster.url}/v1/embeddings", json=body("after"), timeout=30), ("after",))


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    "begin",
    [
        HEAD,
        HEAD + b'Content-Length: 50\r\n\r\n{"model": ',
        HEAD + b"Content-Length: 50\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    ],
    ids=["head", "body", "no body", "inside a chunk", "between chunks"],
)
def test_stalled_request_is_408_and_closed(cluster: Cluster, begin: bytes) -> None:
    cluster.frontend("--request-timeout-s", "0.3")
    until(cluster.health)
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=20) as connection:
        connection.sendall(begin)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 "), answer
    error = json.loads(content)["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "request_timeout")


def test_slow_body_is_waited_for(cluster: Cluster) -> None:
    """The body takes longer than the limit, and no pause does."""
    cluster.all()
    cluster.programs.pop().close()
    cluster.frontend("--request-timeout-s", "3")
    cluster.until_workers(1)
    content = json.dumps(body("slow")).encode()

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 10):
            yield content[at : at + 10]
            await asyncio.sleep(0.8)

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as client:
            return await client.post(f"{cluster.url}/v1/embeddings", content=parts())

    assert right(asyncio.run(run()), ("slow",))


def test_frozen_broker_loses_no_request(cluster: Cluster) -> None:
    broker, _, _ = cluster.all(workers=2)

    async def freeze() -> None:
        broker.signal(signal.SIGSTOP)
        await awaited(lambda: cluster.health()["broker"] == "away")
        broker.signal(signal.SIGCONT)

    assert set(asyncio.run(load(cluster.url, 8, freeze))) == {200}
    cluster.until_workers(2)
    until(lambda: cluster.number("open_jobs") == 0)


def test_long_frozen_broker_is_503(cluster: Cluster) -> None:
    broker = cluster.broker()
    cluster.worker()
    cluster.frontend("--broker-grace-s", "0.5")
    cluster.until_workers(1)

    async def freeze() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            broker.signal(signal.SIGSTOP)
            answer = await client.post(f"{cluster.url}/v1/embeddings", json=body("a"))
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) <= 120
            broker.signal(signal.SIGCONT)
            await awaited(lambda: cluster.health()["broker"] == "connected" and cluster.health()["workers"] == 1)

    assert set(asyncio.run(load(cluster.url, 8, freeze))) == {200, 503}
    until(lambda: cluster.number("open_jobs") == 0)
    assert right(httpx.post(f"{cluster.url}/v1/embeddings", json=body("after"), timeout=30), ("after",))
