"""`scripts/load`: three heavy loads on a server with the default model, each with a reference in the same run.

Flood: bulk clients send requests of 32 texts without pause, first alone, then together with one client of single short
texts. Overload: an open loop sends ten times the requests that the server can answer, with a limit on the wait.
Abandonment: one client sends requests of 2,048 inputs and disconnects 50 to 100 ms later, while four others send
single texts.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench_client import Client  # noqa: E402  after the path is set
from bench_flood import measure_flood  # noqa: E402
from bench_load import find_generator  # noqa: E402
from bench_results import P50, P99, Flood  # noqa: E402
from bench_servers import Server  # noqa: E402
from bench_texts import generate_texts  # noqa: E402

from broker.shared.flags import FlagParser  # noqa: E402
from tests.harness.clients import abandon  # noqa: E402

#: The broker's `--max-wait-s` during the overload.
MAX_WAIT_S = 2.0
#: Most texts per second that the flood sends.
MAX_RATE = 4000.0
#: Closed-loop clients that find the server's peak rate.
SATURATING = 16
#: Seconds from the start of the overload until the queue is full.
FILLED_S = 2 * MAX_WAIT_S
#: Abandoned requests per second: two rates that once made a broker unresponsive.
ABANDONED_PER_S = (98, 370)
#: API keys of the client that abandons requests and of the others.
ATTACKER, CLIENTS = "attacker", ("one", "two", "three", "four")


def parse_arguments() -> argparse.Namespace:
    """Return the flags of scripts/load."""
    parser = FlagParser(prog="scripts/load", description="Flood and overload a server that this command starts.")
    default = ROOT / "tests" / "data" / "queries.jsonl"
    parser.add_argument(
        "--texts", type=Path, default=default, help="file of JSON lines with a field text (default: %(default)s)"
    )
    parser.add_argument(
        "--per-request", type=int, default=64, help="texts in each request of the overload (default: 64)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="number of overloads, each between two measurements of the peak rate (default: 3)",
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="duration of each load (default: %(default)s)")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS, help="loads to run (default: all)")
    options = parser.parse_args()
    if options.seconds <= FILLED_S:
        parser.error(f"--seconds must be above {FILLED_S:.0f}, because the queue takes that time to fill")
    return options


#: Names of the loads.
LOADS = ("flood", "overload", "abandonment")


def find_percentile(seconds: list[float], part: float) -> float:
    """Return a percentile in milliseconds; `part` is between 0 and 1."""
    return sorted(seconds)[min(len(seconds) - 1, math.ceil(part * len(seconds)) - 1)] * 1000


class Overload(NamedTuple):
    """Result of an overload."""

    statuses: Counter[int]
    #: Seconds of each accepted request.
    waits: list[float]
    #: Requests per second that were answered 200 after the queue had filled.
    goodput: float


async def overload(server: Server, requests: list[bytes], pace: float, length_s: float) -> Overload:
    """Send `pace` requests per second, whether or not earlier ones are answered."""
    statuses: Counter[int] = Counter()
    waits: list[float] = []
    idle: list[Client] = []

    async def send_one(number: int) -> None:
        client = idle.pop() if idle else await Client(server.port).open()
        status, seconds = await client.send_request(requests[number % len(requests)])
        statuses[status] += 1
        waits.extend([seconds] if status == 200 else [])
        idle.append(client)

    running: set[asyncio.Task[None]] = set()
    started = time.monotonic()
    sent = early = 0
    while (passed := time.monotonic() - started) < length_s:
        while sent < passed * pace:
            task = asyncio.create_task(send_one(sent))
            running.add(task)
            task.add_done_callback(running.discard)
            sent += 1
        if passed < FILLED_S:
            early = statuses[200]
        await asyncio.sleep(max(0.0, (sent + 1) / pace - passed))
    in_time = statuses[200] - early
    await asyncio.gather(*running)
    for client in idle:
        client.close()
    return Overload(statuses, waits, in_time / (length_s - FILLED_S))


async def send_during_abandonment(
    server: Server, per_second: float, length_s: float
) -> tuple[Counter[int], list[float], float]:
    """Send single texts from four clients while another client abandons large requests.

    Return the four clients' statuses, the seconds of each answer, and the seconds between the end of the abandonment
    and the first answer within 0.1 s.
    """
    statuses: Counter[int] = Counter()
    waits: list[float] = []
    attack = asyncio.create_task(abandon(server.port, server.build_request(["a"] * 2048, ATTACKER), per_second))
    until = time.monotonic() + length_s

    async def run_client(name: int) -> None:
        client = await Client(server.port).open()
        for number in itertools.count():
            if time.monotonic() >= until:
                break
            status, seconds = await client.send_request(
                server.build_request([f"a short query {number}"], CLIENTS[name])
            )
            statuses[status] += 1
            waits.append(seconds)
        client.close()

    await asyncio.gather(*map(run_client, range(len(CLIENTS))))
    attack.cancel()
    await asyncio.wait([attack])
    client = await Client(server.port).open()
    while (await client.send_request(server.build_request(["afterwards"], CLIENTS[0])))[1] > 0.1:
        pass
    client.close()
    return statuses, waits, time.monotonic() - until


async def saturate(server: Server, requests: list[bytes], length_s: float) -> float:
    """Return the peak rate in requests per second, with enough closed-loop clients to keep the server busy."""
    started = time.monotonic()
    done, left = 0, itertools.cycle(requests)

    async def run_client() -> None:
        nonlocal done
        connection = await Client(server.port).open()
        while time.monotonic() < started + length_s:
            status, _ = await connection.send_request(next(left))
            done += status == 200
        connection.close()

    await asyncio.gather(*(run_client() for _ in range(SATURATING)))
    return done / (time.monotonic() - started)


def print_flood(flood: Flood, batch_ms: float) -> None:
    """Print what the bulk clients and the interactive client received."""
    alone, beside = flood.bulk_alone, flood.bulk_beside
    print(f"flood: {alone:.0f} bulk texts/s alone, {beside:.0f} ({beside / alone:.0%}) with an interactive client")
    print(f"  interactive: median {flood.beside_ms[P50]:.0f} ms, p99 {flood.beside_ms[P99]:.0f} ms,")
    print(f"  p99 is {flood.beside_ms[P99] / batch_ms:.1f} times the mean batch of {batch_ms:.0f} ms")


def run_flood(texts: list[str], seconds: float) -> None:
    """Run the flood on a new server."""
    server = Server()
    try:
        bulk, queries = generate_texts(texts, 1), generate_texts([text + "?" for text in texts], 1)
        before = server.count_batches()
        flood = measure_flood(server, "", bulk, queries, seconds, MAX_RATE, find_generator())
        after = server.count_batches()
        print_flood(flood, (after[1] - before[1]) / (after[0] - before[0]))
    finally:
        server.close()


def run_overload(texts: list[str], per_request: int, rounds: int, seconds: float) -> None:
    """Run the overloads on a new server that limits the wait, and measure the peak rate before and after each."""
    os.environ["VECMILL_BROKER_MAX_WAIT_S"] = str(MAX_WAIT_S)
    server = Server()
    try:
        requests = [server.build_request(texts[at : at + per_request]) for at in range(0, 1024, per_request)]
        asyncio.run(saturate(server, requests, seconds / 4))
        peaks, ratios, before = [asyncio.run(saturate(server, requests, seconds))], [], measure_memory_mb(server)
        for _ in range(rounds):
            result = asyncio.run(overload(server, requests, 10 * peaks[-1], seconds))
            peaks.append(asyncio.run(saturate(server, requests, seconds)))
            ratios.append(result.goodput / statistics.mean(peaks[-2:]))
            print(f"overload, 10 times {peaks[-2] * per_request:.0f} texts/s in requests of {per_request}: ", end="")
            print(f"goodput {result.goodput * per_request:.0f} texts/s ({ratios[-1]:.0%}), {dict(result.statuses)}")
            print(f"  accepted requests: median {find_percentile(result.waits, 0.5):.0f} ms, ", end="")
            print(f"p99 {find_percentile(result.waits, 0.99):.0f} ms, with a wait of at most {MAX_WAIT_S:.0f} s")
        print(f"  median goodput of {rounds} overloads: {statistics.median(ratios):.0%} of the peak; ", end="")
        print(f"memory {before} MB before and {measure_memory_mb(server)} MB after")
    finally:
        server.close()


def measure_memory_mb(server: Server) -> int:
    """Return the memory of all processes of a server."""
    return round(sum(server.measure_memory_mb().values()))


def write_keys(path: Path) -> None:
    """Write a file of API keys; the abandoning client's key may have one large request open."""
    limits = dict.fromkeys(CLIENTS, "") | {ATTACKER: "jobs_in_flight = 2048"}
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in limits}
    entries = (f'[[key]]\nname = "{name}"\nsha256 = "{hashes[name]}"\n{limits[name]}\n' for name in limits)
    path.write_text("".join(entries))


def run_abandonment(seconds: float, *flags: str) -> None:
    """Run the abandonment on a new server with these flags."""
    server = Server(*flags, key=CLIENTS[0])
    try:
        asyncio.run(send_during_abandonment(server, 1, seconds / 4))
        for per_second in ABANDONED_PER_S:
            before = server.read_cpu_seconds()
            statuses, waits, recovered_s = asyncio.run(send_during_abandonment(server, per_second, seconds))
            used = {name: used - before[name] for name, used in server.read_cpu_seconds().items()}
            shares = ", ".join(f"{name} {each / seconds:.0%}" for name, each in sorted(used.items()))
            counters = server.read_counters()
            print(
                f"abandonment, {'with' if flags else 'without'} keys, {per_second} requests of 2,048 inputs per second:"
            )
            print(f"  others: {dict(statuses)}, median {find_percentile(waits, 0.5):.0f} ms,", end=" ")
            print(
                f"p99 {find_percentile(waits, 0.99):.0f} ms; first answer within 0.1 s {recovered_s:.2f} s later;",
                end=" ",
            )
            print(f"{counters.get('workers_evicted', 0)} workers evicted, {counters.get('workers_left', 0)} left")
            print(f"  processor: {shares}; memory {measure_memory_mb(server)} MB")
    finally:
        server.close()


def main() -> None:
    """Run the loads and print their results."""
    options = parse_arguments()
    texts = [json.loads(line)["text"] for line in options.texts.read_text().splitlines()]
    texts = [text for text in texts if len(text) < 200]
    if "flood" in options.loads:
        run_flood(texts, options.seconds)
    if "overload" in options.loads:
        run_overload(texts, options.per_request, options.rounds, options.seconds)
    if "abandonment" in options.loads:
        run_abandonment(options.seconds)
        with tempfile.TemporaryDirectory(prefix="vecmill-load-") as folder:
            keys = Path(folder) / "keys.toml"
            write_keys(keys)
            run_abandonment(options.seconds, "--api-keys", str(keys))


if __name__ == "__main__":
    main()
