"""What `scripts/chaos` runs: the three programs with a fake model, clients that check every vector, and random kills.

Two phases. In the first everything is killed: workers, now and then the broker and a frontend's process. In the second
only workers are, and the broker is frozen at times, so that the broker and the frontends live from a first burst of
load to a second, equal one, and their memory after the two can be compared.

A request ends well with a 200 and the right vectors. These ends are counted apart, each with its proof: its client went
away; its connection belonged to a frontend process that was killed (its sockets are listed just before the kill); a 503
or 504 with Retry-After while the broker or all workers were away, or had just been; a 504 of a request that asked for
a short deadline, while any process was away; a 422, because a job whose worker was killed twice cannot be told from
poison. Every other end is a fault, and so is a process that ends by itself.
"""

import argparse
import asyncio
import base64
import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from frontend.processes import Child  # noqa: E402  after the path is set
from tests.fake_worker import vector  # noqa: E402
from tests.processes import alive, descendants, free_port  # noqa: E402

#: How long a request may take, as the frontends are told, and how much later its answer counts as a hang, in seconds.
DEADLINE_S, SLACK_S = 30.0, 10.0
#: What some of the chaotic requests ask for instead; a frozen worker alone can make one of these a 504.
SHORT_S = 1.0, 5.0
#: How long after the broker or the workers are back a 503 or 504 is still their absence's, in seconds: the frontends'
#: grace for a broker's models.
AFTERMATH_S = 6.0
#: How old a worker is before it counts as there.
WORKER_START_S = 1.5
#: How long a process may take to start, in seconds.
START_S = 5.0
#: The mean time until a process that ended is started again, by its role, and the longest.
RESTART_S, MAX_RESTART_S = {"broker": 2.0, "worker": 0.7, "frontend": 0.7}, 8.0
#: Mean seconds between two strikes at each role.
MEANS_S = {"worker": 2.0, "broker": 14.0, "frontend": 11.0}
#: What strikes a role in each phase, with weights.
KINDS: dict[int, dict[str, dict[str, float]]] = {
    1: {
        "worker": {"SIGKILL": 4, "SIGSTOP": 3, "SIGTERM": 3},
        "broker": {"SIGKILL": 6, "SIGSTOP": 2, "SIGTERM": 2},
        "frontend": {"SIGKILL": 1},
    },
    2: {"worker": {"SIGKILL": 4, "SIGSTOP": 3, "SIGTERM": 3}, "broker": {"SIGSTOP": 1}},
}
#: Part of the time that the first phase takes.
FIRST_PHASE = 0.6
FROZEN_S = 1.0, 6.0
#: Requests of a burst, enough to fill every ring of memories.
BURST = 1500
#: How much more memory a process may have after the second burst than after the first.
GROWTH = 0.05
HEALTHY_WITHIN_S, DRAIN_S = 45.0, 75.0
#: The broker's counters that the summary shows. A frozen worker's late answer comes without a session.
COUNTED = (
    "jobs_requeued",
    "late_answers",
    "messages_without_session",
    "duplicate_requests",
    "workers_evicted",
    "workers_left",
    "workers_joined",
    "jobs_cancelled",
)


def arguments() -> argparse.Namespace:
    """The flags of scripts/chaos."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Kill at random; check every answer.")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of all that is random")
    parser.add_argument("--workers", type=int, default=4, help="fake workers (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="clients at once (default: %(default)s)")
    parser.add_argument("--keep-logs", action="store_true", help="keep the folder of logs also when all is well")
    return parser.parse_args()


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(f"chaos: {text}", file=sys.stderr, flush=True)


@dataclasses.dataclass
class Tally:
    """What has happened."""

    started: float = dataclasses.field(default_factory=time.monotonic)
    #: Chaotic requests by their end.
    ends: Counter[str] = dataclasses.field(default_factory=Counter)
    #: Strikes by role and signal.
    strikes: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    jobs: int = 0
    longest_s: float = 0.0
    #: The broker's counters in each of its lives, by its process id, as last seen.
    lives: dict[int, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    #: A line of each process's memory.
    memory: list[tuple[str, float, float]] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)

    def fault(self, text: str) -> None:
        """Something that must not be."""
        self.faults.append(f"at {time.monotonic() - self.started:.1f} s: {text}")
        say(f"FAULT {self.faults[-1]}")


# --- processes -------------------------------------------------------------------------------------------------------


class Member:
    """A process that is started again a little after its end; an end that nobody caused is a fault."""

    def __init__(self, name: str, command: list[str], log: Path, tally: Tally, dice: random.Random) -> None:
        self.name = name
        # The shell gives it its log and becomes it.
        self._command = ["/bin/sh", "-c", 'exec "$@" >>"$0" 2>&1', str(log), sys.executable, "-m", *command]
        self._tally, self._dice = tally, dice
        self._due = self._started = 0.0
        self.frozen = False
        #: The signal that ends it, once sent.
        self.doom: signal.Signals | None = None
        self._doomed_early = False
        self._child = Child(name, self._command, say)

    @property
    def pid(self) -> int:
        """Its process id; 0 while there is none."""
        process = self._child.process
        return process.pid if process and process.poll() is None else 0

    @property
    def steady(self) -> bool:
        """Whether it runs, and nothing has been done to it."""
        return bool(self.pid) and not self.frozen and self.doom is None

    @property
    def age_s(self) -> float:
        """How long it has run."""
        return time.monotonic() - self._started

    def keep(self, now: float) -> None:
        """Start it if it is to run and does not."""
        if self.pid:
            return
        if self._child.process:
            self._note_end(self._child.process.returncode)
            self._child = Child(self.name, self._command, say)
            self._due = now + min(MAX_RESTART_S, self._dice.expovariate(1 / RESTART_S[self.name.split()[0]]))
            self.frozen, self.doom = False, None
        if now >= self._due:
            self._started = now
            self._child.keep(now)

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        if self.pid:
            os.kill(self.pid, number)
        self.frozen = number == signal.SIGSTOP
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.doom, self._doomed_early = number, self.age_s < START_S

    async def drained(self) -> None:
        """Wait for its end after SIGTERM."""
        until = time.monotonic() + DRAIN_S
        while self.pid and time.monotonic() < until:
            await asyncio.sleep(0.02)
        if self.pid:
            self._tally.fault(f"{self.name} does not end after SIGTERM")
        elif self._child.process:
            self._note_end(self._child.process.returncode)

    def kill(self) -> None:
        """Kill whatever is left of it."""
        self._child.kill()

    def _note_end(self, status: int) -> None:
        wanted = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {0}}
        if self._doomed_early:
            # Python was still starting: there was nothing to drain, and nobody yet to handle the signal.
            wanted[signal.SIGTERM].add(-signal.SIGTERM)
        if self.doom is None or status not in wanted[self.doom]:
            self._tally.fault(f"{self.name} ended with status {status} after {self.doom or 'no signal'}")


class System:
    """The broker, the workers and the frontend, on endpoints in a folder of their own."""

    def __init__(self, folder: Path, workers: int, tally: Tally, dice: random.Random) -> None:
        self.folder, self.tally, self.port = folder, tally, free_port()
        frontends, wire = f"ipc://{folder}/frontends", f"ipc://{folder}/workers"

        def member(name: str, *command: str) -> Member:
            return Member(name, list(command), folder / f"{name.replace(' ', '-')}.log", tally, dice)

        self.broker = member("broker", "broker", "--frontend-bind", frontends, "--worker-bind", wire)
        self.workers = [member(f"worker {one}", "tests.fake_worker", "--broker", wire) for one in range(1, workers + 1)]
        flags = ("--broker", frontends, "--port", str(self.port), "--processes", "2", "--deadline-s", str(DEADLINE_S))
        self.frontend = member("frontend", "frontend", *flags)
        #: Ports of clients whose connection went down with a killed frontend process.
        self.cut: set[int] = set()
        #: When the broker or all workers were last seen to be away, and when any process was.
        self.troubled_at = self.touched_at = time.monotonic()

    @property
    def members(self) -> list[Member]:
        """All that is started from here."""
        return [self.broker, *self.workers, self.frontend]

    async def keep(self) -> None:
        """Keep everything running, and note when the broker or all workers are away."""
        while True:
            now = time.monotonic()
            for member in self.members:
                member.keep(now)
            self.note_trouble()
            await asyncio.sleep(0.05)

    def note_trouble(self) -> None:
        """Remember who is away now."""
        there = [one.steady and one.age_s > WORKER_START_S for one in self.workers]
        if not (self.broker.steady and any(there)):
            self.troubled_at = time.monotonic()
        if not (self.broker.steady and all(there)):
            self.touched_at = time.monotonic()

    def serving(self) -> list[int]:
        """The frontend's processes that serve."""
        return descendants(self.frontend.pid) if self.frontend.pid else []

    async def kill_serving(self, pid: int) -> None:
        """Kill one of them, and know whose connections that ends: stopped, it takes no new ones."""
        os.kill(pid, signal.SIGSTOP)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
            await asyncio.sleep(0.001)
        self.cut |= set(client_ports(pid, self.port))
        os.kill(pid, signal.SIGKILL)

    def left(self) -> list[int]:
        """Processes that still run: the folder is in each one's command."""
        return [pid for pid, command in commands() if str(self.folder) in command and alive(pid)]

    def memory(self) -> dict[tuple[str, int], float]:
        """MiB of the broker and of the frontend's processes, by name and process id."""
        pids = [("broker", self.broker.pid), ("frontend", self.frontend.pid)]
        pids += [("frontend that serves", pid) for pid in self.serving()]
        return {(name, pid): resident_mib(pid) for name, pid in pids}

    async def stop(self) -> None:
        """SIGTERM to all, frontends first; whatever is left then is a fault."""
        for group in ([self.frontend], self.workers, [self.broker]):
            for member in group:
                member.send(signal.SIGTERM)
            for member in group:
                await member.drained()
        if left := self.left():
            self.tally.fault(f"processes are left after SIGTERM to all: {left}")

    def close(self) -> None:
        """Kill whatever is left."""
        for member in self.members:
            member.kill()
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def commands() -> Iterator[tuple[int, str]]:
    """Every process's id and command."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")


def resident_mib(pid: int) -> float:
    """A process's resident memory."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def client_ports(pid: int, port: int) -> Iterator[int]:
    """The ports at the other ends of a process's connections on this port of its own."""
    links = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        own, other = (int(fields[column].split(":")[1], 16) for column in (1, 2))
        if own == port and fields[9] in inodes:
            yield other


# --- clients ---------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """An HTTP answer; names of headers are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One HTTP connection, whose own port is known."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.port = int(writer.get_extra_info("sockname")[1])
        self.open = True
        self.opened_at = time.monotonic()
        self.sent = self.answered = 0

    @classmethod
    async def to(cls, system: System) -> "Connection":
        """A new one."""
        connection = cls(*await asyncio.open_connection("127.0.0.1", system.port))
        # Whoever had this port before is not to be mistaken for this one.
        system.cut.discard(connection.port)
        return connection

    def send(self, method: str, path: str, body: bytes = b"", **headers: object) -> None:
        """Send a request; `headers` are Vecmill's own, and empty ones are left out."""
        head = f"{method} {path} HTTP/1.1\r\nHost: chaos\r\n"
        head += f"Content-Length: {len(body)}\r\n" if body else ""
        for name, value in headers.items():
            head += f"x-vecmill-{name.replace('_', '-')}: {value}\r\n" if value else ""
        self._writer.write(head.encode() + b"\r\n" + body)
        self.sent += 1

    async def receive(self) -> Answer:
        """The answer to it."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, value in pairs}
        body = await self._reader.readexactly(int(headers["content-length"]))
        self.answered += 1
        if headers.get("connection") == "close":
            self.close()
        return Answer(int(head[0].split()[1]), headers, body)

    def __str__(self) -> str:
        age_s = time.monotonic() - self.opened_at
        return f"port {self.port}, {self.answered} of {self.sent} answered, {age_s:.1f} s after it was opened"

    def close(self) -> None:
        """End it at once."""
        self.open = False
        self._writer.transport.abort()


class Texts:
    """Texts that are never the same twice. Some make a worker wait, so that kills meet batches that run."""

    def __init__(self, dice: random.Random) -> None:
        self._dice, self._number = dice, itertools.count(1)

    def request(self, slow: float) -> list[str]:
        """The texts of one request; often few. `slow` is the chance that one of them is slow."""
        size = 1 + int(64 * self._dice.random() ** 3)
        texts = [f"text {next(self._number)} {'x' * self._dice.randrange(30)}" for _ in range(size)]
        if self._dice.random() < slow:
            texts[-1] = f"slow 0.0{self._dice.randrange(1, 6)}{next(self._number):09}"
        return texts


class Client:
    """Asks, one request after the other, and checks what comes."""

    def __init__(self, system: System, texts: Texts, dice: random.Random, ends: Counter[str]) -> None:
        self._system, self._texts, self._dice, self._ends = system, texts, dice, ends
        self._connection: Connection | None = None

    async def ask(self, *, slow: float = 0, aborts: float = 0, short: float = 0) -> None:
        """One request; the chances that a text is slow, that it is given up, that its deadline is short."""
        own_s = self._dice.uniform(*SHORT_S) if self._dice.random() < short else 0.0
        limit_s = (own_s or DEADLINE_S) + SLACK_S
        lane = self._dice.choice(["", "interactive", "bulk"])
        texts = self._texts.request(slow)
        body = json.dumps({"model": "fake", "input": texts, "encoding_format": "base64"}).encode()
        started = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                connection = await self._connected()
                connection.send("POST", "/v1/embeddings", body, lane=lane, deadline_ms=int(own_s * 1000))
                if self._dice.random() < aborts:
                    await asyncio.sleep(self._dice.uniform(0, 0.1))
                    connection.close()
                    self._ends["aborted by its client"] += 1
                    return
                answer = await connection.receive()
        except TimeoutError:
            self._fail(f"a request of {len(texts)} texts has no answer after {limit_s:.0f} s")
        except (OSError, asyncio.IncompleteReadError) as error:
            self._note_cut(error, time.monotonic() - started)
        else:
            self._system.tally.longest_s = max(self._system.tally.longest_s, time.monotonic() - started)
            await self._judge(answer, texts, started, own_s)

    def close(self) -> None:
        """End its connection."""
        if self._connection:
            self._connection.close()

    async def _connected(self) -> Connection:
        """Its connection; now and then a new one, so that every frontend process gets its part."""
        if self._connection and self._dice.random() < 0.1:
            self._connection.close()
        if self._connection is None or not self._connection.open:
            self._connection = None
            self._connection = await Connection.to(self._system)
        return self._connection

    def _note_cut(self, error: Exception, after_s: float) -> None:
        port = self._connection.port if self._connection else 0
        if port in self._system.cut:
            self._ends["lost with its frontend process"] += 1
            self.close()
        else:
            self._fail(f"a connection ended {after_s:.3f} s into a request: {error!r}; {self._connection}")

    def _fail(self, text: str) -> None:
        self._ends["FAULT"] += 1
        self._system.tally.fault(text)
        self.close()

    async def _judge(self, answer: Answer, texts: list[str], started: float, own_s: float) -> None:
        if answer.status == 200:
            if right(answer.body, texts):
                self._ends["200"] += 1
                self._system.tally.jobs += len(texts)
            else:
                self._fail(f"wrong vectors for {texts}: {answer.body[:300]!r}")
            return
        code = error_code(answer.body)
        known = f"{answer.status} {code}"
        self._system.note_trouble()
        late = own_s and answer.status == 504
        excused = (self._system.touched_at if late else self._system.troubled_at) >= started - AFTERMATH_S
        if known == "422 poison_input":
            self._ends[known] += 1
        elif answer.status not in (503, 504):
            self._fail(f"{known}: {answer.body[:300]!r}")
        elif not answer.headers.get("retry-after", "").isdigit():
            self._fail(f"{known} without Retry-After, {time.monotonic() - started:.1f} s after it was sent")
        elif not excused:
            self._fail(f"{known} though broker and workers were there: {answer.body[:300]!r}")
        else:
            self._ends[known + (", short deadline" if late else "")] += 1
            await asyncio.sleep(self._dice.uniform(0, 0.5))


def right(body: bytes, texts: list[str]) -> bool:
    """Whether an answer has each text's own vector, in order, and nothing else."""
    rows = json.loads(body)["data"]
    wanted = [(index, base64.b64encode(vector(text).tobytes()).decode()) for index, text in enumerate(texts)]
    return [(row["index"], row["embedding"]) for row in rows] == wanted


def error_code(body: bytes) -> str:
    """The code of OpenAI's error object."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["code"])
    return "no error object"


async def health(system: System) -> dict[str, Any]:
    """GET /health on a new connection; empty when its frontend process is killed meanwhile."""
    connection = await Connection.to(system)
    try:
        async with asyncio.timeout(SLACK_S):
            connection.send("GET", "/health")
            state: dict[str, Any] = json.loads((await connection.receive()).body)
            return state
    except TimeoutError:
        system.tally.fault(f"GET /health has no answer after {SLACK_S:.0f} s")
    except (OSError, asyncio.IncompleteReadError) as error:
        if connection.port not in system.cut:
            system.tally.fault(f"GET /health failed: {error!r}")
    finally:
        connection.close()
    return {}


async def watch(system: System) -> None:
    """Remember each broker's counters."""
    while True:
        pid = system.broker.pid
        with contextlib.suppress(ConnectionRefusedError):
            state = await health(system)
            # A counter never goes down; while a broker goes and another comes, nobody can tell whose these are.
            if pid and system.broker.pid == pid and system.broker.age_s > 2 and state.get("counters"):
                system.tally.lives[pid] = state["counters"]
        await asyncio.sleep(0.5)


# --- chaos -----------------------------------------------------------------------------------------------------------


class Strike(NamedTuple):
    """A kill to come, `at` seconds after the phase's start."""

    at: float
    role: str
    kind: str
    frozen_s: float


def plan(phase: int, seconds: float, dice: random.Random) -> list[Strike]:
    """A phase's strikes: a Poisson stream for each role."""
    strikes = []
    for role, kinds in KINDS[phase].items():
        at = dice.expovariate(1 / MEANS_S[role])
        while at < seconds:
            (kind,) = dice.choices(list(kinds), list(kinds.values()))
            strikes.append(Strike(at, role, kind, dice.uniform(*FROZEN_S)))
            at += dice.expovariate(1 / MEANS_S[role])
    return sorted(strikes)


async def strike(system: System, one: Strike, dice: random.Random, thaws: set[asyncio.Task[None]]) -> None:
    """Do it, if there is a process of the role to which nothing has been done yet."""
    name = one.kind
    if one.role == "frontend":
        # One stays: with both gone and their restart delayed, nobody would read what clients send.
        serving = system.serving()
        if len(serving) < 2:
            name = "none was fit"
        else:
            await system.kill_serving(dice.choice(serving))
    else:
        fit = [member for member in (system.workers if one.role == "worker" else [system.broker]) if member.steady]
        if not fit:
            name = "none was fit"
        else:
            member = dice.choice(fit)
            member.send(signal.Signals[one.kind])
            system.note_trouble()
            if one.kind == "SIGSTOP":
                thaws.add(asyncio.create_task(thaw(member, one.frozen_s)))
    system.tally.strikes[one.role, name] += 1


async def thaw(member: Member, after_s: float) -> None:
    """Let a frozen process go on."""
    await asyncio.sleep(after_s)
    member.send(signal.SIGCONT)


async def chaos(system: System, clients: list[Client], phase: int, seconds: float, seed: int) -> None:
    """A phase: clients ask without end while the plan is carried out; then all frozen processes thaw."""
    # Dice of its own: the plan depends on the seed alone, and not on how fast anything went.
    dice = random.Random(f"{seed}, phase {phase}")
    strikes, started = plan(phase, seconds, dice), time.monotonic()
    say(f"phase {phase}: {len(strikes)} strikes in {seconds:.0f} s")
    over = asyncio.Event()

    async def load(client: Client) -> None:
        while not over.is_set():
            await client.ask(slow=0.4, aborts=0.08, short=0.1)

    thaws: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(load(client))
        for one in strikes:
            await asyncio.sleep(started + one.at - time.monotonic())
            await strike(system, one, dice, thaws)
        await asyncio.sleep(started + seconds - time.monotonic())
        await asyncio.gather(*thaws)
        over.set()


async def burst(system: System, clients: list[Client]) -> dict[tuple[str, int], float]:
    """Load of a fixed size without any kill; the memory after it."""
    left = itertools.count(1)

    async def load(client: Client) -> None:
        while next(left) <= BURST:
            await client.ask()

    await asyncio.gather(*(load(client) for client in clients))
    await asyncio.sleep(1)
    return system.memory()


async def heal(system: System, within_s: float = HEALTHY_WITHIN_S) -> None:
    """Wait until everything is there, and see that nothing is open: nobody asks now."""
    until, good, state = time.monotonic() + within_s, 0, dict[str, Any]()
    # Several times in a row, so that every frontend process has been asked.
    while good < 8 and time.monotonic() < until:
        with contextlib.suppress(ConnectionRefusedError):
            state = await health(system)
        there = state.get("status") == "ready" and state.get("workers") == len(system.workers)
        good = good + 1 if there and len(system.serving()) == 2 else 0
        await asyncio.sleep(0.1)
    if good < 8:
        system.tally.fault(f"not healthy after {within_s:.0f} s: {state}")
    await asyncio.sleep(1)
    state = await health(system)
    if state.get("open_jobs") != 0 or state.get("queued_jobs") != 0:
        system.tally.fault(f"{state.get('open_jobs')} jobs open and {state.get('queued_jobs')} queued with no clients")


def compare(system: System, before: dict[tuple[str, int], float], after: dict[tuple[str, int], float]) -> None:
    """The memory of each process after the two bursts; only processes that lived through both can be compared."""
    if before.keys() != after.keys():
        system.tally.fault(f"a process was started again in the second phase: {before.keys() ^ after.keys()}")
    for name, pid in before.keys() & after.keys():
        first, second = before[name, pid], after[name, pid]
        system.tally.memory.append((f"{name} ({pid})", first, second))
        if second > first * (1 + GROWTH):
            system.tally.fault(f"{name} ({pid}) grew from {first:.1f} to {second:.1f} MiB")


async def run(system: System, options: argparse.Namespace, dice: random.Random) -> None:
    """All of it, but the end of the processes."""
    texts, quiet = Texts(dice), Counter[str]()
    chaotic = [Client(system, texts, dice, system.tally.ends) for _ in range(options.clients)]
    calm = [Client(system, texts, dice, quiet) for _ in range(options.clients)]
    first_s = options.minutes * 60 * FIRST_PHASE
    await heal(system)
    await chaos(system, chaotic, 1, first_s, options.seed)
    await heal(system)
    before = await burst(system, calm)
    await chaos(system, chaotic, 2, options.minutes * 60 - first_s, options.seed)
    await heal(system)
    after = await burst(system, calm)
    await heal(system)
    compare(system, before, after)
    await calm[0].ask()
    if set(quiet) != {"200"} or quiet["200"] != 2 * BURST + 1:
        system.tally.fault(f"without kills, requests ended so: {dict(quiet)}")
    for client in (*chaotic, *calm):
        client.close()


async def supervised(system: System, options: argparse.Namespace, dice: random.Random) -> None:
    """Run with everything kept up, then stop everything."""
    tasks = [asyncio.create_task(system.keep()), asyncio.create_task(watch(system))]
    running = asyncio.create_task(run(system, options, dice))
    await asyncio.wait([running, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            running.cancel()
            raise result
    await running
    await system.stop()


def read_logs(system: System) -> None:
    """What the programs themselves say of faults: tracebacks, and serving processes that nobody killed."""
    for log in sorted(system.folder.glob("*.log")):
        text = log.read_text(errors="replace")
        if "Traceback" in text:
            system.tally.fault(f"{log.name} has {text.count('Traceback')} tracebacks")
    ended = (system.folder / "frontend.log").read_text().count(" ended with status ")
    killed = system.tally.strikes["frontend", "SIGKILL"]
    if ended != killed:
        system.tally.fault(f"{ended} frontend processes ended, but {killed} were killed")


def report(tally: Tally, options: argparse.Namespace) -> None:
    """The summary."""
    print(f"scripts/chaos --minutes {options.minutes:g} --seed {options.seed} ", end="")
    print(f"--workers {options.workers} --clients {options.clients}\n\n| what | how many |\n|---|---:|")
    print(f"| minutes of chaos | {options.minutes:g} |")
    for (role, kind), number in sorted(tally.strikes.items()):
        print(f"| {role}, {kind} | {number} |")
    for end, number in sorted(tally.ends.items()):
        print(f"| requests, {end} | {number} |")
    print(f"| vectors checked | {tally.jobs} |\n| longest answer | {tally.longest_s:.1f} s |")
    print(f"| lives of the broker | {len(tally.lives)} |")
    for name in COUNTED:
        print(f"| {name}, at least | {sum(life.get(name, 0) for life in tally.lives.values())} |")
    for name, before, after in sorted(tally.memory):
        print(f"| memory of the {name} | {before:.1f} → {after:.1f} MiB, {after / before - 1:+.1%} |")
    print(f"| faults | {len(tally.faults)} |\n")
    for fault in tally.faults:
        print(f"- {fault}")


def main() -> None:
    """Exit status 0 without faults, else 1, and then the logs are kept."""
    options = arguments()
    tally, dice = Tally(), random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="vecmill-chaos-"))
    say(f"seed {options.seed}, logs in {folder}")
    system = System(folder, options.workers, tally, dice)
    try:
        asyncio.run(supervised(system, options, dice))
        read_logs(system)
    finally:
        system.close()
    report(tally, options)
    if tally.faults or options.keep_logs:
        say(f"logs are kept in {folder}")
    else:
        shutil.rmtree(folder)
    sys.exit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
