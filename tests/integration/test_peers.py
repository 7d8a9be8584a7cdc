"""A real broker, and peers that the test plays: they break rules, or record the order of messages."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from frontend.session.pending import NOT_FINITE
from tests.harness.clients import body, right
from tests.harness.fake_worker import model, vector
from tests.harness.peers import HandFrontend, HandWorker, Peer, submit
from tests.harness.processes import Cluster, until

Post = Callable[..., "Future[httpx.Response]"]


@pytest.fixture
def post(cluster: Cluster) -> Iterator[Post]:
    """Return a function that embeds texts over HTTP in a thread."""
    with ThreadPoolExecutor(8) as threads:
        yield lambda *texts: threads.submit(httpx.post, f"{cluster.url}/v1/embeddings", json=body(*texts), timeout=60)


def hand_worker(cluster: Cluster, peers: list[Peer], **about: int) -> HandWorker:
    """Return a worker that has joined."""
    worker = HandWorker(cluster.endpoints["worker"])
    peers.append(worker)
    return worker.join(**about)


def hand_frontend(cluster: Cluster, peers: list[Peer], number: int = 1) -> HandFrontend:
    """Return a frontend that has joined."""
    frontend = HandFrontend(cluster.endpoints["frontend"])
    peers.append(frontend)
    return frontend.join(number)


def ids(answers: wire.Answers) -> list[int]:
    """Return the numbers of the requests in a message."""
    return list(wire.unpack_u64(answers.requests))


# --- workers that break the rules ------------------------------------------------------------------------------------


def test_input_above_the_budget_runs_alone(cluster: Cluster, peers: list[Peer], post: Post) -> None:
    cluster.broker()
    cluster.frontend()
    worker = hand_worker(cluster, peers, batch_tokens=10)
    cluster.until_workers(1)
    texts = ("a", "b", "x" * 60, "c", "d")
    asked = post(*texts)
    batches: list[list[str]] = []
    while sum(len(jobs) for jobs in batches) < len(texts):
        batch, jobs = worker.batch()
        worker.answer(batch, jobs)
        batches.append(jobs)
    assert ["x" * 60] in batches
    assert len(batches) < len(texts)
    assert right(asked.result(), texts)


@pytest.mark.parametrize("wrong", ["rows", "dimension", "bytes"])
def test_result_of_wrong_shape_is_never_served(cluster: Cluster, peers: list[Peer], post: Post, wrong: str) -> None:
    """One row is missing; rows have another length; the frame is shorter than its header requires."""
    cluster.broker("--lease-s", "1")
    cluster.frontend()
    worker = hand_worker(cluster, peers)
    cluster.until_workers(1)
    asked = post("a", "b")
    batch, texts = worker.batch()
    assert texts == ["a", "b"]
    match wrong:
        case "rows":
            worker.send(*worker.result(batch, ["a"]))
        case "dimension":
            worker.send(*worker.result(batch, texts, dimension=7))
        case "bytes":
            result, rows = worker.result(batch, texts)
            worker.send(result, rows[:-4])
    goodbye, _ = worker.get(wire.Goodbye)
    assert goodbye.code == (ErrorCode.LEASE_EXPIRED if wrong == "bytes" else ErrorCode.INTERNAL)
    cluster.worker()
    assert right(asked.result(), ("a", "b"))
    assert cluster.count("malformed_messages") == (wrong == "bytes")
    assert cluster.count("batches_failed") == (wrong != "bytes")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_row_that_is_not_finite_is_never_served(cluster: Cluster, peers: list[Peer], post: Post, value: float) -> None:
    cluster.broker()
    cluster.frontend()
    worker = hand_worker(cluster, peers)
    cluster.until_workers(1)
    asked = post("a", "b")
    batch, texts = worker.batch()
    result, rows = worker.result(batch, texts)
    worker.send(result, rows[:-4] + np.float32(value).tobytes())
    answer = asked.result()
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == NOT_FINITE


def test_unexpected_results_are_counted_and_ignored(cluster: Cluster, peers: list[Peer], post: Post) -> None:
    cluster.broker()
    cluster.frontend()
    worker = hand_worker(cluster, peers)
    cluster.until_workers(1)
    asked = post("a", "b")
    batch, texts = worker.batch()
    _, wrong = worker.result(batch, ["not a", "not b"])
    result, rows = worker.result(batch, texts)
    # For an unknown batch; of another epoch; the right result; and that again with other rows.
    worker.send(msgspec.structs.replace(result, batch=batch.batch + 1), wrong)
    worker.send(msgspec.structs.replace(result, epoch=batch.epoch - 1), wrong)
    worker.send(result, rows)
    worker.send(result, wrong)
    worker.send(wire.BatchError(batch.epoch, batch.batch, ErrorCode.DEVICE, "no", worker.credit, batch.batch))
    assert right(asked.result(), ("a", "b"))
    until(lambda: cluster.count("late_answers") == 4)
    assert cluster.count("jobs_answered") == 2
    assert cluster.count("jobs_failed") == 0
    assert cluster.number("workers") == 1


def test_broker_that_was_stopped_evicts_no_live_worker(cluster: Cluster, post: Post) -> None:
    """The workers end their connections after 3 s, and a batch is running."""
    broker, _, _ = cluster.all(workers=2, requests=1)
    asked = post("wait go")
    until(lambda: cluster.number("open_jobs") == 1)
    broker.signal(signal.SIGSTOP)
    until(lambda: cluster.health()["broker"] == "away")
    time.sleep(0.5)
    broker.signal(signal.SIGCONT)
    (cluster.folder / "go").touch()
    assert right(asked.result(), ("wait go",))
    until(lambda: cluster.number("workers") == 2)
    assert cluster.count("workers_evicted") == 0


@pytest.mark.parametrize("role", ["frontend", "worker"])
def test_peer_with_other_protocol_is_refused(cluster: Cluster, peers: list[Peer], role: str) -> None:
    cluster.all()
    peers.append(Peer(cluster.endpoints[role]).connect())
    hellos = {
        "frontend": wire.FrontendHello(98, 99, "new", b"u" * 16, "host", 1),
        "worker": wire.WorkerHello(98, 99, "new", b"u" * 16, 1, "host", 1, "CPU", [model()], 1, 1, 1),
    }
    peers[0].send(hellos[role])
    frames = peers[0].receive()
    assert frames
    decoders: dict[str, Any] = {"frontend": wire.TO_FRONTEND, "worker": wire.TO_WORKER}
    goodbye, _ = wire.decode(decoders[role], frames)
    assert isinstance(goodbye, wire.Goodbye)
    assert goodbye.code == ErrorCode.PROTOCOL
    assert cluster.count("peers_refused") == 1
    assert "supports protocol versions 1 to 1" in cluster.programs[0].output
    assert right(httpx.post(f"{cluster.url}/v1/embeddings", json=body("a"), timeout=30), ("a",))
    assert cluster.number("workers") == 1


# --- frontends that break the rules ----------------------------------------------------------------------------------


def test_repeated_submission_runs_once(cluster: Cluster, peers: list[Peer]) -> None:
    """Repeated in one message, while it is queued, and while it runs."""
    cluster.all(requests=1)
    frontend = hand_frontend(cluster, peers)
    frontend.submit(1, ["wait go"])
    until(lambda: cluster.workers()[0]["leased_batches"] == 1)
    message, frame = submit(2, ["a", "b"])
    frontend.send(wire.Submit(message.submissions * 2), frame, frame)
    frontend.send(message, frame)
    frontend.submit(1, ["wait go"])
    until(lambda: cluster.count("duplicate_requests") == 3)
    (cluster.folder / "go").touch()
    answered: dict[int, bytes] = {}
    while len(answered) < 2:
        answers, (rows,) = frontend.get(wire.Answers)
        for number in set(ids(answers)):
            assert number not in answered
            answered[number] = bytes(rows)
    assert answered[2] == b"".join(vector(text).tobytes() for text in ("a", "b"))
    frontend.submit(3, ["c"])
    assert ids(frontend.get(wire.Answers)[0]) == [3]
    assert cluster.count("jobs_admitted") == cluster.count("jobs_dispatched") == cluster.count("jobs_answered") == 4


@pytest.mark.parametrize("lane", list(wire.Lane))
def test_flood_of_one_client_does_not_block_others(cluster: Cluster, peers: list[Peer], lane: wire.Lane) -> None:
    """The other client's request is in one of the next two batches."""
    cluster.broker()
    cluster.frontend()
    worker = hand_worker(cluster, peers)
    cluster.until_workers(1)
    flood, other = hand_frontend(cluster, peers, 1), hand_frontend(cluster, peers, 2)
    for request in range(100):
        flood.submit(request, [f"flood {request} {number} {'x' * 40}" for number in range(40)], lane)
    batch, texts = worker.batch()
    until(lambda: cluster.count("jobs_admitted") == 4000)
    other.submit(1, ["let me through"], lane)
    until(lambda: cluster.count("jobs_admitted") == 4001)
    seen = []
    for _ in range(2):
        worker.answer(batch, texts)
        batch, texts = worker.batch()
        seen += texts
    assert "let me through" in seen
    assert cluster.number("queued_jobs") > 3000


def test_frontend_that_never_reads_costs_bounded_memory(cluster: Cluster, peers: list[Peer]) -> None:
    """The frontend submits requests for vectors of 16 KB and reads no answer, until it is rejected."""
    jobs, dimension = 4000, 4096
    flags = ("--max-jobs", str(jobs), "--max-client-share", "1", "--max-unread-bytes", "1000000")
    broker = cluster.broker(*flags)
    cluster.worker(dimension=dimension, requests=1)
    cluster.frontend()
    cluster.until_workers(1)
    slow = HandFrontend(cluster.endpoints["frontend"])
    peers.append(slow)
    slow.socket.rcvhwm, slow.socket.rcvbuf = 1, 4096
    slow.join()
    before = resident(broker.process.pid)
    for request in range(jobs // 40):
        slow.submit(request, [f"{request} {number}" for number in range(40)])

    def answered() -> bool:
        slow.send(wire.FrontendHeartbeat(0))
        return cluster.count("jobs_answered") == jobs

    until(answered, 60)
    slow.submit(500, ["one more"])
    until(lambda: cluster.count("requests_rejected") == 1)
    vectors = jobs * dimension * 4
    assert 0.5 * vectors < resident(broker.process.pid) - before < 2 * vectors
    texts = ("a", "b")
    answer = httpx.post(f"{cluster.url}/v1/embeddings", json=body(*texts), timeout=30)
    assert right(answer, texts, dimension)
    # Without heartbeats its queued jobs are cancelled.
    with ThreadPoolExecutor() as threads:
        blocker = threads.submit(httpx.post, f"{cluster.url}/v1/embeddings", json=body("wait go"), timeout=60)
        until(lambda: cluster.number("open_jobs") == 1)
        slow.send(wire.FrontendHeartbeat(vectors))
        slow.submit(1000, [f"waiting {number}" for number in range(2000)])
        until(lambda: cluster.count("jobs_cancelled") == 2000)
        (cluster.folder / "go").touch()
        assert right(blocker.result(), ("wait go",), dimension)
    assert cluster.number("open_jobs") == 0


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
