"""Simulation of the whole system in memory: one broker, workers and frontends, with a virtual clock and drawn faults.

The scheduler, the sessions of workers and frontends, and the codec are real. The sockets and the engine are simulated.
No call sleeps: a heap of events advances the clock. This module has the clock, the connections, the broker and the
workers. `test_simulation.py` has the frontends, the faults and the checks; `Simulation(seed).run()` replays a run.
"""

import functools
import heapq
import itertools
import random
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from broker.core import outgoing
from broker.core.limits import Limits
from broker.core.outbox import Send
from broker.core.scheduler import Scheduler
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Frame, Message
from workers.session.session import Session

LIMITS = Limits(lease_s=5.0, worker_grace_s=6.0, max_jobs=300, max_client_share=0.7)
MODEL = "m"
POISON, RAISES = "poison", "raises"


def vector(text: str, revision: str) -> bytes:
    """Return the vector of a text: the text's number, its length, and the revision of the model."""
    return struct.pack("<3f", int(text.split()[0]), len(text), ord(revision))


class World:
    """Clock, source of randomness, broker and connections."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.numbers = itertools.count(1)
        #: Number of times that each kind of event has occurred.
        self.seen: Counter[str] = Counter()
        self.events: deque[tuple[float, str, str, object]] = deque(maxlen=50)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        #: Worker that sent the hello on each connection.
        self.worker_of: dict[bytes, Worker] = {}
        self.broker = Broker(self)

    def run_at(self, when: float, action: Callable[[], None]) -> None:
        """Run an action at a time; actions of the same time run in the order of these calls."""
        heapq.heappush(self._heap, (when, next(self.numbers), action))

    def run_after(self, delay: float, action: Callable[[], None]) -> None:
        """Run an action after a delay in seconds."""
        self.run_at(self.now + delay, action)

    def pass_time(self, until: float) -> None:
        """Run all actions up to a time, and advance the clock to that time."""
        while self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = until

    def draw_notice_delay(self) -> float:
        """Return the seconds until a process notices the end of a connection."""
        return self.random.uniform(0.0, 0.02 if self.random.random() < 0.7 else 3.0)

    def record_event(self, end: "End", what: str, message: object) -> None:
        """Remember an event, to print the latest events when the run fails."""
        self.events.append((self.now, f"{type(end).__name__} {end.number}", what, message))

    def replace_worker(self, dead: "Worker") -> None:
        """Start a worker in place of a dead one, as a supervisor does."""


class Link:
    """One connection: keeps the order of messages in each direction, and loses the ones in transit when it is cut."""

    def __init__(self, sim: World, end: "End", peer: bytes) -> None:
        self.sim, self.end, self.peer = sim, end, peer
        self.open, self.since = True, sim.now
        self._arrival = {True: 0.0, False: 0.0}

    def carry(self, up: bool, message: Message, frames: Sequence[Frame]) -> None:
        """Send a message to the broker if `up`, else from the broker."""
        parts, draw = [bytes(part) for part in wire.encode(message, frames)], self.sim.random
        self._arrival[up] = max(self._arrival[up], self.sim.now + draw.choice([0.0002, 0.001, draw.uniform(0.0, 0.1)]))
        self.sim.run_at(self._arrival[up], lambda: self._arrive(up, parts))

    def _arrive(self, up: bool, parts: list[bytes]) -> None:
        if not self.open:
            self.sim.seen["messages lost"] += 1
        elif up:
            self.sim.broker.receive(self, parts)
        else:
            self.end.run_when_awake(lambda: self.end.receive(self, parts))

    def cut(self) -> None:
        """End the connection. Each process notices the end after its own delay, which is sometimes long."""
        if self.open:
            self.open = False
            self.sim.run_after(self.sim.draw_notice_delay(), lambda: self.sim.broker.notice_end(self))
            self.sim.run_after(self.sim.draw_notice_delay(), lambda: self.end.notice_end(self))


class End:
    """Process that keeps a connection to the broker."""

    role = b""
    decoder: Any = None

    def __init__(self, sim: World) -> None:
        self.sim = sim
        self.number = next(sim.numbers)
        self.uuid = self.number.to_bytes(16, "big")
        self.alive = True
        self.frozen_until = 0.0
        #: What the process does when it is awake. The first one may be running.
        self._actions: deque[Callable[[], None]] = deque()
        self.link: Link | None = None
        self._greeted = False
        sim.run_after(sim.random.uniform(0.0, 0.3), self.connect)

    def connect(self) -> None:
        """Connect to the broker, and retry until the broker accepts."""
        self.link = self.sim.broker.accept(self) if self.alive else None
        if self.link:
            self._greeted = False
            self.run_when_awake(lambda: None)
        elif self.alive:
            self.sim.run_after(self.sim.random.uniform(0.05, 0.5), self.connect)

    def notice_end(self, link: Link) -> None:
        """Notice that the connection has ended, and connect again."""
        if self.alive and self.link is link:
            self.link = None
            self.run_when_awake(self.disconnected)
            self.sim.run_after(self.sim.random.uniform(0.05, 0.5), self.connect)

    def run_when_awake(self, action: Callable[[], None]) -> None:
        """Run an action now, or when the process is no longer frozen; never when it is dead.

        Actions run in order, also if the process freezes again meanwhile. If the process has a new connection,
        `connected` runs first.
        """
        self._actions.append(action)
        if len(self._actions) == 1:
            self._run_actions()

    def _run_actions(self) -> None:
        while self._actions and self.alive:
            if self.sim.now < self.frozen_until:
                self.sim.run_at(self.frozen_until, self._run_actions)
                return
            if self.link and not self._greeted:
                self._greeted = True
                self.connected()
            self._actions[0]()
            self._actions.popleft()

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> None:
        """Send a message; drop the message if there is no connection, as a DEALER with IMMEDIATE does."""
        if self.link:
            self.sim.record_event(self, "sends", message)
            self.link.carry(True, message, frames)

    def receive(self, link: Link, parts: list[bytes]) -> None:
        """Handle a message from the broker; drop the message if its connection is an old one."""
        if link is self.link:
            decoded: tuple[Any, list[Frame]] = wire.decode(self.decoder, parts)
            self.sim.record_event(self, "receives", decoded[0])
            self.sim.seen["who"] += isinstance(decoded[0], wire.Who)
            self.handle(*decoded)

    def die(self) -> None:
        """End the process without a goodbye."""
        self.alive = False
        if self.link:
            self.link.cut()

    def connected(self) -> None:
        """React to a new connection."""

    def disconnected(self) -> None:
        """React to the end of the connection."""

    def handle(self, message: Any, frames: Sequence[Frame]) -> None:
        """React to a message from the broker."""


class Broker:
    """Scheduler and its shell; `scheduler` is None while the broker is down."""

    def __init__(self, sim: World) -> None:
        self.sim = sim
        self.links: dict[bytes, Link] = {}
        #: Texts of the batches that each worker's connection was sent and has not answered.
        self.leased: dict[bytes, dict[int, list[str]]] = {}
        self.start()

    def start(self) -> None:
        """Start the broker with a new, empty scheduler."""
        self.scheduler: Scheduler | None = Scheduler(next(self.sim.numbers), LIMITS)
        self._wake_at = float("inf")
        #: Number of times that each text was in a batch of a worker that really died, froze or hung.
        self.deaths: Counter[str] = Counter()
        #: When the broker last had a worker, and since when it has known the model.
        self.last_served, self.known_since = self.sim.now, float("inf")

    def crash(self) -> None:
        """Stop the broker and end all connections."""
        self.scheduler = None
        for link in self.links.values():
            link.cut()
        self.links, self.leased = {}, {}

    def accept(self, end: End) -> Link | None:
        """Return a new connection; None if the broker is down."""
        link = Link(self.sim, end, end.role + b"%d" % next(self.sim.numbers))
        return self.links.setdefault(link.peer, link) if self.scheduler else None

    def receive(self, link: Link, parts: list[bytes]) -> None:
        """Pass a message of a peer to the scheduler."""
        decoder: Any = wire.FROM_FRONTEND if link.end.role == b"F" else wire.FROM_WORKER
        message, frames = wire.decode(decoder, parts)
        if isinstance(message, wire.BatchResult | wire.BatchError):
            self.leased.get(link.peer, {}).pop(message.batch, None)
        open_jobs = self.scheduler.open_jobs if self.scheduler else 0
        held = open_jobs + len(getattr(message, "submissions", [0])) - 1
        self._call_scheduler(lambda core: core.handle(link.peer, message, self.sim.now, frames), held)

    def notice_end(self, link: Link) -> None:
        """Report a lost peer to the scheduler, as the shell does when a send fails."""
        if self.links.pop(link.peer, None):
            self._call_scheduler(lambda core: core.lost(link.peer, self.sim.now))

    def _call_scheduler(self, call: Callable[[Scheduler], list[Send]], held: int = 1) -> None:
        """Call the scheduler, check its invariants, send its messages, and schedule the next tick."""
        core = self.scheduler
        assert core
        sends = call(core)
        core.check_invariants()
        models = outgoing.build_models(core.state).models
        self.known_since = min(self.known_since, self.sim.now) if models else float("inf")
        if any(model.workers for model in models):
            self.last_served = self.sim.now
        for peer, message, frames in sends:
            # A worker may still run batches of requests that have ended.
            leases = sum(len(worker.leases) for worker in core.state.pool.workers.values())
            self._check_send(peer, message, frames, held + core.state.ledger.jobs + leases)
            if peer in self.links:
                self.links[peer].carry(False, message, frames)
        for gone in {send.peer: None for send in sends if send.peer not in self.links}:
            self._call_scheduler(functools.partial(Scheduler.lost, peer=gone, now=self.sim.now))
        due = core.next_deadline()
        if due is not None and due < self._wake_at:
            self._wake_at = max(due, self.sim.now + 0.0001)
            self.sim.run_at(self._wake_at, lambda: self._tick(core))

    def _tick(self, core: Scheduler) -> None:
        if self.scheduler is core:
            self._wake_at = float("inf")
            self._call_scheduler(lambda core: core.tick(self.sim.now))

    def _check_send(self, peer: bytes, message: Message, frames: Sequence[Frame], held: int) -> None:
        """Check a message before it is sent, and record the batches that workers hold."""
        if isinstance(message, wire.Batch):
            parts = wire.split_frame(frames[0], wire.unpack_u32(message.lengths))
            self.leased.setdefault(peer, {})[message.batch] = [str(part, "utf-8") for part in parts]
        elif isinstance(message, wire.Goodbye) and peer.startswith(b"W"):
            batches = self.leased.pop(peer, {})
            worker = self.sim.worker_of[peer]
            if message.code in (ErrorCode.INTERNAL, ErrorCode.LEASE_EXPIRED):
                worker.blamed = [text for texts in batches.values() for text in texts]
                if worker.hung or self.sim.now < worker.frozen_until or not worker.alive:
                    self.deaths.update(worker.blamed)
        elif isinstance(message, wire.Failures):
            codes = {failure.code for failure in message.failures}
            assert held or not codes & {ErrorCode.OVERLOADED, ErrorCode.QUOTA}, (
                "a broker without open jobs rejects a request"
            )
            grace_over = self.sim.now >= self.last_served + LIMITS.worker_grace_s
            assert grace_over or ErrorCode.NO_WORKER not in codes, (
                "a request fails for lack of a worker within the grace"
            )


class Worker(End):
    """Real session of a worker, and an engine that needs a + b·tokens seconds for a batch."""

    role, decoder = b"W", wire.TO_WORKER

    def __init__(self, sim: World, revision: str) -> None:
        super().__init__(sim)
        draw = sim.random
        self.slots, self.revision = draw.randint(1, 3), revision
        #: Whether the model is unloaded, and the revisions in memory.
        self.unloaded, self.memory = False, {revision}
        hello = wire.WorkerHello(
            1, 1, "", self.uuid, self.number, "host", self.number, "CPU", [], draw.randint(20, 200), 500, self.slots
        )
        self.session = Session(hello, self.slots)
        self.session.announce([self._describe_model()])
        self._a, self._b = draw.uniform(0.001, 0.1), draw.uniform(0.0005, 0.003)
        self._queue: deque[tuple[wire.Batch, list[str]]] = deque()
        self._running = self.hung = False
        self.raise_next = self.hang_next = False
        #: Texts that the worker held when the broker last evicted it.
        self.blamed: list[str] = []
        sim.run_after(0.25, lambda: self.run_when_awake(self._send_heartbeat))

    def _describe_model(self) -> wire.ModelInfo:
        return wire.ModelInfo(MODEL, self.revision, 3, 100, unloaded=self.unloaded)

    def change_model(self, revision: str, *, unloaded: bool = False) -> None:
        """Load a revision, and announce it instead of the present one; or unload the model."""
        self.sim.seen["unloaded" if unloaded else "changed"] += 1
        delay = 0.0 if unloaded else self.sim.random.uniform(0.0, 2.0)
        self.sim.run_after(delay, lambda: self.run_when_awake(lambda: self._announce(revision, unloaded)))

    def _announce(self, revision: str, unloaded: bool) -> None:
        self.revision, self.unloaded = revision, unloaded
        if not unloaded:
            self.memory.add(revision)
        self._send_all(self.session.announce([self._describe_model()]))

    def connected(self) -> None:
        self._send_all([self.session.make_hello(self.sim.now)])

    def handle(self, message: Any, frames: Sequence[Frame]) -> None:
        if isinstance(message, wire.Load):
            self.sim.seen["load"] += 1
            self.change_model(self.revision)
        if isinstance(message, wire.Goodbye) and message.code == ErrorCode.LEASE_EXPIRED:
            self.sim.seen["hung worker exited"] += 1
            self.die()
            return
        batch, replies = self.session.handle(message, self.sim.now)
        assert len(self.session.held) <= self.slots, "a worker holds more batches than its credit allows"
        self._send_all(replies)
        for key in self.session.take_released():
            self.sim.seen["released"] += 1
            self.memory.remove(key.revision)
        if batch:
            assert batch.revision in self.memory, "a worker gets a batch of a model that it has freed"
            parts = wire.split_frame(frames[0], wire.unpack_u32(batch.lengths))
            self._queue.append((batch, [str(part, "utf-8") for part in parts]))
            self._run_next()

    def die(self) -> None:
        """End the process; its supervisor starts another worker later."""
        super().die()
        self.sim.broker.deaths.update(self.blamed)
        self.sim.run_after(self.sim.random.uniform(0.1, 4.0), lambda: self.sim.replace_worker(self))

    def _send_all(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if isinstance(message, wire.WorkerHello) and self.link:
                self.sim.worker_of[self.link.peer] = self
            self.send(message)

    def _send_heartbeat(self) -> None:
        if self.session.is_hung(self.sim.now):
            self.die()
            return
        self._send_all(self.session.due(self.sim.now))
        self.sim.run_after(0.25, lambda: self.run_when_awake(self._send_heartbeat))

    def _run_next(self) -> None:
        if self._running or not self._queue:
            return
        batch, texts = first = min(self._queue, key=lambda item: item[0].lane)
        self._queue.remove(first)
        self._running = True
        seconds = self._a + self._b * sum(map(len, texts))
        if any(POISON in text for text in texts):
            self.sim.seen["poison ran"] += 1
            self.sim.run_after(seconds, lambda: self.run_when_awake(self.die))
        elif self.hang_next:
            self.sim.seen["hang"] += 1
            self.hung = True
        else:
            self.sim.run_after(seconds, lambda: self.run_when_awake(lambda: self._finish_batch(batch, texts)))

    def _finish_batch(self, batch: wire.Batch, texts: list[str]) -> None:
        fails_by_chance = self.raise_next and len(texts) > 1
        is_marked = any(RAISES in text for text in texts)
        if fails_by_chance or is_marked:
            self.sim.seen["marked text raised" if is_marked else "raise"] += 1
            self.raise_next = self.raise_next and not fails_by_chance
            self.send(self.session.make_error(batch, ErrorCode.DEVICE, "the device failed"))
        else:
            tokens = wire.pack_u32(len(text) for text in texts)
            rows = b"".join(vector(text, batch.revision) for text in texts)
            self.send(self.session.make_result(batch, 3, tokens, [], 1), [rows])
        self._running = False
        self._run_next()
