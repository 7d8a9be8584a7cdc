"""Batches with real processes: the whole cycle by OpenAI's client, killed processes, several runners, and a drain."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai.types import Batch

from tests.harness.batches import ENDPOINT, line
from tests.harness.fake_worker import vector
from tests.harness.processes import Cluster, Program, free_port, until

ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Return a cluster without processes."""
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def start(cluster: Cluster, **fakery: int) -> openai.OpenAI:
    """Start all processes but a runner, and return a client."""
    cluster.broker()
    cluster.worker(**fakery)
    cluster.frontend("--data", str(cluster.folder / "data"))
    cluster.until_workers(1)
    return openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none")


def create(client: openai.OpenAI, content: str) -> Batch:
    """Upload lines and create a batch."""
    file = client.files.create(file=("input.jsonl", content.encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")


def numbered(count: int) -> str:
    return "\n".join(line(str(number), f"text {number}") for number in range(count))


def wait(client: openai.OpenAI, batch: Batch, within_s: float = 60) -> Batch:
    """Return the batch when it has ended."""

    def find() -> Batch | None:
        found = client.batches.retrieve(batch.id)
        return found if found.status in ENDED else None

    found = until(find, within_s, "the end of the batch")
    assert found
    return found


def check_complete(client: openai.OpenAI, batch: Batch, count: int) -> None:
    """Check that a batch has all lines once, in order, with their vectors."""
    assert batch.status == "completed"
    assert batch.request_counts
    assert batch.request_counts.to_dict() == {"total": count, "completed": count, "failed": 0}
    assert batch.error_file_id is None
    assert batch.output_file_id
    rows = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in rows] == [str(number) for number in range(count)]
    for row in rows:
        expected = vector(f"text {row['custom_id']}").tolist()
        assert row["response"]["body"]["data"][0]["embedding"] == expected


def test_client_runs_the_whole_cycle(cluster: Cluster, tmp_path: Path) -> None:
    client = start(cluster)
    health, metrics = tmp_path / "health", free_port()
    # The answers have the limits of the frontend, not of the runner.
    limits = ("--max-inputs", "1", "--truncate", "start", "--no-token-ids", "true")
    cluster.runner("--health-file", str(health), "--metrics-bind", f"127.0.0.1:{metrics}", *limits)
    bodies = [
        {"model": "fake", "input": "a"},
        {"model": "fake", "input": ["a", "b"], "encoding_format": "base64"},
        {"model": "fake", "input": [1, 2], "dimensions": 4},
        {"model": "fake", "input": "x" * 100},
        {"model": "fake:query", "input": "a", "user": "me"},
        {"model": "fake", "input": "x" * 100, "truncate": "end"},
    ]
    lines = [
        json.dumps({"custom_id": f"id {number}", "method": "POST", "url": ENDPOINT, "body": body})
        for number, body in enumerate(bodies)
    ]
    batch = create(client, "\n".join(lines))
    assert batch.status in ("validating", "in_progress")
    batch = wait(client, batch)
    assert batch.status == "completed"
    assert batch.request_counts
    assert (batch.request_counts.completed, batch.request_counts.failed) == (5, 1)
    assert batch.usage
    assert batch.usage.total_tokens > 0
    assert batch.output_file_id
    assert batch.error_file_id
    answers = {}
    for file_id in (batch.output_file_id, batch.error_file_id):
        for row_text in client.files.content(file_id).content.splitlines():
            answers[json.loads(row_text)["custom_id"]] = row_text
    # Each answer is byte for byte that of the HTTP API.
    for number, body in enumerate(bodies):
        direct = httpx.post(f"{cluster.url}{ENDPOINT}", json=body)
        row = json.loads(answers[f"id {number}"])
        assert row["response"]["status_code"] == direct.status_code
        assert row["error"] is None
        assert b'"body":' + direct.content + b'},"error":null}' in answers[f"id {number}"]
    other = create(client, numbered(3))
    check_complete(client, wait(client, other), 3)
    assert [one.id for one in client.batches.list(limit=1)] == [other.id, batch.id]
    cancelled = create(client, numbered(800))
    client.batches.cancel(cancelled.id)
    assert wait(client, cancelled).status in ("cancelled", "completed")
    client.files.delete(batch.output_file_id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(batch.output_file_id)
    assert health.exists()
    text = httpx.get(f"http://127.0.0.1:{metrics}/metrics").text
    assert 'vecmill_batch_lines_total{outcome="failed"} 1.0' in text
    assert 'vecmill_batches{status="in_progress"} 0.0' in text


def test_invalid_files_fail_with_line_numbers(cluster: Cluster) -> None:
    client = start(cluster)
    cluster.runner("--max-batch-inputs", "20")
    cases = {
        "not JSON": "invalid_json_line",
        line("a") + "\n" + line("a"): "duplicate_custom_id",
        line("a").replace(ENDPOINT, "/v1/chat/completions"): "url_mismatch",
        numbered(21): "too_many_tasks",
        line("a", "x" * 20_000_000): "line_too_large",
        line("a") + "\0": "invalid_json_line",
        "\r\n\r\n": "empty_file",
    }
    # A batch of a model that no server has yet does not stop the others.
    waiting = [create(client, line("a", model="unknown")) for _ in range(5)]
    batches = {code: create(client, content) for content, code in cases.items()}
    for code, batch in batches.items():
        found = wait(client, batch)
        assert (found.status, found.output_file_id) == ("failed", None)
        assert found.errors
        assert found.errors.data
        assert found.errors.data[0].code == code
        assert (found.errors.data[0].line is None) == (code == "empty_file")
    good = create(client, "\ufeff" + numbered(5).replace("\n", "\r\n"))
    check_complete(client, wait(client, good), 5)
    for batch in waiting:
        assert client.batches.retrieve(batch.id).status == "validating"
        client.batches.cancel(batch.id)
        assert wait(client, batch).status == "cancelled"


def test_batch_survives_kills_of_all_processes(cluster: Cluster) -> None:
    client = start(cluster, us_per_token=500)
    dice = random.Random(1)
    runners = [cluster.runner(), cluster.runner()]
    batch = create(client, numbered(800))
    broker, worker, frontend = cluster.programs[:3]
    starts = {
        "runner": lambda: cluster.runner(),
        "broker": lambda: cluster.broker(),
        "worker": lambda: cluster.worker(us_per_token=500),
        "frontend": lambda: cluster.frontend("--data", str(cluster.folder / "data")),
    }
    programs = {"runner": runners[0], "broker": broker, "worker": worker, "frontend": frontend}
    # Random moments of the kills, which no condition marks.
    for targets in (["runner"], ["worker"], ["broker"], ["frontend"], list(programs)):
        time.sleep(dice.uniform(0.1, 0.5))
        client.close()
        client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=10)
        for target in targets:
            programs[target].process.kill()
        for target in targets:
            programs[target].process.wait()
            programs[target] = starts[target]()
        until(lambda: cluster.health().get("workers") == 1, 30, "all processes")
    check_complete(client, wait(client, batch), 800)


def test_drained_runner_leaves_its_batch(cluster: Cluster) -> None:
    client = start(cluster, us_per_token=500)
    first = cluster.runner()
    batch = create(client, numbered(800))
    until(lambda: (client.batches.retrieve(batch.id).request_counts or batch.request_counts).completed, 30)  # type: ignore[union-attr]
    first.signal(signal.SIGTERM)
    assert first.wait(30) == 0
    found = client.batches.retrieve(batch.id)
    assert found.status == "in_progress"
    assert "Traceback" not in first.output
    cluster.runner()
    check_complete(client, wait(client, found), 800)


def test_two_runners_never_share_a_batch(cluster: Cluster) -> None:
    client = start(cluster)
    runners = [cluster.runner("--log-level", "info") for _ in range(2)]
    batches = [create(client, numbered(200)) for _ in range(4)]
    for batch in batches:
        check_complete(client, wait(client, batch), 200)
    for batch in batches:
        assert sum(runner.output.count(f"{batch.id}: claimed") for runner in runners) == 1


def test_batch_waits_for_space_on_a_full_disk(cluster: Cluster) -> None:
    data = cluster.folder / "data"
    data.mkdir()
    unshare = ["unshare", "--mount", *["--map-root-user"] * bool(os.geteuid())]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", data], capture_output=True).returncode:
        pytest.skip("this machine allows no mount in a namespace")
    cluster.broker()
    cluster.worker(us_per_token=200)
    known = f"--broker {cluster.endpoints['frontend']} --data {data}"
    runner = f"{sys.executable} -m frontend.batches {known}"
    frontend = f"exec {sys.executable} -m frontend --port {cluster.port} {known}"
    script = f"mount -t tmpfs -o size=16m tmpfs {data} && {{ {runner} & {frontend}; }}"
    program = Program("frontend", [*unshare, "sh", "-c", script], cluster.folder / "frontend.log")
    cluster.programs.append(program)
    cluster.until_workers(1)
    client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none")
    batch = create(client, numbered(3000))
    filler = Path(f"/proc/{program.process.pid}/root{data}/filler")
    space = os.statvfs(filler.parent)
    filler.write_bytes(bytes(space.f_bavail * space.f_bsize - 200_000))
    until(lambda: "waits for the store" in program.output, 60, "the full disk")
    assert client.batches.retrieve(batch.id).status in ("validating", "in_progress")
    filler.unlink()
    check_complete(client, wait(client, batch), 3000)


def test_runner_without_data_folder_is_refused(cluster: Cluster) -> None:
    program = cluster.runner("--data", "")
    assert program.wait() == 2
    assert "--data is empty" in program.output
