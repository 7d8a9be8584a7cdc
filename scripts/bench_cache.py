"""`.venv/bin/python scripts/bench_cache.py`: what a hit costs in the broker, and how fast a corpus is embedded again.

The first part calls the scheduler without sockets. The second part starts `scripts/serve` with the default model, and
sends a corpus three times through `/v1/embeddings`: twice with a cache, and once more with `Cache-Control: no-store`.
"""

import argparse
import concurrent.futures
import http.client
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench_servers import Server  # noqa: E402

from broker.core.limits import Limits  # noqa: E402
from broker.core.outbox import Send  # noqa: E402
from broker.core.scheduler import Scheduler  # noqa: E402
from broker.wire import protocol as wire  # noqa: E402
from broker.wire.protocol import Caching, Kind, Lane  # noqa: E402

DIMENSION = 384
#: Bytes of an input, and inputs of a request through the API.
INPUT_BYTES, REQUEST_INPUTS = 400, 64
WORDS = [f"{head}{tail}" for head in ("ba", "co", "du", "fe", "gi", "lo", "mi", "nu") for tail in ("r", "st", "n", "l")]


class Core:
    """A scheduler with a worker that answers at once."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(1, Limits(max_wait_s=1e9))
        self.requests = 0
        self.scheduler.handle(b"F", wire.FrontendHello(1, 1, "", bytes(16), "host", 1), 0.0)
        model = wire.ModelInfo("m", "r", DIMENSION, 512)
        hello = wire.WorkerHello(1, 1, "", bytes(16), 1, "host", 1, "CPU", [model], 100_000, 10**9, 2)
        self.scheduler.handle(b"W", hello, 0.0)

    def submit(self, texts: Sequence[bytes], caching: Caching) -> list[Send]:
        """Submit a request, and return what the broker sends until nothing is left to look up."""
        self.requests += 1
        lengths = wire.pack_u32(map(len, texts))
        submission = wire.Submission(
            self.requests, "m", Lane.BULK, "c", 60_000, Kind.TEXT, lengths, address="a", caching=caching
        )
        sends = self.scheduler.handle(b"F", wire.Submit([submission]), 1.0, [b"".join(texts)])
        while self.scheduler.state.coalescing.due is not None:
            sends += self.scheduler.tick(1.0)
        return sends

    def answer(self, sends: Sequence[Send]) -> None:
        """Answer all batches."""
        for batch in [send.message for send in sends if isinstance(send.message, wire.Batch)]:
            jobs = len(batch.kinds)
            result = wire.BatchResult(1, batch.batch, DIMENSION, wire.pack_u32([100] * jobs), [], 5, 2, batch.batch)
            self.answer(self.scheduler.handle(b"W", result, 1.0, [bytes(4 * DIMENSION * jobs)]))


def measure_core(inputs: int) -> tuple[float, float]:
    """Return the microseconds of the scheduler for an input that is a hit, and for one that is computed."""
    core, texts = Core(), [random.randbytes(INPUT_BYTES // 2).hex().encode() for _ in range(inputs)]
    core.answer(core.submit(texts, Caching.USE))
    times: dict[Caching, list[float]] = {Caching.USE: [], Caching.SKIP: []}
    for _ in range(max(20, 4000 // inputs)):
        for caching, found in times.items():
            began = time.perf_counter()
            core.answer(core.submit(texts, caching))
            found.append((time.perf_counter() - began) / inputs * 1e6)
    return statistics.median(times[Caching.USE]), statistics.median(times[Caching.SKIP])


def embed_corpus(port: int, model: str, texts: Sequence[str], headers: dict[str, str]) -> float:
    """Return the seconds to embed all texts with 4 clients."""

    def embed(part: Sequence[Sequence[str]]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for inputs in part:
            body = json.dumps({"model": model, "input": inputs, "encoding_format": "base64"})
            connection.request("POST", "/v1/embeddings", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}: {content[:200]!r}")
        connection.close()

    requests = [texts[first : first + REQUEST_INPUTS] for first in range(0, len(texts), REQUEST_INPUTS)]
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(embed, [requests[client::4] for client in range(4)]))
    return time.perf_counter() - began


def main() -> None:
    """Print both parts."""
    parser = argparse.ArgumentParser(
        prog="bench_cache.py", description="Measure the cache of results.", allow_abbrev=False
    )
    parser.add_argument("--texts", type=int, default=4096, help="texts of the corpus")
    parser.add_argument("--core", action="store_true", help="measure only the scheduler")
    options = parser.parse_args()
    for inputs in (1, 32, 2048):
        hit_us, computed_us = measure_core(inputs)
        print(f"{inputs} inputs of {INPUT_BYTES} bytes: {hit_us:.1f} µs a hit, {computed_us:.1f} µs a computed input")
    if options.core:
        return
    draw = random.Random(1)
    texts = [f"{number} " + " ".join(draw.choices(WORDS, k=60)) for number in range(options.texts)]
    server = Server("--cache-bytes", str(1 << 28))
    try:
        first_s = embed_corpus(server.port, server.model, texts, {})
        again_s = embed_corpus(server.port, server.model, texts, {})
        computed_s = embed_corpus(server.port, server.model, texts, {"Cache-Control": "no-store"})
        ratio = min(first_s, computed_s) / again_s
        times = f"{first_s:.1f} s, again {again_s:.2f} s, no-store {computed_s:.1f} s"
        print(f"{len(texts)} texts: {times}: {ratio:.0f} times as fast")
    finally:
        server.close()


if __name__ == "__main__":
    main()
