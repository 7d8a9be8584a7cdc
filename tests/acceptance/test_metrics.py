"""GET /metrics of broker and frontend as Prometheus reads it: real processes, fake workers."""

import asyncio
import math
import os
import signal
import socket
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.clients import Asker, body
from tests.harness.processes import Cluster, alive, descendants, until

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(cluster: Cluster) -> Samples:
    """Return every sample of a frontend by its name and labels."""
    return scrape_url(f"{cluster.url}/metrics")


def scrape_broker(cluster: Cluster) -> Samples:
    """Return every sample of the broker by its name and labels."""
    return scrape_url(f"http://{cluster.metrics_bind}/metrics")


def scrape_url(url: str) -> Samples:
    answer = httpx.get(url)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


def value(samples: Samples, metric: str, /, **labels: str) -> float:
    """Return the sum over all series with these labels, of which there must be one."""
    wanted = set(labels.items())
    found = [one for (name, of), one in samples.items() if name == metric and wanted <= set(of)]
    assert found, f"no {metric} with {labels}"
    return sum(found)


def embed(cluster: Cluster, *texts: str, status: int = 200) -> None:
    """Embed texts, and assert the status."""
    answer = httpx.post(f"{cluster.url}/v1/embeddings", json=body(*texts), timeout=30)
    assert answer.status_code == status


#: Lines of a frontend before the first request.
FRONTEND_LINES = (
    'vecmill_requests_total{endpoint="embeddings",model="",status="200"} 0.0',
    'vecmill_request_seconds_count{endpoint="embeddings"} 0.0',
    "vecmill_broker_up 1.0",
    # Untyped, because the counters of prometheus_client end with _total.
    "# TYPE ovms_requests_success untyped",
    "# TYPE ovms_requests_accepted untyped",
    "# TYPE ovms_current_requests gauge",
    "# TYPE ovms_request_time_us histogram",
    "# TYPE ovms_wait_for_infer_req_time_us histogram",
    "# TYPE ovms_inference_time_us histogram",
    "# TYPE vecmill_prompt_tokens_total counter",
)
#: Lines of a broker before the first worker.
BROKER_LINES = (
    'vecmill_jobs_total{outcome="answered"} 0.0',
    'vecmill_requests_rejected_total{code="overloaded"} 0.0',
    'vecmill_worker_evictions_total{reason="silent"} 0.0',
    "vecmill_open_jobs 0.0",
    "# TYPE vecmill_queue_seconds histogram",
    "# TYPE vecmill_inference_seconds histogram",
    "# TYPE vecmill_worker_up gauge",
)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_families_are_there_before_any_worker(cluster: Cluster, processes: str) -> None:
    cluster.broker()
    cluster.frontend("--processes", processes)
    until(cluster.health, what="a frontend")

    def with_broker() -> list[str]:
        # Each frontend process connects to the broker itself.
        lines = httpx.get(f"{cluster.url}/metrics").text.splitlines()
        return lines if "vecmill_broker_up 1.0" in lines else []

    frontend_lines = until(with_broker, what="the broker")
    broker_lines = httpx.get(f"http://{cluster.metrics_bind}/metrics").text.splitlines()
    assert [line for line in FRONTEND_LINES if line not in frontend_lines] == []
    assert [line for line in BROKER_LINES if line not in broker_lines] == []
    typed = [find_names(lines, "TYPE") for lines in (frontend_lines, broker_lines)]
    assert typed == [find_names(lines, "HELP") for lines in (frontend_lines, broker_lines)]
    # A family is served by one kind of process.
    assert not typed[0] & typed[1]
    assert not [line for line in frontend_lines + broker_lines if "_created" in line]


def find_names(lines: list[str], kind: str) -> set[str]:
    """Return the names of the families that have a line of this kind, TYPE or HELP."""
    return {line.split()[2] for line in lines if line.startswith(f"# {kind}")}


def test_workers_series_are_there_at_zero(cluster: Cluster) -> None:
    cluster.all()
    samples = scrape_broker(cluster)
    of = {"model": "fake", "device": "FAKE", "lane": "bulk"}
    for name in ("batch_jobs_count", "inference_seconds_count", "tokens_total", "padding_tokens_total"):
        assert value(samples, "vecmill_" + name, **of) == 0
    for name in ("queue_jobs", "queue_tokens", "job_dispatches_total"):
        assert value(samples, "vecmill_" + name, model="fake", lane="interactive") == 0
    assert value(samples, "vecmill_workers", model="fake") == 1
    assert value(samples, "vecmill_worker_up", model="fake") == 1
    assert value(samples, "vecmill_worker_credits", model="fake") > 0
    samples = scrape(cluster)
    assert value(samples, "vecmill_requests_in_flight", model="fake") == 0
    for name in ("success", "fail", "accepted", "rejected"):
        assert value(samples, "ovms_requests_" + name, name="fake") == 0
    assert value(samples, "ovms_responses", name="fake") == 0
    assert value(samples, "ovms_current_requests", name="fake", version="1") == 0
    for name in ("request", "wait_for_infer_req", "inference"):
        assert value(samples, f"ovms_{name}_time_us_count", name="fake", version="1") == 0


def test_known_traffic_gives_exact_numbers(cluster: Cluster) -> None:
    cluster.all()
    url = f"{cluster.url}/v3/embeddings"
    embed(cluster, "abc", "defgh")
    assert httpx.post(url, json=body("x" * 70) | {"truncate": True}).status_code == 200
    embed(cluster, "x" * 70, status=400)
    assert httpx.post(url, json={"model": "other", "input": "a"}).status_code == 404
    assert httpx.post(url, content=b"{").status_code == 400
    assert httpx.post(f"{cluster.url}/v1/tokenize", json={"model": "fake", "text": ["a", "b"]}).status_code == 200
    assert httpx.get(f"{cluster.url}/a/{'secret'}").status_code == 404
    samples = scrape(cluster)
    requests = "vecmill_requests_total"
    assert value(samples, requests, endpoint="embeddings", status="200", model="fake") == 2
    assert value(samples, requests, endpoint="embeddings", status="400", model="fake") == 1
    assert value(samples, requests, endpoint="embeddings", status="400", model="") == 1
    assert value(samples, requests, endpoint="embeddings", status="404", model="") == 1
    assert value(samples, requests, endpoint="tokenize", status="200", model="fake") == 1
    assert value(samples, requests, endpoint="unknown", status="404") == 1
    assert not [key for key in samples if "secret" in str(key) or "'other'" in str(key)]
    assert value(samples, "vecmill_request_seconds_count", endpoint="embeddings") == 5
    assert value(samples, "vecmill_inputs_total", endpoint="embeddings") == 3
    assert value(samples, "vecmill_prompt_tokens_total") == 8 + 64
    assert value(samples, "vecmill_truncated_tokens_total") == 6
    # With all of OVMS's labels, because a query may group by any.
    graph = (("api", "V3"), ("interface", "REST"), ("method", "Unary"), ("name", "fake"))
    assert samples["ovms_requests_success", (*graph, ("version", "1"))] == 2
    assert samples["ovms_requests_fail", (*graph, ("version", "1"))] == 1
    assert samples["ovms_requests_accepted", graph] == 3
    assert samples["ovms_requests_rejected", graph] == 0
    assert samples["ovms_responses", graph] == 2
    assert samples["ovms_request_time_us_count", (("interface", "REST"), ("name", "fake"), ("version", "1"))] == 2
    for name in ("wait_for_infer_req", "inference"):
        assert samples[f"ovms_{name}_time_us_count", (("name", "fake"), ("version", "1"))] == 2
    samples = scrape_broker(cluster)
    assert value(samples, "vecmill_jobs_total", outcome="answered") == 5
    assert value(samples, "vecmill_jobs_total", outcome="too_long") == 1
    assert value(samples, "vecmill_job_dispatches_total") == 6
    assert value(samples, "vecmill_tokens_total", model="fake", device="FAKE") == 72
    assert value(samples, "vecmill_queue_seconds_count", model="fake") == 6
    assert value(samples, "vecmill_batch_jobs_sum") == 6
    assert value(samples, "vecmill_inference_seconds_count") == value(samples, "vecmill_batch_jobs_count")


def test_killed_worker_is_counted_and_its_series_end(cluster: Cluster) -> None:
    _, (worker,), _ = cluster.all(requests=1)
    embed(cluster, "a")

    async def ask() -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            asker = Asker(cluster, client)
            held = await asker.occupy()
            samples = scrape(cluster)
            assert value(samples, "vecmill_requests_in_flight", model="fake") == 2
            assert value(samples, "ovms_current_requests", name="fake") == 2
            samples = scrape_broker(cluster)
            assert value(samples, "vecmill_open_jobs") == 2
            assert value(samples, "vecmill_worker_leases") == 2
            worker.signal(signal.SIGKILL)
            await asyncio.to_thread(until, lambda: value(scrape_broker(cluster), "vecmill_workers", model="fake") == 0)
            samples = scrape_broker(cluster)
            assert value(samples, "vecmill_worker_evictions_total", reason="connection_lost") == 1
            assert value(samples, "vecmill_jobs_requeued_total", model="fake") == 2
            assert value(samples, "vecmill_queue_suspects") == 1
            assert math.isinf(value(samples, "vecmill_expected_wait_seconds", model="fake"))
            # The series of a worker end with it.
            assert not [labels for _, labels in samples if "worker" in dict(labels)]
            assert value(samples, "vecmill_job_dispatches_total", model="fake") == 3
            asker.release()
            cluster.worker()
            assert {answer.status_code for answer in await asyncio.gather(*held.values())} == {200}

    asyncio.run(ask())
    assert value(scrape(cluster), "ovms_wait_for_infer_req_time_us_sum", name="fake") > 0
    # The broker may repeat what it showed a second ago.
    until(
        lambda: value(scrape_broker(cluster), "vecmill_job_dispatches_total") == 5, what="both batches to be repeated"
    )
    samples = scrape_broker(cluster)
    assert value(samples, "vecmill_jobs_total", outcome="answered") == 3


def test_worker_restarts_add_no_series(cluster: Cluster) -> None:
    _, workers, _ = cluster.all(workers=2)
    embed(cluster, "a", "b")
    before = sorted(scrape_broker(cluster))
    assert {dict(labels)["worker"][-7:] for name, labels in before if name == "vecmill_worker_up"} == {
        "/FAKE/0",
        "/FAKE/1",
    }
    for number in range(3):
        workers[-1].signal(signal.SIGKILL)
        cluster.until_workers(1)
        workers.append(cluster.worker())
        cluster.until_workers(2)
        assert sorted(scrape_broker(cluster)) == before, number


def test_rejection_is_counted_by_its_code(cluster: Cluster) -> None:
    cluster.broker("--max-bytes", str(len("wait go" + "next 1")))
    cluster.worker(requests=1)
    cluster.frontend()
    cluster.until_workers(1)

    async def ask() -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            asker = Asker(cluster, client)
            held = await asker.occupy()
            await asyncio.to_thread(embed, cluster, "too many", status=503)
            asker.release()
            assert {answer.status_code for answer in await asyncio.gather(*held.values())} == {200}

    asyncio.run(ask())
    samples = scrape_broker(cluster)
    rejected = {of[0][1]: number for (name, of), number in samples.items() if name == "vecmill_requests_rejected_total"}
    assert {code: number for code, number in rejected.items() if number} == {"overloaded": 1}
    samples = scrape(cluster)
    assert value(samples, "vecmill_requests_total", endpoint="embeddings", status="503", model="fake") == 1
    assert value(samples, "ovms_requests_accepted") == value(samples, "ovms_responses") == 2
    assert value(samples, "ovms_requests_rejected") == value(samples, "ovms_requests_fail") == 1


def test_disconnected_client_is_counted_with_499(cluster: Cluster) -> None:
    cluster.all()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{cluster.url}/v1/embeddings", json=body("wait go"), timeout=0.3)
    until(lambda: value(scrape(cluster), "vecmill_requests_in_flight", model="fake") == 0, what="the end of it")
    samples = scrape(cluster)
    assert value(samples, "vecmill_requests_total", endpoint="embeddings", status="499") == 1
    assert value(samples, "ovms_requests_accepted") == 1
    assert value(samples, "ovms_requests_fail") == value(samples, "ovms_responses") == 0
    assert value(scrape_broker(cluster), "vecmill_jobs_total", outcome="cancelled") == 1
    (cluster.folder / "go").touch()


def test_every_process_returns_sums_including_dead_ones(cluster: Cluster) -> None:
    cluster.broker()
    cluster.worker()
    parent = cluster.frontend("--processes", "2")
    cluster.until_workers(1)
    for number in range(20):
        embed(cluster, str(number))
    name, labels = "vecmill_requests_total", {"endpoint": "embeddings", "status": "200", "model": "fake"}
    assert {value(scrape(cluster), name, **labels) for _ in range(10)} == {20}
    folder = Path(environment(descendants(parent.process.pid)[0])["PROMETHEUS_MULTIPROC_DIR"])
    assert folder.is_dir()
    one = descendants(parent.process.pid)[0]
    os.kill(one, signal.SIGKILL)
    until(lambda: not alive(one) and len(descendants(parent.process.pid)) == 2, what="another process")
    cluster.until_workers(1)
    embed(cluster, "one more")
    assert value(scrape(cluster), name, **labels) == 21
    parent.signal(signal.SIGTERM)
    assert parent.wait(30) == 0
    assert not folder.exists()


def environment(pid: int) -> dict[str, str]:
    """Return the environment of a process."""
    lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(line.decode().split("=", 1) for line in lines if b"=" in line)


def test_frontend_metrics_without_a_broker(cluster: Cluster) -> None:
    broker, _, _ = cluster.all()
    embed(cluster, "a")
    broker.signal(signal.SIGKILL)
    until(lambda: value(scrape(cluster), "vecmill_broker_up") == 0, what="the broker's end")
    samples = scrape(cluster)
    assert value(samples, "vecmill_requests_total", endpoint="embeddings", status="200", model="fake") == 1


def test_frontend_negotiates_openmetrics(cluster: Cluster) -> None:
    cluster.all()
    answer = httpx.get(f"{cluster.url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_scrape_of_a_stopped_broker_ends(cluster: Cluster) -> None:
    broker, _, _ = cluster.all()
    embed(cluster, "a")
    broker.signal(signal.SIGSTOP)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"http://{cluster.metrics_bind}/metrics", timeout=0.5)
    broker.signal(signal.SIGCONT)
    assert value(scrape_broker(cluster), "vecmill_jobs_total", outcome="answered") == 1
    broker.signal(signal.SIGTERM)
    assert broker.wait(20) == 0
    with pytest.raises(httpx.ConnectError):
        scrape_broker(cluster)


def test_taken_metrics_port_ends_the_start(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        broker = cluster.broker("--metrics-bind", f"127.0.0.1:{other.getsockname()[1]}")
        assert broker.wait(20) == 2
    (line,) = [one for one in broker.output.splitlines() if one.startswith("vecmill broker")]
    assert "cannot serve metrics on 127.0.0.1:" in line
    assert "choose another --metrics-bind" in line
    assert "Traceback" not in broker.output


def test_empty_bind_disables_metrics(cluster: Cluster) -> None:
    broker = cluster.broker("--metrics-bind", "")
    until(lambda: "frontends connect to" in broker.output)
    with pytest.raises(httpx.ConnectError):
        scrape_broker(cluster)
