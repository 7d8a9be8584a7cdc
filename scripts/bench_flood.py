"""Flood of `scripts/bench` and `scripts/load`: latency of one interactive client alone, and next to bulk clients.

The interactive client sends ten queries per second, which take few percent of the CPU, so that the bulk clients can
keep most of their throughput.
"""

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

from bench_client import Client
from bench_load import Load, LoadError, find_percentiles, send_requests
from bench_results import Flood

#: Bulk clients, each of which waits for its answer before the next request.
BULK_CLIENTS = 8
#: Texts in a bulk request.
BULK_TEXTS = 32
#: Seconds between the starts of two queries, unless a query takes longer, and fewest queries of a measurement.
INTERVAL_S, MIN_QUERIES = 0.1, 100
#: Seconds of bulk work before the first measurement.
WARM_UP_S = 3.0
#: Seconds of bulk work before and after the interactive client's requests.
MARGIN_S = 0.5


class Target(Protocol):
    """Server to flood."""

    port: int

    def build_request(self, texts: Sequence[str], client: str = "bench") -> bytes:
        """Return the bytes of a request of a client."""


def measure_flood(
    server: Target, row: str, bulk: Iterator[str], queries: Iterator[str], seconds: float, rate: float, generator: str
) -> Flood:
    """Return the latency and the throughput alone and together; `rate` is the most bulk texts per second.

    A measurement takes `seconds`, or more for enough queries.
    """
    seconds = max(seconds, MIN_QUERIES * INTERVAL_S)

    def make_requests() -> list[bytes]:
        number = BULK_CLIENTS + int(rate * (seconds + 2 * MARGIN_S) / BULK_TEXTS)
        texts = list(itertools.islice(bulk, number * BULK_TEXTS))
        return [server.build_request(texts[at : at + BULK_TEXTS]) for at in range(0, len(texts), BULK_TEXTS)]

    send_bulk(server.port, make_requests(), WARM_UP_S, generator)
    alone = send_interactive(server, queries, seconds)
    bulk_alone = send_bulk(server.port, make_requests(), seconds, generator)
    results: list[Load | LoadError] = []

    def run_bulk(requests: list[bytes]) -> None:
        try:
            results.append(send_bulk(server.port, requests, seconds + 2 * MARGIN_S, generator))
        except LoadError as error:
            results.append(error)

    flooding = threading.Thread(target=run_bulk, args=(make_requests(),))
    flooding.start()
    try:
        time.sleep(MARGIN_S)
        beside = send_interactive(server, queries, seconds)
    finally:
        flooding.join()
    if isinstance(results[0], LoadError):
        raise results[0]
    return Flood(
        row=row,
        alone_ms=alone,
        beside_ms=beside,
        bulk_alone=bulk_alone.rate * BULK_TEXTS,
        bulk_beside=results[0].rate * BULK_TEXTS,
    )


def send_bulk(port: int, requests: Sequence[bytes], seconds: float, generator: str) -> Load:
    """Send bulk requests."""
    return send_requests(port, requests, BULK_CLIENTS, seconds, generator)


def send_interactive(server: Target, queries: Iterator[str], seconds: float) -> list[float]:
    """Send single queries from one client of its own, and return the milliseconds at the percentiles."""

    async def run_client() -> Counter[int]:
        latencies: Counter[int] = Counter()
        client = await Client(server.port).open()
        for _ in range(int(seconds / INTERVAL_S)):
            status, waited = await client.send_request(server.build_request([next(queries)], "interactive"))
            if status != 200:
                raise LoadError(f"the server answered a query with status {status}")
            latencies[int(waited * 1e6)] += 1
            await asyncio.sleep(max(0.0, INTERVAL_S - waited))
        client.close()
        return latencies

    return find_percentiles(asyncio.run(run_client()))
