"""`scripts/bench`: compare texts per second of the server and of raw OpenVINO on the same texts.

Raw OpenVINO is the best result without a server: all texts are known, sorted by length, and split into micro-batches,
with one thread for each infer request. The kinds take turns, because shared machines are noisy: compare the ratios of
one run, not the seconds of two runs.
"""

import argparse
import asyncio
import json
import queue
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CACHE = ROOT / ".cache" / "vecmill"


def parse_arguments() -> argparse.Namespace:
    """Return the flags of scripts/bench."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Compare the server with raw OpenVINO.")
    default = ROOT / "tests" / "data" / "queries.jsonl"
    parser.add_argument(
        "--texts", type=Path, default=default, help="file of JSON lines with a field text (default: %(default)s)"
    )
    parser.add_argument(
        "--number", type=int, default=2000, help="number of texts in each measurement (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of measurements of each kind (default: %(default)s)"
    )
    return parser.parse_args()


class Raw:
    """The worker's engine, driven without a server."""

    def __init__(self) -> None:
        from workers.engine.engine import Engine
        from workers.models.default import fetch_default_model
        from workers.models.prepare import prepare_model

        folder = fetch_default_model(CACHE, print)
        self.engine = Engine(prepare_model(folder, CACHE, print), "CPU", 0, CACHE)
        self.engine.warm_up()

    def run_batched(self, texts: Sequence[str]) -> None:
        """Infer all texts in micro-batches of similar length."""
        from workers.engine.micro_batches import cut_micro_batches

        ids = self.engine.tokenize_texts(texts)
        micro_batches = cut_micro_batches(list(map(len, ids)), self.engine.costs, 1)
        self._run_all([[ids[row] for row in rows] for rows in micro_batches])

    def run_singly(self, texts: Sequence[str]) -> None:
        """Infer each text alone, like a server that does not batch across requests."""
        self._run_all([[ids] for ids in self.engine.tokenize_texts(texts)])

    def _run_all(self, micro_batches: Sequence[Sequence[object]]) -> None:
        waiting: queue.SimpleQueue[Sequence[object]] = queue.SimpleQueue()
        for micro_batch in micro_batches:
            waiting.put(micro_batch)

        def run_thread(number: int) -> None:
            while True:
                try:
                    micro_batch = waiting.get_nowait()
                except queue.Empty:
                    return
                self.engine.run_inference(number, micro_batch)  # type: ignore[arg-type]

        threads = [threading.Thread(target=run_thread, args=(number,)) for number in range(self.engine.requests)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Server:
    """A running scripts/serve."""

    def __init__(self, *flags: str, key: str = "") -> None:
        """Start the server with these flags; `key` is an API key for `read_counters`, if the server has keys."""
        self._key = key
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [str(ROOT / "scripts" / "serve"), "--port", str(self.port), *flags]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.model = json.loads(self._process.stdout.readline().split("-d '")[1].rstrip()[:-1])["model"]

    @property
    def pid(self) -> int:
        """Process id of scripts/serve."""
        return self._process.pid

    def read_counters(self) -> dict[str, int]:
        """Return the broker's counters."""
        url, headers = f"http://127.0.0.1:{self.port}/health", {"Authorization": f"Bearer {self._key}"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return dict(json.load(answer)["counters"])

    def count_batches(self) -> tuple[int, float]:
        """Return the number of answered batches, and the milliseconds that all of them took."""
        counters = self.read_counters()
        return counters["batches_answered"], counters["batch_us"] / 1000

    def close(self) -> None:
        """Drain the server and wait for its end."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait()

    def send_texts(self, texts: Sequence[str], *, clients: int, per_request: int) -> list[float]:
        """Send all texts from closed-loop clients and return the seconds of each request."""
        return asyncio.run(self._run_clients(texts, clients, per_request))

    async def _run_clients(self, texts: Sequence[str], clients: int, per_request: int) -> list[float]:
        requests = [self.build_request(texts[at : at + per_request]) for at in range(0, len(texts), per_request)]
        requests.reverse()
        seconds: list[float] = []

        async def run_client() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            while requests:
                writer.write(requests.pop())
                started = time.monotonic()
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200"), head
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                seconds.append(time.monotonic() - started)
            writer.close()

        await asyncio.gather(*(run_client() for _ in range(clients)))
        return seconds

    def build_request(self, texts: Sequence[str], client: str = "bench") -> bytes:
        """Return the bytes of a POST of these texts, with the client's name as its API key."""
        body = json.dumps({"model": self.model, "input": list(texts), "encoding_format": "base64"}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {client}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def main() -> None:
    """Measure all kinds in turns and print a table."""
    options = parse_arguments()
    raw, server = Raw(), Server()
    texts = [json.loads(line)["text"] for line in options.texts.read_text().splitlines()]
    fitting = [raw.engine.validate_ids(ids) is None for ids in raw.engine.tokenize_texts(texts)]
    texts = [text for text, fits in zip(texts, fitting, strict=True) if fits][: options.number]
    kinds: list[tuple[str, Callable[[], object]]] = [
        ("raw OpenVINO, batched", lambda: raw.run_batched(texts)),
        ("raw OpenVINO, 1 text per inference", lambda: raw.run_singly(texts)),
        ("Vecmill, 8 clients, 64 texts per request", lambda: server.send_texts(texts, clients=8, per_request=64)),
        ("Vecmill, 64 clients, 1 text per request", lambda: server.send_texts(texts, clients=64, per_request=1)),
        ("Vecmill, 1 client, 1 text per request", lambda: server.send_texts(texts[:200], clients=1, per_request=1)),
    ]
    rates: dict[str, list[float]] = {name: [] for name, _ in kinds}
    latencies: dict[str, list[float]] = {name: [] for name, _ in kinds}
    try:
        for _ in range(options.rounds):
            for name, run in kinds:
                started = time.monotonic()
                seconds = run()
                number = 200 if "1 client," in name else len(texts)
                rates[name].append(number / (time.monotonic() - started))
                latencies[name] += seconds if isinstance(seconds, list) else []
    finally:
        server.close()
    print_table(rates, latencies)


def print_table(rates: dict[str, list[float]], latencies: dict[str, list[float]]) -> None:
    """Print the medians over all rounds; ratios compare with the first row of the same round."""
    base = next(iter(rates.values()))
    print("| | texts/s | of raw | request: median, p99 |\n|---|---:|---:|---:|")
    for name, values in rates.items():
        ratio = statistics.median(value / best for value, best in zip(values, base, strict=True))
        times = sorted(latencies[name])
        tail = f"{times[len(times) // 2] * 1e3:.0f}, {times[int(len(times) * 0.99)] * 1e3:.0f} ms" if times else ""
        print(f"| {name} | {statistics.median(values):.0f} | {ratio:.0%} | {tail} |")


if __name__ == "__main__":
    main()
