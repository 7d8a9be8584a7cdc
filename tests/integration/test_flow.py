"""Data between the sockets: no wake-up is lost, and no vector is overwritten while it is queued."""

import asyncio
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from broker.shared.descriptors import MARGIN
from broker.wire import protocol as wire
from frontend.api.schemas import RequestOptions
from frontend.config import Config
from frontend.session.broker_client import BrokerClient
from frontend.session.pending import Pending
from tests.harness.clients import body, right
from tests.harness.fake_worker import vector
from tests.harness.peers import HandBroker, HandFrontend, Peer
from tests.harness.processes import Cluster, until

HOUR_MS = 3_600_000
TERMS = RequestOptions(None, 60, "")
SCARCE = "vecmill_scarce_descriptors_total "
#: Dimension of vectors of 16 KiB, of which four are sent without a copy.
WIDE = 4096


def test_full_table_of_descriptors_is_reported(cluster: Cluster) -> None:
    _, _, frontend = cluster.all()
    used = len(list(Path(f"/proc/{frontend.process.pid}/fd").iterdir()))
    limit = used + MARGIN + 10
    resource.prlimit(frontend.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
    clients = [socket.create_connection(("127.0.0.1", cluster.port)) for _ in range(limit)]
    until(lambda: f"nearly all of {limit} descriptors are in use" in frontend.output)
    for client in clients:
        client.close()
    assert right(httpx.post(f"{cluster.url}/v1/embeddings", json=body("a"), timeout=30), ("a",))
    assert frontend.output.count("nearly all") == 1
    (line,) = [line for line in httpx.get(f"{cluster.url}/metrics").text.splitlines() if line.startswith(SCARCE)]
    assert float(line.split()[1]) >= 1


# --- lost edges ------------------------------------------------------------------------------------------------------


class Echo(threading.Thread):
    """A broker that answers random numbers of inputs at random times.

    It sends no heartbeats, which would wake a client that has missed a message.
    """

    def __init__(self, endpoint: str) -> None:
        super().__init__(daemon=True)
        self._broker = HandBroker(endpoint).bind()
        self._dice = random.Random(45)
        self._waiting: list[int] = []
        self._over = False

    def stop(self) -> None:
        """Stop the thread."""
        self._over = True
        self.join()
        self._broker.close()

    def run(self) -> None:
        while not self._over:
            received = self._broker.receive(wire.FROM_FRONTEND, 0 if self._waiting else 100)
            if received:
                self._handle(received[0])
            if self._waiting and (not received or self._dice.random() < 0.3):
                self._answer(self._dice.randint(1, len(self._waiting)))

    def _handle(self, message: wire.Message) -> None:
        match message:
            case wire.FrontendHello():
                self._broker.send(wire.Welcome(1, 1, HOUR_MS, HOUR_MS, HOUR_MS))
                self._broker.send(wire.Models([wire.ModelInfo("fake", "r", 1, 64, 1)]))
            case wire.FrontendHeartbeat():
                self._broker.send(wire.Stats({}, [], 0, 0))
            case wire.Submit():
                self._waiting += [submission.request for submission in message.submissions]
            case wire.Cancel():
                gone = set(wire.unpack_u64(message.requests))
                self._waiting = [request for request in self._waiting if request not in gone]

    def _answer(self, number: int) -> None:
        requests, self._waiting = self._waiting[:number], self._waiting[number:]
        zeros = wire.pack_u32([0] * number)
        answers = wire.Answers(wire.pack_u64(requests), zeros, zeros, 1, 0, 0, "r")
        self._broker.send(answers, np.array(requests, "<f4").tobytes())


async def embed(client: BrokerClient) -> Pending:
    """Request one vector."""
    model = await client.find_model("fake")
    return await client.run(model.name, wire.Kind.TEXT, [b"a"], TERMS, time.monotonic() + TERMS.deadline_s)


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[str]:
    """Start an `Echo` and return its endpoint."""
    endpoint = f"ipc://{tmp_path}/echo.sock"
    thread = Echo(endpoint)
    thread.start()
    yield endpoint
    thread.stop()


@pytest.mark.parametrize(("window", "requests"), [(1, 8000), (2, 8000), (3, 8000), (16, 16000), (256, 16000)])
def test_no_answer_is_left_in_the_socket(echo: str, window: int, requests: int) -> None:
    """No other event makes the client read the socket.

    Some requests are cancelled, and messages of other kinds are sent in between.
    """
    dice = random.Random(window)

    async def ask(client: BrokerClient) -> None:
        if dice.random() < 0.02:
            assert await client.fresh_stats()
        embedding = embed(client)
        if dice.random() < 0.05:
            given_up = asyncio.ensure_future(embedding)
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.wait([given_up])
        else:
            pending = await asyncio.wait_for(embedding, 20)
            assert pending.rows[0] is not None
            assert np.frombuffer(pending.rows[0], "<f4").tolist() == [pending.number]

    async def run() -> None:
        client = BrokerClient(Config(broker=echo))
        client.open()
        numbers = iter(range(requests))

        async def ask_on() -> None:
            for _ in numbers:
                await ask(client)

        try:
            await embed(client)
            await asyncio.gather(*(ask_on() for _ in range(window)))
        finally:
            client.close()

    asyncio.run(run())


# --- buffers ---------------------------------------------------------------------------------------------------------


def test_results_queued_in_a_worker_do_not_change(cluster: Cluster) -> None:
    """The broker does not read until the worker has embedded 64 batches, all in the same buffer."""
    broker = HandBroker(cluster.endpoints["worker"])
    broker.socket.rcvhwm, broker.socket.rcvbuf = 1, 4096
    broker.bind()
    cluster.worker(dimension=WIDE, requests=1)
    hello = broker.receive(wire.FROM_WORKER, 20_000)
    assert hello
    assert isinstance(hello[0], wire.WorkerHello)
    broker.send(wire.Welcome(1, 7, HOUR_MS, HOUR_MS, HOUR_MS, hello[0].number))
    batches = {number: [f"{number} {one}" for one in range(15)] + [f"once {number}"] for number in range(1, 65)}
    for number, texts in batches.items():
        payload = "".join(texts).encode()
        broker.send(
            wire.Batch(7, number, "fake", bytes(len(texts)), wire.pack_u32(map(len, texts)), revision="revision-1"),
            payload,
        )
    until(lambda: (cluster.folder / "64").exists())
    while batches:
        received = broker.receive(wire.FROM_WORKER, 20_000)
        assert received
        result, frames = received
        if isinstance(result, wire.BatchResult):
            assert bytes(frames[0]) == b"".join(vector(text, WIDE).tobytes() for text in batches.pop(result.batch))
    broker.close()


def test_answers_queued_in_the_broker_do_not_change(cluster: Cluster, peers: list[Peer]) -> None:
    """A frontend does not read until all its jobs are answered, and other requests have been served meanwhile."""
    cluster.broker()
    for _ in range(2):
        cluster.worker(dimension=WIDE)
    cluster.frontend()
    cluster.until_workers(2)
    slow = HandFrontend(cluster.endpoints["frontend"])
    peers.append(slow)
    slow.socket.rcvhwm, slow.socket.rcvbuf = 1, 4096
    slow.join()
    for request in range(50):
        slow.submit(request, [f"{request} {one}" for one in range(40)])

    def answered() -> bool:
        slow.send(wire.FrontendHeartbeat())
        return cluster.count("jobs_answered") == 2000

    until(answered)
    for number in range(20):
        texts = tuple(f"other {number} {one}" for one in range(8))
        answer = httpx.post(f"{cluster.url}/v1/embeddings", json=body(*texts), timeout=30)
        assert right(answer, texts, WIDE)
        slow.send(wire.FrontendHeartbeat())
    seen: set[tuple[int, int]] = set()
    large = 0
    while len(seen) < 2000:
        answers, (rows,) = slow.get(wire.Answers)
        large += len(rows) >= 65536
        jobs = list(zip(wire.unpack_u64(answers.requests), wire.unpack_u32(answers.positions), strict=True))
        assert bytes(rows) == b"".join(vector(f"{request} {one}", WIDE).tobytes() for request, one in jobs)
        seen |= set(jobs)
    assert large
