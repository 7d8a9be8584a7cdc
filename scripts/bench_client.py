"""HTTP client of `scripts/load`, and of `scripts/bench` where wrk is not installed: closed-loop asyncio connections.

`python bench_client.py PORT FILE CLIENTS SECONDS` prints what `bench_load.lua` prints.
"""

import asyncio
import sys
import time
from collections import Counter
from pathlib import Path


class Client:
    """Closed-loop client on one connection."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._host, self._port = host, port

    async def open(self) -> "Client":
        """Connect and return the client."""
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def send_request(self, request: bytes) -> tuple[int, float]:
        """Send a request and return its status and its seconds."""
        started = time.monotonic()
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        self.body = await self._reader.readexactly(length)
        return int(head.split()[1]), time.monotonic() - started

    def close(self) -> None:
        """Disconnect."""
        self._writer.close()


async def run_clients(port: int, requests: list[bytes], clients: int, seconds: float) -> None:
    """Send each request once, for at most `seconds`, and print the result."""
    left = iter(requests)
    starts: list[float] = []
    latencies: Counter[int] = Counter()
    wrong = 0

    async def run_client() -> None:
        nonlocal wrong
        client = await Client(port).open()
        for request in left:
            starts.append(time.monotonic())
            status, waited = await client.send_request(request)
            latencies[int(waited * 1e6)] += 1
            wrong += status != 200
            if time.monotonic() > until:
                break
        starts.append(time.monotonic())
        client.close()

    started = time.monotonic()
    until = started + seconds
    await asyncio.gather(*(run_client() for _ in range(clients)))
    print("errors", 0, 0, 0, 0, wrong, sep="\t")
    print("run", int((time.monotonic() - started) * 1e6), latencies.total(), sep="\t")
    for start in sorted(starts):
        print("time", f"{start:.6f}", sep="\t")
    for latency in latencies.items():
        print("latency", *latency, sep="\t")


if __name__ == "__main__":
    from bench_load import read_file

    asyncio.run(run_clients(int(sys.argv[1]), read_file(Path(sys.argv[2])), int(sys.argv[3]), float(sys.argv[4])))
