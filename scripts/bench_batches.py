"""Bench of batches: rate against bulk requests, memory of all processes, and an interactive client beside the batch.

`python scripts/bench_batches.py --lines 50000 --fake` has a worker that computes next to nothing, so that a batch of
50,000 lines with 384 values each shows what the other processes need. Without `--fake`, the model is all-MiniLM-L6-v2.
The rates are those of rounds that alternate: bulk requests (32 texts, 4 clients), then a batch of the same texts.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from bench_client import Client
from bench_texts import generate_texts, read_collection
from chaos_system import measure_memory_mib

from tests.harness.processes import ROOT, Cluster
from tests.harness.servers import MODEL, Server

BULK_TEXTS, BULK_CLIENTS = 32, 4
ENDPOINT = "/v1/embeddings"


def make_body(model: str, texts: str | list[str]) -> dict[str, Any]:
    """Return the body of a request."""
    return {"model": model, "input": texts, "truncate": "end"}


def make_request(model: str, texts: str | list[str]) -> bytes:
    """Return a request on a connection that stays open."""
    body = json.dumps(make_body(model, texts)).encode()
    return f"POST {ENDPOINT} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Target:
    """A running server."""

    def __init__(self, folder: Path, *, fake: bool) -> None:
        self.model = "fake" if fake else MODEL
        if fake:
            self.cluster = Cluster(folder)
            pids = {"broker": self.cluster.broker(), "worker": self.cluster.worker(dimension=384)}
            pids["frontend"] = self.cluster.frontend("--data", str(folder / "data"))
            pids["runner"] = self.cluster.runner()
            self.cluster.until_workers(1)
            self.port, self.close = self.cluster.port, self.cluster.close
            self.pids = {name: program.process.pid for name, program in pids.items()}
        else:
            server = Server(folder)
            self.port, self.close = server.port, server.program.close
            names = {"broker": "broker", "workers": "worker", "frontend": "frontend", "frontend.batches": "runner"}
            self.pids = {}
            for pid in server.children():
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if len(words) > 2 and words[2] in names:
                    self.pids[names[words[2]]] = pid
        self.url = f"http://127.0.0.1:{self.port}"

    def start_batch(self, texts: list[str]) -> str:
        """Upload a line for each text, and return the id of the batch."""
        lines = [
            json.dumps(
                {"custom_id": str(number), "method": "POST", "url": ENDPOINT, "body": make_body(self.model, text)}
            )
            for number, text in enumerate(texts)
        ]
        files = {"file": ("input.jsonl", "\n".join(lines).encode())}
        file = httpx.post(f"{self.url}/v1/files", data={"purpose": "batch"}, files=files, timeout=60)
        body = {"input_file_id": file.json()["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
        return str(httpx.post(f"{self.url}/v1/batches", json=body, timeout=60).json()["id"])

    def find_batch(self, batch: str) -> dict[str, Any]:
        """Return the batch's object."""
        found: dict[str, Any] = httpx.get(f"{self.url}/v1/batches/{batch}", timeout=60).json()
        return found


class Queries:
    """Interactive client in a process of its own, because the work of this process would delay it."""

    def __init__(self, target: Target) -> None:
        command = [sys.executable, __file__, "--queries", str(target.port), target.model]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def stop(self) -> list[float]:
        """Return the seconds of each answer."""
        output, _ = self._process.communicate("")
        assert self._process.returncode == 0
        return [float(word) for word in output.split()]


async def send_queries(port: int, model: str) -> None:
    """Send one short text after the other until the end of standard input, and print the seconds of each answer."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, over.set)
    client = await Client(port).open()
    for number in itertools.count():
        status, waited = await client.send_request(make_request(model, f"a short query {number}"))
        assert status == 200, client.body
        print(waited)
        # As a user who types; a closed loop would itself be a load.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), 0.02)
            break
    client.close()


async def measure_bulk(target: Target, texts: Iterator[str], seconds: float) -> float:
    """Return the texts per second of bulk requests."""
    until, count, started = time.monotonic() + seconds, 0, time.monotonic()

    async def run_client() -> None:
        nonlocal count
        client = await Client(target.port).open()
        while time.monotonic() < until:
            status, _ = await client.send_request(make_request(target.model, list(itertools.islice(texts, BULK_TEXTS))))
            assert status == 200, client.body
            count += BULK_TEXTS
        client.close()

    await asyncio.gather(*(run_client() for _ in range(BULK_CLIENTS)))
    return count / (time.monotonic() - started)


def measure_batch(target: Target, texts: list[str], memory: dict[str, list[float]] | None = None) -> float:
    """Run a batch. Return its lines per second, and add the MiB of each process while it runs to `memory`."""
    started, batch = time.monotonic(), target.start_batch(texts)
    while (found := target.find_batch(batch))["status"] in ("validating", "in_progress", "finalizing"):
        if memory is not None and found["request_counts"]["completed"]:
            for name, pid in target.pids.items():
                memory.setdefault(name, []).append(measure_memory_mib(pid))
        time.sleep(0.2)
    seconds = time.monotonic() - started
    assert found["request_counts"] == {"total": len(texts), "completed": len(texts), "failed": 0}, found
    return len(texts) / seconds


def get_p99_ms(waits: list[float]) -> float:
    """Return the 99th percentile in milliseconds."""
    return statistics.quantiles(waits, n=100)[98] * 1000


def main() -> None:
    """Print a table of results."""
    parser = argparse.ArgumentParser(description="Bench of batches.", allow_abbrev=False)
    parser.add_argument("--lines", type=int, default=2000, help="lines of a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of bulk and batch (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of a measurement (default: %(default)s)")
    parser.add_argument("--fake", action="store_true", help="a worker that computes next to nothing")
    parser.add_argument("--queries", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.queries:
        asyncio.run(send_queries(int(options.queries[0]), options.queries[1]))
        return
    if options.fake:
        texts: Iterator[str] = (f"text {number}" for number in itertools.count())
    else:
        texts = generate_texts(read_collection(ROOT / "tests/data/mixed.jsonl"), 1)
    with tempfile.TemporaryDirectory(prefix="vecmill-bench-") as folder, contextlib.ExitStack() as stack:
        target = Target(Path(folder), fake=options.fake)
        stack.callback(target.close)
        asyncio.run(measure_bulk(target, texts, 2.0))
        ratios = []
        for _ in range(options.rounds):
            bulk = asyncio.run(measure_bulk(target, texts, options.seconds))
            batch = measure_batch(target, list(itertools.islice(texts, options.lines)))
            ratios.append(batch / bulk)
            print(f"bulk {bulk:.0f} texts/s, batch {batch:.0f} lines/s, ratio {ratios[-1]:.2f}", flush=True)
        queries = Queries(target)
        time.sleep(options.seconds)
        alone, queries = queries.stop(), Queries(target)
        asyncio.run(measure_bulk(target, texts, options.seconds))
        near, queries = queries.stop(), Queries(target)
        memory: dict[str, list[float]] = {}
        rate = measure_batch(target, list(itertools.islice(texts, options.lines)), memory)
        beside = queries.stop()
        print(f"batch beside an interactive client: {rate:.0f} lines/s")
        for name, waits in (("alone", alone), ("beside bulk requests", near), ("beside the batch", beside)):
            print(f"client {name}: p99 {get_p99_ms(waits):.1f} ms, median {statistics.median(waits) * 1000:.1f} ms")
        for name, values in memory.items():
            print(f"memory of the {name}: {values[0]:.0f} MiB at first, {max(values):.0f} MiB at most")
    sys.exit(0)


if __name__ == "__main__":
    main()
