"""HTTP clients for tests: single requests to the fake model and load, with checks of the answers."""

import asyncio
import base64
import contextlib
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import httpx
import numpy as np

from broker.core.pool import MAX_HELD
from tests.harness.fake_worker import DIMENSION, vector
from tests.harness.processes import Cluster, until


def body(*texts: str) -> dict[str, object]:
    """Return the body of a request for the vectors of texts."""
    return {"model": "fake", "input": list(texts), "encoding_format": "base64"}


def right(answer: httpx.Response, texts: tuple[str, ...], dimension: int = DIMENSION) -> bool:
    """Return whether an answer has the fake model's vector of each text, in order."""
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer.json()["data"]]
    return [row.tolist() for row in rows] == [vector(text, dimension).tolist() for text in texts]


async def load(
    url: str, clients: int, during: Callable[[], Awaitable[None]], done: Counter[int] | None = None
) -> list[int]:
    """Send requests without pause while `during` runs and a little longer, check the answers, and return all statuses.

    `done` counts the answers of each client.
    """
    statuses: list[int] = []
    done = Counter() if done is None else done
    over = asyncio.Event()

    async def send_requests(client: httpx.AsyncClient, name: int) -> None:
        while not over.is_set():
            texts = (f"{name}-{done[name]}", f"and {name}-{done[name]}")
            answer = await client.post(f"{url}/v1/embeddings", json=body(*texts), timeout=60)
            statuses.append(answer.status_code)
            assert answer.status_code != 200 or right(answer, texts)
            assert answer.status_code != 503 or int(answer.headers["retry-after"]) > 0
            done[name] += 1

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=clients)) as client:
        tasks = [asyncio.create_task(send_requests(client, name)) for name in range(clients)]
        await during()
        enough = len(statuses) + 4 * clients
        while len(statuses) < enough and not any(task.done() for task in tasks):
            await asyncio.sleep(0.01)
        over.set()
        await asyncio.gather(*tasks)
    return statuses


async def abandon(port: int, request: bytes, per_second: float) -> None:
    """Send a request again and again, each time on a new connection that is closed after 50 to 100 ms.

    Run until the task is cancelled.
    """
    loop = asyncio.get_running_loop()
    dice = random.Random(7)

    async def send() -> None:
        with contextlib.suppress(OSError), socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, request)
            await asyncio.sleep(dice.uniform(0.05, 0.1))

    async with asyncio.TaskGroup() as sending:
        started, sent = time.monotonic(), 0
        while True:
            while sent < (time.monotonic() - started) * per_second:
                sending.create_task(send())
                sent += 1
            await asyncio.sleep(0.5 / per_second)


async def awaited(condition: Callable[[], object]) -> None:
    """Wait for a condition in another thread."""
    await asyncio.to_thread(until, condition)


class Asker:
    """Client of concurrent requests; each is open at the broker before the next is sent."""

    def __init__(self, cluster: Cluster, client: httpx.AsyncClient) -> None:
        self._cluster = cluster
        self._client = client

    async def ask(self, *texts: str, url: str = "", **headers: str) -> "asyncio.Task[httpx.Response]":
        """Send a request, and return once its jobs are open at the broker."""
        open_jobs = self._cluster.number("open_jobs")
        post = self._client.post(f"{url or self._cluster.url}/v1/embeddings", json=body(*texts), headers=headers)
        task = asyncio.create_task(post)
        await awaited(lambda: self._cluster.number("open_jobs") == open_jobs + len(texts))
        return task

    async def occupy(self) -> "dict[str, asyncio.Task[httpx.Response]]":
        """Give the only worker as many batches as it holds, and return their requests by text.

        The first batch runs until the file `go` exists; the others wait behind it.
        """
        held = {}
        for number in range(MAX_HELD):
            text = f"next {number}" if number else "wait go"
            held[text] = await self.ask(text)
            await self._until_held(number + 1)
        return held

    async def _until_held(self, batches: int) -> None:
        await awaited(lambda: self._cluster.workers()[0]["leased_batches"] == batches)

    def release(self) -> None:
        """Create `go`, so that the first batch ends."""
        (self._cluster.folder / "go").touch()
