"""The broker's /metrics over HTTP, with a poll loop that the test plays."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.core.metrics import Family, Sample
from broker.shell import metrics_server
from broker.shell.metrics_server import MetricsServer, parse_bind, render
from tests.harness.processes import until

FAMILIES = [
    Family("jobs", "counter", "Jobs", ("outcome",), [Sample(("answered",), 3.0)]),
    Family("open_jobs", "gauge", "Open jobs", (), [Sample((), float("inf"))]),
    Family("wait", "histogram", "Wait", ("lane",), [Sample(("bulk",), 2.5, (1, 0, 2))], (0.5, 1.0)),
    Family("empty", "gauge", "No series", ("worker",), []),
]


class Loop:
    """A poll loop that answers scrapes when it is woken, until it stalls."""

    def __init__(self) -> None:
        self.woken, self.collected, self.stalled = threading.Semaphore(0), 0, False
        self.server = MetricsServer("127.0.0.1:0", self.woken.release)
        self._ended = False
        self._thread = threading.Thread(target=self._run)
        self.server.start()
        self._thread.start()

    def _run(self) -> None:
        while self.woken.acquire() and not self._ended:
            if not self.stalled:
                self.server.answer_scrapes(self.collect)

    def collect(self) -> list[Family]:
        self.collected += 1
        return FAMILIES

    def end(self) -> None:
        self._ended = True
        self.woken.release()
        self._thread.join()
        self.server.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.end()


def test_scrape_is_prometheus_text(loop: Loop) -> None:
    answer = httpx.get(loop.server.url)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(answer.text)
        for one in family.samples
    }
    assert samples == {
        ("vecmill_jobs_total", "answered"): 3,
        ("vecmill_open_jobs",): float("inf"),
        ("vecmill_wait_bucket", "bulk", "0.5"): 1,
        ("vecmill_wait_bucket", "bulk", "1.0"): 1,
        ("vecmill_wait_bucket", "bulk", "+Inf"): 3,
        ("vecmill_wait_count", "bulk"): 3,
        ("vecmill_wait_sum", "bulk"): 2.5,
    }
    assert "# TYPE vecmill_empty gauge" in answer.text


def test_openmetrics_is_negotiated() -> None:
    body, content_type = render(FAMILIES, "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_head_has_headers_only(loop: Loop) -> None:
    answer = httpx.head(loop.server.url)
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(httpx.get(loop.server.url).content)


@pytest.mark.parametrize("path", ["/", "/metrics/", "/health"])
def test_other_paths_are_not_found(loop: Loop, path: str) -> None:
    answer = httpx.get(loop.server.url.replace("/metrics", path))
    assert (answer.status_code, answer.text) == (404, "not found; metrics are at /metrics\n")
    assert loop.collected == 0


def test_query_is_ignored(loop: Loop) -> None:
    assert httpx.get(f"{loop.server.url}?name[]=x").status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods_are_not_allowed(loop: Loop, method: str) -> None:
    answer = httpx.request(method, loop.server.url)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_stalled_loop_gives_503(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "SNAPSHOT_WAIT_S", 0.1)
    loop.stalled = True
    answer = httpx.get(loop.server.url)
    assert answer.status_code == 503
    assert "did not respond within 0.1 s" in answer.text
    loop.stalled = False
    assert httpx.get(loop.server.url).status_code == 200
    assert loop.collected == 1


def test_ended_loop_gives_503_at_once() -> None:
    server = MetricsServer("127.0.0.1:0", lambda: None)
    server.start()
    answers: list[int] = []
    scrape = threading.Thread(target=lambda: answers.append(httpx.get(server.url).status_code))
    started = time.monotonic()
    scrape.start()
    until(lambda: server._snapshots._is_wanted)
    server.close()
    scrape.join()
    assert answers == [503]
    assert time.monotonic() - started < metrics_server.SNAPSHOT_WAIT_S
    assert server._snapshots.take() is None


def test_snapshot_is_used_again_within_a_second(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        assert httpx.get(loop.server.url).status_code == 200
    assert loop.collected == 1
    monkeypatch.setattr(metrics_server, "REUSE_S", 0.0)
    assert httpx.get(loop.server.url).status_code == 200
    assert loop.collected == 2


def test_dripping_client_is_ended(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "CONNECTION_S", 0.3)
    address = loop.server.url.split("/")[2].rsplit(":", 1)
    with socket.create_connection((address[0], int(address[1]))) as client:
        started = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() < started + 20:
                client.sendall(b"G")
                client.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if not client.recv(1):
                        break
        assert time.monotonic() < started + 10
    assert httpx.get(loop.server.url).status_code == 200


def test_scrapes_at_the_same_time_share_a_snapshot(loop: Loop) -> None:
    loop.stalled = True
    scrapes = [threading.Thread(target=httpx.get, args=(loop.server.url,)) for _ in range(5)]
    for scrape in scrapes:
        scrape.start()
    until(lambda: len(loop.server._snapshots._changed._waiters) == 5)  # type: ignore[attr-defined]
    loop.stalled = False
    loop.woken.release()
    for scrape in scrapes:
        scrape.join()
    assert loop.collected == 1


def is_served(server: MetricsServer) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(server.url).status_code == 200
    return False


def test_connections_are_bounded(loop: Loop) -> None:
    port = int(loop.server._server.server_address[1])
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(metrics_server.MAX_CONNECTIONS)]
    until(lambda: not is_served(loop.server), what="a refusal")
    for connection in idle:
        connection.close()
    until(lambda: is_served(loop.server), what="an answer")


@pytest.mark.parametrize(
    ("bind", "parsed"),
    [
        ("127.0.0.1:7412", ("127.0.0.1", 7412)),
        ("localhost:1", ("localhost", 1)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:7412", ("::1", 7412)),
    ],
)
def test_bind_is_host_and_port(bind: str, parsed: tuple[str, int]) -> None:
    assert parse_bind(bind) == parsed


@pytest.mark.parametrize(
    "bind",
    [
        "7412",
        "host",
        "host:",
        "a:1?x",
        "a:1#x",
        " a:1",
        ":7412",
        "host:x",
        "host:65536",
        "::1",
        "[::1",
        "a@b:1",
        "a:1/b",
    ],
)
def test_malformed_bind_is_refused(bind: str) -> None:
    with pytest.raises(ValueError, match=r"is not HOST:PORT"):
        parse_bind(bind)
