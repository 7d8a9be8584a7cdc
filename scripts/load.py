"""What `scripts/load` runs: two loads that a server must bear, on the real model, each against its own yardstick.

Flood: bulk clients that send 64 texts a request without pause, alone, and beside one client that sends a short text at
a time. Overload: an open loop of ten times the requests that the server can answer, with a bound on the wait.
"""

import argparse
import asyncio
import itertools
import json
import math
import os
import time
from collections import Counter
from pathlib import Path

from bench import ROOT, Server

#: The broker's bound on the wait during the overload, in seconds.
MAX_WAIT_S = 2.0
#: Texts in a request of the overload.
PER_REQUEST = 16


def arguments() -> argparse.Namespace:
    """The flags of scripts/load."""
    parser = argparse.ArgumentParser(prog="scripts/load", description="Flood and overload a server of its own.")
    default = ROOT.parent / "shared" / "data" / "load" / "queries.jsonl"
    parser.add_argument(
        "--texts", type=Path, default=default, help="JSON lines with a text each (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each load (default: %(default)s)")
    return parser.parse_args()


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


async def overload(
    server: Server, requests: list[bytes], peak: float, length_s: float
) -> tuple[Counter[int], list[float], float]:
    """Statuses, the seconds of accepted requests, and goodput, of requests that come ten times too fast."""
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
    sent = 0
    while (passed := time.monotonic() - started) < length_s:
        while sent < passed * peak * 10 / PER_REQUEST:
            task = asyncio.create_task(one(sent))
            running.add(task)
            task.add_done_callback(running.discard)
            sent += 1
        await asyncio.sleep(0.002)
    in_time = statuses[200]
    await asyncio.gather(*running)
    for client in idle:
        client.close()
    return statuses, waits, in_time * PER_REQUEST / length_s


def resident_mb(pid: int) -> int:
    """Memory of a process and its children."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        children = [int(child) for child in (task / "children").read_text().split()]
        total += sum(resident_mb(child) for child in children)
    return total + int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


async def saturate(server: Server, requests: list[bytes], length_s: float) -> float:
    """Texts/s of the same requests from enough clients that wait for their answers."""
    until, done, left = time.monotonic() + length_s, 0, itertools.cycle(requests)

    async def client() -> None:
        nonlocal done
        connection = await Client(server.port).open()
        while time.monotonic() < until:
            status, _ = await connection.ask(next(left))
            done += status == 200
        connection.close()

    await asyncio.gather(*(client() for _ in range(32)))
    return done * PER_REQUEST / length_s


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


def run_overload(texts: list[str], seconds: float) -> None:
    """The second load, on a server of its own with a bound on the wait."""
    os.environ["VECMILL_BROKER_MAX_WAIT_S"] = str(MAX_WAIT_S)
    server = Server()
    try:
        requests = [server.request(texts[at : at + PER_REQUEST]) for at in range(0, 1000, PER_REQUEST)]
        asyncio.run(saturate(server, requests, seconds / 4))
        peak = asyncio.run(saturate(server, requests, seconds))
        before = resident_mb(server.pid)
        statuses, waits, goodput = asyncio.run(overload(server, requests, peak, seconds))
        print(f"overload, 10 times {peak:.0f} texts/s: goodput {goodput:.0f} ({goodput / peak:.0%}), {dict(statuses)}")
        print(f"  p99 of what was accepted {percentile(waits, 0.99):.0f} ms, admitted for a wait of {MAX_WAIT_S:.0f} s")
        print(f"  memory {before} MB before and {resident_mb(server.pid)} MB after")
    finally:
        server.close()


def main() -> None:
    """Run both loads and print what came of them."""
    options = arguments()
    texts = [json.loads(line)["text"] for line in options.texts.read_text().splitlines()]
    texts = [text for text in texts if len(text) < 200]
    run_flood(texts, options.seconds)
    run_overload(texts, options.seconds)


if __name__ == "__main__":
    main()
