"""What `scripts/bench` runs: texts per second of the server and of raw OpenVINO, in turns, on the same texts.

Raw is the best that this machine gave without a server: all texts at hand, sorted by length, cut into micro-batches,
one thread for each infer request. These machines are noisy: compare the ratios of one run, not seconds of two.
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


def arguments() -> argparse.Namespace:
    """The flags of scripts/bench."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure the server against raw OpenVINO.")
    default = ROOT.parent / "shared" / "data" / "load" / "queries.jsonl"
    parser.add_argument(
        "--texts", type=Path, default=default, help="JSON lines with a text each (default: %(default)s)"
    )
    parser.add_argument("--number", type=int, default=2000, help="texts of a measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind (default: %(default)s)")
    return parser.parse_args()


class Raw:
    """OpenVINO without a server."""

    def __init__(self) -> None:
        from workers.engine.engine import Engine
        from workers.models.default import fetch_default_model
        from workers.models.prepare import prepare_model

        folder = fetch_default_model(CACHE, print)
        self.engine = Engine(prepare_model(folder, CACHE, print), "CPU", 0, CACHE)
        self.engine.warm_up()

    def batched(self, texts: Sequence[str]) -> None:
        """All texts, in micro-batches of similar length."""
        from workers.engine.pipeline import split_micro_batches

        ids = self.engine.tokenise_texts(texts)
        micro_batches = split_micro_batches(list(map(len, ids)), self.engine.micro_batch_tokens, 1)
        self._run([[ids[row] for row in rows] for rows in micro_batches])

    def one_by_one(self, texts: Sequence[str]) -> None:
        """An inference for each text, as a server does that does not batch across requests."""
        self._run([[ids] for ids in self.engine.tokenise_texts(texts)])

    def _run(self, work: Sequence[Sequence[object]]) -> None:
        waiting: queue.SimpleQueue[Sequence[object]] = queue.SimpleQueue()
        for one in work:
            waiting.put(one)

        def run(number: int) -> None:
            while True:
                try:
                    one = waiting.get_nowait()
                except queue.Empty:
                    return
                self.engine.run_inference(number, one)  # type: ignore[arg-type]

        threads = [threading.Thread(target=run, args=(number,)) for number in range(self.engine.requests)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Server:
    """A running scripts/serve."""

    def __init__(self, *flags: str, key: str = "") -> None:
        """Start it with these flags; `key` is a client that may read its counters, where it has keys."""
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
        """Of scripts/serve."""
        return self._process.pid

    def counters(self) -> dict[str, int]:
        """Return the broker's counters."""
        url, headers = f"http://127.0.0.1:{self.port}/health", {"Authorization": f"Bearer {self._key}"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return dict(json.load(answer)["counters"])

    def batches(self) -> tuple[int, float]:
        """How many batches have been answered, and the milliseconds that they took in all, by the broker's count."""
        counters = self.counters()
        return counters["batches_answered"], counters["batch_us"] / 1000

    def close(self) -> None:
        """Drain and end."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait()

    def load(self, texts: Sequence[str], *, clients: int, per_request: int) -> list[float]:
        """Send all texts from so many clients, each waiting for its answer; seconds of each request."""
        return asyncio.run(self._load(texts, clients, per_request))

    async def _load(self, texts: Sequence[str], clients: int, per_request: int) -> list[float]:
        requests = [self.request(texts[at : at + per_request]) for at in range(0, len(texts), per_request)]
        requests.reverse()
        seconds: list[float] = []

        async def client() -> None:
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

        await asyncio.gather(*(client() for _ in range(clients)))
        return seconds

    def request(self, texts: Sequence[str], client: str = "bench") -> bytes:
        """A POST of these texts by a client of this name."""
        body = json.dumps({"model": self.model, "input": list(texts), "encoding_format": "base64"}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {client}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def main() -> None:
    """Measure in turns, and print a table."""
    options = arguments()
    raw, server = Raw(), Server()
    texts = [json.loads(line)["text"] for line in options.texts.read_text().splitlines()]
    fitting = [raw.engine.validate_ids(ids) is None for ids in raw.engine.tokenise_texts(texts)]
    texts = [text for text, fits in zip(texts, fitting, strict=True) if fits][: options.number]
    kinds: list[tuple[str, Callable[[], object]]] = [
        ("raw OpenVINO, batched", lambda: raw.batched(texts)),
        ("raw OpenVINO, one text an inference", lambda: raw.one_by_one(texts)),
        ("Vecmill, 8 clients, 64 texts a request", lambda: server.load(texts, clients=8, per_request=64)),
        ("Vecmill, 64 clients, 1 text a request", lambda: server.load(texts, clients=64, per_request=1)),
        ("Vecmill, 1 client, 1 text a request", lambda: server.load(texts[:200], clients=1, per_request=1)),
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
    report(rates, latencies)


def report(rates: dict[str, list[float]], latencies: dict[str, list[float]]) -> None:
    """Medians over the rounds; the ratio is to the first row of the same round."""
    base = next(iter(rates.values()))
    print("| | texts/s | of raw | median, p99 of a request |\n|---|---:|---:|---:|")
    for name, values in rates.items():
        ratio = statistics.median(value / best for value, best in zip(values, base, strict=True))
        times = sorted(latencies[name])
        tail = f"{times[len(times) // 2] * 1e3:.0f}, {times[int(len(times) * 0.99)] * 1e3:.0f} ms" if times else ""
        print(f"| {name} | {statistics.median(values):.0f} | {ratio:.0%} | {tail} |")


if __name__ == "__main__":
    main()
