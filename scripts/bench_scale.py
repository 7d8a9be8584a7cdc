"""`scripts/bench --scale`: how many workers one broker keeps busy, with workers whose device takes a known time.

The broker and the frontends are real. All workers live in one process, with a connection and a session each, and
answer a batch with zeros when their device would have finished it; a device runs one batch after another.
"""

import argparse
import asyncio
import heapq
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import zmq

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench_client import Client  # noqa: E402  after the path is set
from bench_servers import Process, find_free_port, read_cpu_seconds  # noqa: E402
from bench_texts import build_request  # noqa: E402

from broker.shared.flags import FlagParser, parse_count, parse_duration  # noqa: E402
from broker.wire import protocol as wire  # noqa: E402
from broker.wire.sockets import open_dealer  # noqa: E402
from workers.session.session import SLOTS, Session  # noqa: E402

WORKERS = (1, 2, 4, 8, 16, 32, 64)
DIMENSION = 8
TEXT = "a text of the bench of {:09}"
#: Tokens of a text, as the workers count them.
TEXT_TOKENS = 8
#: Texts in each request.
PER_REQUEST = 64
#: Texts that wait for each worker, as a multiple of a batch.
BACKLOG = 6
#: Seconds of load before each measurement, in which the broker learns the workers' speed.
LEARN_S = 1.5
#: Clients, and the connections of each: one client with few connections competes with one that has many.
CONNECTIONS = {"many": 3, "few": 1}


class Row(NamedTuple):
    """Result with one number of workers."""

    workers: int
    jobs_per_s: float
    batches_per_s: float
    #: Share of the time in which a device runs: of all workers, of the least busy one, of the busiest one.
    busy: float
    least_busy: float
    busiest: float
    #: Share of the jobs of the client that has fewer connections; 0.5 is fair.
    small_client: float
    broker_us_per_job: float
    #: CPUs that each kind of process uses.
    broker_cpus: float
    frontend_cpus: float
    fleet_cpus: float
    client_cpus: float


class FakeWorker:
    """One connection of the fleet, and its device."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        broker: str,
        number: int,
        jobs: int,
        ms: float,
        dimension: int = DIMENSION,
    ) -> None:
        self.busy_s = 0.0
        self._run_s = ms / 1000
        self._dimension = dimension
        self._free_at = 0.0
        tokens = jobs * TEXT_TOKENS
        info = wire.ModelInfo("fake", "1", dimension, 512)
        speed = int(tokens / self._run_s)
        hello = wire.WorkerHello(
            *(wire.PROTOCOL_MIN, wire.PROTOCOL_MAX, "bench", uuid.uuid4().bytes, time.time_ns(), "bench", number),
            *("FAKE", [info], tokens, speed, 0),
            streams=1,
        )
        self.session = Session(hello, SLOTS)
        self.socket = open_dealer(context, "", "worker")
        self.socket.connect(broker)
        # Waits for the connection.
        self.socket.send_multipart(wire.encode(self.session.make_hello(time.monotonic()), []))

    def receive(self) -> Iterator[tuple[float, wire.Batch]]:
        """Handle all messages, and yield each batch with the time at which the device will have run it."""
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            now = time.monotonic()
            batch, replies = self.session.handle(wire.decode(wire.TO_WORKER, parts)[0], now)
            self.send(replies)
            if batch:
                self._free_at = max(now, self._free_at) + self._run_s
                yield self._free_at, batch

    def answer(self, batch: wire.Batch) -> None:
        """Answer a batch that the device has run."""
        self.busy_s += self._run_s
        jobs = len(batch.kinds)
        tokens = wire.pack_u32([TEXT_TOKENS] * jobs)
        result = self.session.make_result(batch, self._dimension, tokens, [], int(self._run_s * 1e6))
        self.socket.send_multipart(wire.encode(result, [bytes(4 * self._dimension * jobs)]), zmq.NOBLOCK)

    def send(self, messages: Sequence[wire.Message]) -> None:
        """Send messages without frames."""
        for message in messages:
            self.socket.send_multipart(wire.encode(message, []), zmq.NOBLOCK)


def run_fleet(broker: str, number: int, jobs: int, ms: float, dimension: int) -> None:
    """Run workers. Print the seconds that each has been busy so far for each line on standard input."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    workers = [FakeWorker(context, broker, each, jobs, ms, dimension) for each in range(number)]
    by_socket = {worker.socket: worker for worker in workers}
    poller = zmq.Poller()
    for readable in (sys.stdin, *by_socket):
        poller.register(readable, zmq.POLLIN)
    running: list[tuple[float, int, FakeWorker, wire.Batch]] = []
    numbers, due_at = itertools.count(), 0.0
    while True:
        next_at = min(due_at, running[0][0] if running else due_at)
        for readable, _ in poller.poll(max(0, math.ceil((next_at - time.monotonic()) * 1000))):
            if isinstance(readable, int):
                if not sys.stdin.readline():
                    return
                print(json.dumps([worker.busy_s for worker in workers]), flush=True)
                continue
            worker = by_socket[readable]
            for ended, batch in worker.receive():
                heapq.heappush(running, (ended, next(numbers), worker, batch))
        now = time.monotonic()
        while running and running[0][0] <= now:
            _, _, worker, batch = heapq.heappop(running)
            worker.answer(batch)
        if now >= due_at:
            due_at = now + 0.1
            for worker in workers:
                worker.send(worker.session.due(now))


class System:
    """Broker, frontends and fleet in a folder."""

    def __init__(
        self,
        folder: Path,
        workers: int,
        frontends: int,
        jobs: int,
        ms: float,
        *,
        dimension: int = DIMENSION,
        log_level: str = "warning",
    ) -> None:
        self.port = find_free_port()
        ends = {role: f"ipc://{folder}/{role}" for role in ("frontends", "workers")}
        binds = ["--frontend-bind", ends["frontends"], "--worker-bind", ends["workers"], "--metrics-bind", ""]
        binds += ["--cache-bytes", "0"]
        serve = ["--broker", ends["frontends"], "--port", str(self.port), "--processes", str(frontends)]
        fleet = [ends["workers"], str(workers), str(jobs), str(ms), str(dimension)]
        python = [sys.executable, "-m"]
        self.broker = Process("scale-broker", [*python, "broker", "--log-level", log_level, *binds])
        self.frontend = Process("scale-frontend", [*python, "frontend", "--log-level", log_level, *serve])
        command = [sys.executable, __file__, "--fleet", *fleet]
        self.fleet = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._workers = workers

    def wait_ready(self) -> None:
        """Wait until all workers are connected."""
        url = f"http://127.0.0.1:{self.port}/health"
        self.frontend.wait_ready(url, lambda body: json.loads(body)["workers"] == self._workers)

    def read_busy_s(self) -> list[float]:
        """Return the seconds that each device has run."""
        assert self.fleet.stdin
        assert self.fleet.stdout
        print(file=self.fleet.stdin, flush=True)
        return list(json.loads(self.fleet.stdout.readline()))

    def read_cpu_s(self) -> list[float]:
        """Return the CPU seconds of broker, frontends, fleet and this process."""
        servers = [sum(process.read_cpu_seconds().values()) for process in (self.broker, self.frontend)]
        return [*servers, read_cpu_seconds(self.fleet.pid), time.process_time()]

    def close(self) -> None:
        """End all processes."""
        self.fleet.kill()
        self.fleet.wait()
        self.frontend.close()
        self.broker.close()


@contextmanager
def open_system(*arguments: int | float, **options: Any) -> Iterator[System]:
    """Yield a running system; the arguments are those of `System` after the folder."""
    with tempfile.TemporaryDirectory(prefix="vecmill-scale-") as folder:
        system = System(Path(folder), *arguments, **options)  # type: ignore[arg-type]
        try:
            system.wait_ready()
            yield system
        finally:
            system.close()


async def load(port: int, connections: int, ended: asyncio.Event, answered: dict[str, int]) -> None:
    """Send requests without pause, and count the answered texts of each client, until the event is set."""

    async def run(name: str, number: int) -> None:
        texts = [TEXT.format(number * PER_REQUEST + each) for each in range(PER_REQUEST)]
        request = build_request(texts, "/v1/embeddings", {"model": "fake", "encoding_format": "base64"}, name)
        client = await Client(port).open()
        while not ended.is_set():
            status, _ = await client.send_request(request)
            assert status == 200, client.body
            answered[name] = answered.get(name, 0) + PER_REQUEST
        client.close()

    total = sum(CONNECTIONS.values())
    clients = [client for client, share in CONNECTIONS.items() for _ in range(max(1, connections * share // total))]
    await asyncio.gather(*(run(client, number) for number, client in enumerate(clients)))


async def measure_system(system: System, workers: int, jobs: int, ms: float, seconds: float) -> Row:
    """Return what a system does under load."""
    answered: dict[str, int] = {}
    ended = asyncio.Event()
    connections = max(8, workers * jobs * BACKLOG // PER_REQUEST)
    loading = asyncio.create_task(load(system.port, connections, ended, answered))
    await asyncio.wait([loading], timeout=LEARN_S)
    started, before, cpu = time.monotonic(), system.read_busy_s(), system.read_cpu_s()
    counted = dict(answered)
    await asyncio.wait([loading], timeout=seconds)
    passed, after = time.monotonic() - started, system.read_busy_s()
    used = [(end - start) / passed for end, start in zip(system.read_cpu_s(), cpu, strict=True)]
    done = {client: number - counted.get(client, 0) for client, number in answered.items()}
    ended.set()
    await loading
    shares = [(end - start) / passed for end, start in zip(after, before, strict=True)]
    texts = sum(done.values())
    return Row(
        workers=workers,
        jobs_per_s=texts / passed,
        batches_per_s=sum(shares) * 1000 / ms,
        busy=statistics.mean(shares),
        least_busy=min(shares),
        busiest=max(shares),
        small_client=done["few"] / max(1, texts),
        broker_us_per_job=used[0] * passed * 1e6 / max(1, texts),
        broker_cpus=used[0],
        frontend_cpus=used[1],
        fleet_cpus=used[2],
        client_cpus=used[3],
    )


def measure_scale(
    workers: Sequence[int] = WORKERS, *, jobs: int = 4, ms: float = 10.0, seconds: float = 4.0, frontends: int = 1
) -> list[Row]:
    """Return a row for each number of workers, whose batches have so many jobs and take so many milliseconds."""
    rows = []
    for number in workers:
        with open_system(number, frontends, jobs, ms) as system:
            rows.append(asyncio.run(measure_system(system, number, jobs, ms, seconds)))
    return rows


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    names = "workers | jobs/s | batches/s | busy: mean, least, most | client with a quarter of the connections"
    lines = [f"| {names} | broker: µs/job, CPUs | CPUs of frontends, workers, clients |", "|---" * 7 + "|"]
    for row in rows:
        busy = f"{row.busy:.0%}, {row.least_busy:.0%}, {row.busiest:.0%}"
        counts = (
            f"| {row.workers} | {row.jobs_per_s:,.0f} | {row.batches_per_s:,.0f} | {busy} | {row.small_client:.0%} "
        )
        broker = f"| {row.broker_us_per_job:.0f}, {row.broker_cpus:.2f} "
        lines.append(f"{counts}{broker}| {row.frontend_cpus:.2f}, {row.fleet_cpus:.2f}, {row.client_cpus:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table."""
    if sys.argv[1:2] == ["--fleet"]:
        broker, number, jobs, ms, dimension = sys.argv[2:]
        return run_fleet(broker, int(number), int(jobs), float(ms), int(dimension))
    parser = FlagParser(prog="scripts/bench --scale", description="Measure the scale-out of one broker.")
    text = "numbers of workers (default: %(default)s)"
    parser.add_argument("--workers", type=parse_count, nargs="+", default=WORKERS, help=text)
    parser.add_argument("--jobs", type=parse_count, default=4, help="jobs in a batch (default: %(default)s)")
    text = "milliseconds of a batch (default: %(default)s)"
    parser.add_argument("--ms", type=parse_duration, default=10.0, help=text)
    parser.add_argument("--frontends", type=parse_count, default=1, help="frontend processes (default: %(default)s)")
    text = "seconds of each measurement (default: %(default)s)"
    parser.add_argument("--seconds", type=parse_duration, default=4.0, help=text)
    text = "write docs/scaling.json, of which scripts/bench --report plots the curve"
    parser.add_argument("--store", action="store_true", help=text)
    parser.add_argument("--scale", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = {"jobs": options.jobs, "ms": options.ms, "seconds": options.seconds, "frontends": options.frontends}
    rows = measure_scale(options.workers, **settings)
    print(format_table(rows))
    if options.store:
        points = [{"workers": row.workers, "jobs_s": round(row.jobs_per_s), "busy": round(row.busy, 3)} for row in rows]
        (ROOT / "docs" / "scaling.json").write_text(json.dumps({"points": points}, indent=1) + "\n")


if __name__ == "__main__":
    main()
