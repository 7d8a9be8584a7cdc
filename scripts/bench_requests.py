"""`scripts/bench --requests`: what a request costs the frontend and the broker, with workers that answer at once.

The broker and the frontends are real, with the access log on. The workers are those of `bench_scale.py`, with a device
that takes no time, so that nearly all of the CPU time is the server's own.
"""

import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench_load import find_generator, send_requests  # noqa: E402  after the path is set
from bench_scale import System  # noqa: E402
from bench_texts import build_request  # noqa: E402

#: Text of a request; the number makes each text new.
TEXT = "how do I configure the retry policy of the ingest service so that it backs off after an error, case {:09}"
#: Milliseconds and jobs of a batch of the device.
DEVICE_MS, DEVICE_JOBS = 0.001, 64
#: Seconds of load before each measurement.
WARM_S = 1.0


class Cost(NamedTuple):
    """Result of one measurement."""

    texts: int
    requests_per_s: float
    #: CPU microseconds of each request.
    frontend_us: float
    broker_us: float
    p50_ms: float
    p99_ms: float


def measure_cost(system: System, texts: int, clients: int, seconds: float, encoding: str, first: int) -> Cost:
    """Return what requests of `texts` texts cost; `first` is the number of the first text."""
    count = int(seconds * (8000 if texts == 1 else 60000 // texts))
    fields = {"model": "fake", "encoding_format": encoding}
    requests = [
        build_request([TEXT.format(first + at * texts + each) for each in range(texts)], "/v1/embeddings", fields)
        for at in range(count)
    ]
    before = system.read_cpu_s()
    load = send_requests(system.port, requests, clients, seconds, find_generator())
    broker, frontend, *_ = (end - start for end, start in zip(system.read_cpu_s(), before, strict=True))
    microseconds = 1e6 / load.answered
    latency = load.latency_ms
    return Cost(texts, load.rate, frontend * microseconds, broker * microseconds, latency[4], latency[8])
