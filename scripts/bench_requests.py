"""`scripts/bench --requests`: CPU time of a request in the frontend and the broker, with a worker that costs nothing.

The broker and the frontend are real and write the access log. The worker is that of `bench_scale.py`, with a device
that takes no time.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench_load import find_generator, send_requests  # noqa: E402  after the path is set
from bench_scale import System, open_system  # noqa: E402
from bench_servers import find_cpu_name  # noqa: E402
from bench_texts import build_request  # noqa: E402

from broker.shared.flags import FlagParser, parse_count, parse_duration  # noqa: E402

#: Text of a request; the number makes each text new.
TEXT = "how do I configure the retry policy of the ingest service so that it backs off after an error, case {:09}"
#: Milliseconds and jobs of a batch of the device, and values of a vector.
DEVICE_MS, DEVICE_JOBS, DIMENSION = 0.001, 64, 384
#: Most texts and requests in a second for which requests are prepared.
MAX_TEXTS_S, MAX_REQUESTS_S = 60_000, 12_000
#: Seconds of load before the first measurement.
WARM_S = 1.0


class Cost(NamedTuple):
    """Result of one measurement."""

    requests_per_s: float
    #: CPU microseconds of each request.
    frontend_us: float
    broker_us: float
    p50_ms: float
    p99_ms: float


def measure_cost(system: System, texts: int, clients: int, seconds: float, encoding: str) -> Cost:
    """Return what requests with this number of texts cost."""
    count = int(seconds * min(MAX_REQUESTS_S, MAX_TEXTS_S / texts))
    fields = {"model": "fake", "encoding_format": encoding}
    requests = [
        build_request([TEXT.format(first + each) for each in range(texts)], "/v1/embeddings", fields)
        for first in range(0, count * texts, texts)
    ]
    before = system.read_cpu_s()
    load = send_requests(system.port, requests, clients, seconds, find_generator())
    broker_s, frontend_s, *_ = (end - start for end, start in zip(system.read_cpu_s(), before, strict=True))
    _, _, _, _, p50, _, _, _, p99, _ = load.latency_ms
    return Cost(load.rate, frontend_s * 1e6 / load.answered, broker_s * 1e6 / load.answered, p50, p99)


def format_row(texts: int, costs: Sequence[Cost]) -> str:
    """Return the medians as a row of a table in Markdown."""
    rate, frontend_us, broker_us, p50, p99 = (statistics.median(values) for values in zip(*costs, strict=True))
    return (
        f"| {texts} | {rate:,.0f} | {rate * texts:,.0f} | {frontend_us:.0f} | {broker_us:.0f} | {p50:.1f}, {p99:.1f} |"
    )


def main() -> None:
    """Measure, and print a table."""
    parser = FlagParser(prog="scripts/bench --requests", description="Measure the CPU time of a request.")
    parser.add_argument("--texts", type=parse_count, nargs="+", default=(1, 32), help="texts in a request (1 and 32)")
    parser.add_argument("--clients", type=parse_count, default=64, help="connections (default: %(default)s)")
    text = "seconds of each measurement (default: %(default)s)"
    parser.add_argument("--seconds", type=parse_duration, default=4.0, help=text)
    text = "measurements, of which the median counts (default: %(default)s)"
    parser.add_argument("--rounds", type=parse_count, default=3, help=text)
    parser.add_argument("--encoding", choices=("base64", "float"), default="base64", help="format of the vectors")
    parser.add_argument("--requests", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    load = (options.clients, options.seconds, options.encoding)
    print(find_cpu_name())
    print("| texts | requests/s | texts/s | frontend, µs/request | broker, µs/request | p50, p99 in ms |")
    print("|---" * 6 + "|")
    with open_system(1, 1, DEVICE_JOBS, DEVICE_MS, dimension=DIMENSION, log_level="info") as system:
        measure_cost(system, 1, options.clients, WARM_S, options.encoding)
        for texts in options.texts:
            print(format_row(texts, [measure_cost(system, texts, *load) for _ in range(options.rounds)]))


if __name__ == "__main__":
    main()
