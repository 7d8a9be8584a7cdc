"""What `scripts/load` runs: three loads that a server must bear, on the real model, each against its own yardstick.

Flood: bulk clients that send 64 texts a request without pause, alone, and beside one client that sends a short text at
a time. Overload: an open loop of ten times the requests that the server can answer, with a bound on the wait.
Abandonment: one client that sends 2,048 inputs a request and goes away 50 to 100 ms later, beside four others.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from bench import ROOT, Server

from tests.harness.clients import abandon
from tests.harness.processes import descendants

#: The broker's bound on the wait during the overload, in seconds.
MAX_WAIT_S = 2.0
#: Clients of the peak.
SATURATING = 16
#: When the queue has filled, in seconds after the overload's start.
FILLED_S = 2 * MAX_WAIT_S
#: Abandoned requests a second: two rates that once stopped the broker.
ABANDONED_PER_S = (98, 370)
#: What the one client and the others send for a key.
ATTACKER, CLIENTS = "attacker", ("one", "two", "three", "four")


def arguments() -> argparse.Namespace:
    """The flags of scripts/load."""
    parser = argparse.ArgumentParser(prog="scripts/load", description="Flood and overload a server of its own.")
    default = ROOT / "tests" / "data" / "queries.jsonl"
    parser.add_argument(
        "--texts", type=Path, default=default, help="JSON lines with a text each (default: %(default)s)"
    )
    parser.add_argument("--per-request", type=int, default=64, help="texts of a request of the overload (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="overloads, each between two peaks (default: 3)")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each load (default: %(default)s)")
    parser.add_argument(
        "--loads", nargs="+", choices=LOADS, default=LOADS, help="which of the loads to run (default: all)"
    )
    options = parser.parse_args()
    if options.seconds <= FILLED_S:
        parser.error(f"--seconds must be above {FILLED_S:.0f}: so long the queue takes to fill")
    return options


#: The loads by name.
LOADS = ("flood", "overload", "abandonment")


class Client:
    """One connection that asks and waits."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> "Client":
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def ask(self, request: bytes) -> tuple[int, float]:
        """Status and seconds of a request."""
        started = time.monotonic()
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await self._reader.readexactly(length)
        return int(head.split()[1]), time.monotonic() - started

    def close(self) -> None:
        """Disconnect."""
        self._writer.close()


def percentile(seconds: list[float], part: float) -> float:
    """The value that this part of the others is not above, in milliseconds."""
    return sorted(seconds)[min(len(seconds) - 1, math.ceil(part * len(seconds)) - 1)] * 1000


async def flood(server: Server, texts: list[str], length_s: float, *, beside: bool) -> tuple[float, list[float]]:
    """Bulk texts/s, and the seconds of each request of the one interactive client if there is one."""
    until = time.monotonic() + length_s
    done = 0
    waits: list[float] = []

    async def bulk(number: int) -> None:
        nonlocal done
        client = await Client(server.port).open()
        at = number * 64
        while time.monotonic() < until:
            status, _ = await client.ask(server.request([texts[(at + one) % len(texts)] for one in range(64)]))
            assert status == 200, status
            done, at = done + 64, at + 8 * 64
        client.close()

    async def interactive() -> None:
        client = await Client(server.port).open()
        await asyncio.sleep(1)
        for number in range(10**6):
            if time.monotonic() >= until - 1:
                break
            status, seconds = await client.ask(server.request([f"a short query {number}"]))
            assert status == 200, status
            waits.append(seconds)
        client.close()

    started = time.monotonic()
    await asyncio.gather(*(bulk(number) for number in range(8)), *([interactive()] if beside else []))
    return done / (time.monotonic() - started), waits


class Overload(NamedTuple):
    """What came of one."""

    statuses: Counter[int]
    #: Seconds of each accepted request.
    waits: list[float]
    #: Requests a second that were answered 200, from when the queue has filled.
    goodput: float


async def overload(server: Server, requests: list[bytes], pace: float, length_s: float) -> Overload:
    """Send so many requests a second, whatever becomes of them."""
    statuses: Counter[int] = Counter()
    waits: list[float] = []
    idle: list[Client] = []

    async def one(number: int) -> None:
        client = idle.pop() if idle else await Client(server.port).open()
        status, seconds = await client.ask(requests[number % len(requests)])
        statuses[status] += 1
        waits.extend([seconds] if status == 200 else [])
        idle.append(client)

    running: set[asyncio.Task[None]] = set()
    started = time.monotonic()
    sent = early = 0
    while (passed := time.monotonic() - started) < length_s:
        while sent < passed * pace:
            task = asyncio.create_task(one(sent))
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


async def ask_beside_abandonment(
    server: Server, per_second: float, length_s: float
) -> tuple[Counter[int], list[float], float]:
    """Four clients ask for one text at a time while another abandons large requests.

    Return their statuses, the seconds of each answer, and the seconds until the first answer within 0.1 s afterwards.
    """
    statuses: Counter[int] = Counter()
    waits: list[float] = []
    attack = asyncio.create_task(abandon(server.port, server.request(["a"] * 2048, ATTACKER), per_second))
    until = time.monotonic() + length_s

    async def ask(name: int) -> None:
        client = await Client(server.port).open()
        for number in itertools.count():
            if time.monotonic() >= until:
                break
            status, seconds = await client.ask(server.request([f"a short query {number}"], CLIENTS[name]))
            statuses[status] += 1
            waits.append(seconds)
        client.close()

    await asyncio.gather(*map(ask, range(len(CLIENTS))))
    attack.cancel()
    await asyncio.wait([attack])
    client = await Client(server.port).open()
    while (await client.ask(server.request(["afterwards"], CLIENTS[0])))[1] > 0.1:
        pass
    client.close()
    return statuses, waits, time.monotonic() - until


def processor_seconds(server: Server) -> dict[str, float]:
    """Return the processor time that each kind of process has used, by its name on the command line."""
    used: dict[str, float] = {}
    for pid in descendants(server.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if "-m" in command:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            name = command[command.index("-m") + 1]
            used[name] = used.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def resident_mb(pid: int) -> int:
    """Memory of a process and its children."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        children = [int(child) for child in (task / "children").read_text().split()]
        total += sum(resident_mb(child) for child in children)
    return total + int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


async def saturate(server: Server, requests: list[bytes], length_s: float) -> float:
    """Requests a second from enough clients that wait for their answers."""
    started = time.monotonic()
    done, left = 0, itertools.cycle(requests)

    async def client() -> None:
        nonlocal done
        connection = await Client(server.port).open()
        while time.monotonic() < started + length_s:
            status, _ = await connection.ask(next(left))
            done += status == 200
        connection.close()

    await asyncio.gather(*(client() for _ in range(SATURATING)))
    return done / (time.monotonic() - started)


def report_flood(alone: float, beside: float, waits: list[float], batch_ms: float) -> None:
    """What the flood did to both sides."""
    p99 = percentile(waits, 0.99)
    print(f"flood: {alone:.0f} bulk texts/s alone, {beside:.0f} ({beside / alone:.0%}) beside an interactive client")
    print(f"  its {len(waits)} requests took {percentile(waits, 0.5):.0f} ms in the median and {p99:.0f} ms at p99,")
    print(f"  which is {p99 / batch_ms:.1f} times a batch of {batch_ms:.0f} ms")


def run_flood(texts: list[str], seconds: float) -> None:
    """The first load, on a server of its own."""
    server = Server()
    try:
        asyncio.run(flood(server, texts, seconds / 4, beside=False))
        before = server.batches()
        alone, _ = asyncio.run(flood(server, texts, seconds, beside=False))
        after = server.batches()
        beside, waits = asyncio.run(flood(server, texts, seconds, beside=True))
        report_flood(alone, beside, waits, (after[1] - before[1]) / (after[0] - before[0]))
    finally:
        server.close()


def run_overload(texts: list[str], per_request: int, rounds: int, seconds: float) -> None:
    """The second load, on a server of its own with a bound on the wait, each time between two peaks."""
    os.environ["VECMILL_BROKER_MAX_WAIT_S"] = str(MAX_WAIT_S)
    server = Server()
    try:
        requests = [server.request(texts[at : at + per_request]) for at in range(0, 1024, per_request)]
        asyncio.run(saturate(server, requests, seconds / 4))
        peaks, ratios, before = [asyncio.run(saturate(server, requests, seconds))], [], resident_mb(server.pid)
        for _ in range(rounds):
            got = asyncio.run(overload(server, requests, 10 * peaks[-1], seconds))
            peaks.append(asyncio.run(saturate(server, requests, seconds)))
            ratios.append(got.goodput / statistics.mean(peaks[-2:]))
            print(f"overload, 10 times {peaks[-2] * per_request:.0f} texts/s in requests of {per_request}: ", end="")
            print(f"goodput {got.goodput * per_request:.0f} texts/s ({ratios[-1]:.0%}), {dict(got.statuses)}")
            print(f"  what was accepted took {percentile(got.waits, 0.5):.0f} ms in the median and ", end="")
            print(f"{percentile(got.waits, 0.99):.0f} ms at p99, for a wait of at most {MAX_WAIT_S:.0f} s")
        print(f"  goodput {statistics.median(ratios):.0%} of the peak in the median of {rounds}; ", end="")
        print(f"memory {before} MB before and {resident_mb(server.pid)} MB after")
    finally:
        server.close()


def write_keys(path: Path) -> None:
    """Write a file of API keys; that of the one client may have one large request open."""
    limits = dict.fromkeys(CLIENTS, "") | {ATTACKER: "jobs_in_flight = 2048"}
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in limits}
    path.write_text("".join(f'[[key]]\nname = "{one}"\nsha256 = "{hashes[one]}"\n{limits[one]}\n' for one in limits))


def run_abandonment(seconds: float, *flags: str) -> None:
    """The third load, on a server of its own with these flags."""
    server = Server(*flags, key=CLIENTS[0])
    try:
        asyncio.run(ask_beside_abandonment(server, 1, seconds / 4))
        for per_second in ABANDONED_PER_S:
            before = processor_seconds(server)
            statuses, waits, recovered_s = asyncio.run(ask_beside_abandonment(server, per_second, seconds))
            used = {name: used - before[name] for name, used in processor_seconds(server).items()}
            shares = ", ".join(f"{name} {each / seconds:.0%}" for name, each in sorted(used.items()))
            counters = server.counters()
            print(
                f"abandonment, {'with' if flags else 'without'} keys, {per_second} requests of 2,048 inputs a second:"
            )
            print(f"  others {dict(statuses)}, {percentile(waits, 0.5):.0f} ms in the median,", end=" ")
            print(f"{percentile(waits, 0.99):.0f} ms at p99; a fast answer {recovered_s:.2f} s after its end;", end=" ")
            print(f"{counters.get('workers_evicted', 0)} workers evicted, {counters.get('workers_left', 0)} left")
            print(f"  processor: {shares}; memory {resident_mb(server.pid)} MB")
    finally:
        server.close()


def main() -> None:
    """Run the loads and print what came of them."""
    options = arguments()
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
