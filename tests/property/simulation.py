"""The whole system in memory: one broker core, workers and frontends, a virtual clock, and faults drawn from a seed.

Real are the scheduler, the sessions of workers and frontends, and the codec. Played are the sockets and the engine.
Nothing sleeps: an event heap moves the clock. Here are the clock, the connections, the broker and the workers; the
frontends, the faults and the judge are in `test_simulation.py`, whose `Simulation(seed).run()` replays a run exactly.
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
    """The vector of a text: its number, its length, and who made it."""
    return struct.pack("<3f", int(text.split()[0]), len(text), ord(revision))


class World:
    """The clock, the chance, and who there is."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.numbers = itertools.count(1)
        #: What happened, by name.
        self.seen: Counter[str] = Counter()
        self.events: deque[tuple[float, str, str, object]] = deque(maxlen=50)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        #: Which worker said hello over each connection.
        self.worker_of: dict[bytes, Worker] = {}
        self.broker = Broker(self)

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do it at that time; of two at one time the one that was said first goes first."""
        heapq.heappush(self._heap, (when, next(self.numbers), action))

    def after(self, delay: float, action: Callable[[], None]) -> None:
        """Do it in so many seconds."""
        self.at(self.now + delay, action)

    def pass_time(self, until: float) -> None:
        """Do all that is to be done until then."""
        while self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = until

    def sight(self) -> float:
        """How long the end of a connection stays unseen."""
        return self.random.uniform(0.0, 0.02 if self.random.random() < 0.7 else 3.0)

    def note(self, who: "End", what: str, message: object) -> None:
        """For whoever must find out what went wrong."""
        self.events.append((self.now, f"{type(who).__name__} {who.number}", what, message))

    def replace_worker(self, dead: "Worker") -> None:
        """A supervisor's work."""


class Link:
    """One connection: keeps the order of each direction, and loses what is on its way when it is cut."""

    def __init__(self, sim: World, end: "End", peer: bytes) -> None:
        self.sim, self.end, self.peer = sim, end, peer
        self.open, self.since = True, sim.now
        self._arrival = {True: 0.0, False: 0.0}

    def carry(self, up: bool, message: Message, frames: Sequence[Frame]) -> None:
        """Send to the broker, or from it."""
        parts, draw = [bytes(part) for part in wire.encode(message, frames)], self.sim.random
        self._arrival[up] = max(self._arrival[up], self.sim.now + draw.choice([0.0002, 0.001, draw.uniform(0.0, 0.1)]))
        self.sim.at(self._arrival[up], lambda: self._arrive(up, parts))

    def _arrive(self, up: bool, parts: list[bytes]) -> None:
        if not self.open:
            self.sim.seen["messages lost"] += 1
        elif up:
            self.sim.broker.receive(self, parts)
        else:
            self.end.awake(lambda: self.end.receive(self, parts))

    def cut(self) -> None:
        """Both ends see it, each in its time; now and then that is long."""
        if self.open:
            self.open = False
            self.sim.after(self.sim.sight(), lambda: self.sim.broker.see_end(self))
            self.sim.after(self.sim.sight(), lambda: self.end.see_end(self))


class End:
    """A process that keeps a connection to the broker."""

    role = b""
    decoder: Any = None

    def __init__(self, sim: World) -> None:
        self.sim = sim
        self.number = next(sim.numbers)
        self.uuid = self.number.to_bytes(16, "big")
        self.alive = True
        self.frozen_until = 0.0
        self.link: Link | None = None
        self._greeted = False
        sim.after(sim.random.uniform(0.0, 0.3), self.connect)

    def connect(self) -> None:
        """Until the broker is there."""
        self.link = self.sim.broker.accept(self) if self.alive else None
        if self.link:
            self._greeted = False
            self.awake(lambda: None)
        elif self.alive:
            self.sim.after(self.sim.random.uniform(0.05, 0.5), self.connect)

    def see_end(self, link: Link) -> None:
        """The connection has ended: make another."""
        if self.alive and self.link is link:
            self.link = None
            self.awake(self.disconnected)
            self.sim.after(self.sim.random.uniform(0.05, 0.5), self.connect)

    def awake(self, action: Callable[[], None]) -> None:
        """Do it now, or when the process is no longer frozen; never when it is dead. A new connection comes first."""
        if self.alive and self.sim.now < self.frozen_until:
            self.sim.at(self.frozen_until, lambda: self.awake(action))
        elif self.alive:
            if self.link and not self._greeted:
                self._greeted = True
                self.connected()
            action()

    def send(self, message: Message, frames: Sequence[Frame] = ()) -> None:
        """Like a DEALER with IMMEDIATE: without a connection it is not sent."""
        if self.link:
            self.sim.note(self, "says", message)
            self.link.carry(True, message, frames)

    def receive(self, link: Link, parts: list[bytes]) -> None:
        """What had come over an old connection went with it."""
        if link is self.link:
            decoded: tuple[Any, list[Frame]] = wire.decode(self.decoder, parts)
            self.sim.note(self, "hears", decoded[0])
            self.sim.seen["who"] += isinstance(decoded[0], wire.Who)
            self.handle(*decoded)

    def die(self) -> None:
        """Without a word."""
        self.alive = False
        if self.link:
            self.link.cut()

    def connected(self) -> None:
        """A connection stands."""

    def disconnected(self) -> None:
        """It has ended."""

    def handle(self, message: Any, frames: Sequence[Frame]) -> None:
        """A message has come."""


class Broker:
    """The scheduler and its shell; it can be down."""

    def __init__(self, sim: World) -> None:
        self.sim = sim
        self.links: dict[bytes, Link] = {}
        #: What each worker's connection was sent and has not answered.
        self.leased: dict[bytes, dict[int, list[str]]] = {}
        self.start()

    def start(self) -> None:
        """Another life, which knows nothing."""
        self.scheduler: Scheduler | None = Scheduler(next(self.sim.numbers), LIMITS)
        self._wake_at = float("inf")
        #: How often each text was in a batch of a worker that really died, froze or hung.
        self.deaths: Counter[str] = Counter()
        #: When it last had a worker, and since when it knows the model.
        self.last_served, self.known_since = self.sim.now, float("inf")

    def crash(self) -> None:
        """All connections end."""
        self.scheduler = None
        for link in self.links.values():
            link.cut()
        self.links, self.leased = {}, {}

    def accept(self, end: End) -> Link | None:
        """A new connection, if anybody listens."""
        link = Link(self.sim, end, end.role + b"%d" % next(self.sim.numbers))
        return self.links.setdefault(link.peer, link) if self.scheduler else None

    def receive(self, link: Link, parts: list[bytes]) -> None:
        """A message has come."""
        decoder: Any = wire.FROM_FRONTEND if link.end.role == b"F" else wire.FROM_WORKER
        message, frames = wire.decode(decoder, parts)
        if isinstance(message, wire.BatchResult | wire.BatchError):
            self.leased.get(link.peer, {}).pop(message.batch, None)
        open_jobs = self.scheduler.open_jobs if self.scheduler else 0
        held = open_jobs + len(getattr(message, "submissions", [0])) - 1
        self._do(lambda core: core.handle(link.peer, message, self.sim.now, frames), held)

    def see_end(self, link: Link) -> None:
        """As the shell does it: a send to the peer fails."""
        if self.links.pop(link.peer, None):
            self._do(lambda core: core.lost(link.peer, self.sim.now))

    def _do(self, door: Callable[[Scheduler], list[Send]], held: int = 1) -> None:
        """Go through a door, check what must hold, send what comes out, and set the alarm."""
        core = self.scheduler
        assert core
        sends = door(core)
        core.check_invariants()
        models = outgoing.build_models(core.state).models
        self.known_since = min(self.known_since, self.sim.now) if models else float("inf")
        if any(model.workers for model in models):
            self.last_served = self.sim.now
        for peer, message, frames in sends:
            # A worker may be busy with what nobody waits for any more.
            leases = sum(len(worker.leases) for worker in core.state.pool.workers.values())
            self._watch(peer, message, frames, held + core.state.ledger.jobs + leases)
            if peer in self.links:
                self.links[peer].carry(False, message, frames)
        for gone in {send.peer: None for send in sends if send.peer not in self.links}:
            self._do(functools.partial(Scheduler.lost, peer=gone, now=self.sim.now))
        due = core.next_deadline()
        if due is not None and due < self._wake_at:
            self._wake_at = max(due, self.sim.now + 0.0001)
            self.sim.at(self._wake_at, lambda: self._tick(core))

    def _tick(self, core: Scheduler) -> None:
        if self.scheduler is core:
            self._wake_at = float("inf")
            self._do(lambda core: core.tick(self.sim.now))

    def _watch(self, peer: bytes, message: Message, frames: Sequence[Frame], held: int) -> None:
        """Keep what the judge needs to know."""
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
            codes = {one.code for one in message.failures if "was replaced" not in one.text}
            assert held or not codes & {ErrorCode.OVERLOADED, ErrorCode.QUOTA}, "an empty broker refuses a request"
            alone = self.sim.now >= self.last_served + LIMITS.worker_grace_s
            assert alone or ErrorCode.NO_WORKER not in codes, "the grace for a worker was not over"


class Worker(End):
    """A session, and an engine that takes a + b·tokens seconds."""

    role, decoder = b"W", wire.TO_WORKER

    def __init__(self, sim: World, revision: str) -> None:
        super().__init__(sim)
        draw = sim.random
        self.slots, self.revision = draw.randint(1, 3), revision
        info = wire.ModelInfo(MODEL, revision, 3, 100)
        hello = wire.WorkerHello(
            1, 1, "", self.uuid, self.number, "host", self.number, "CPU", [info], draw.randint(20, 200), 500, self.slots
        )
        self.session = Session(hello, self.slots)
        self._a, self._b = draw.uniform(0.001, 0.1), draw.uniform(0.0005, 0.003)
        self._queue: deque[tuple[wire.Batch, list[str]]] = deque()
        self._running = self.hung = False
        self.raise_next = self.hang_next = False
        #: The texts it held when the broker last gave it up.
        self.blamed: list[str] = []
        sim.after(0.25, lambda: self.awake(self._beat))

    def connected(self) -> None:
        self._say([self.session.make_hello(self.sim.now)])

    def handle(self, message: Any, frames: Sequence[Frame]) -> None:
        if isinstance(message, wire.Goodbye) and message.code == ErrorCode.LEASE_EXPIRED:
            self.sim.seen["hung worker told"] += 1
            self.die()
            return
        batch, replies = self.session.handle(message, self.sim.now)
        assert len(self.session.held) <= self.slots, "a worker holds more than it can"
        self._say(replies)
        if batch:
            parts = wire.split_frame(frames[0], wire.unpack_u32(batch.lengths))
            self._queue.append((batch, [str(part, "utf-8") for part in parts]))
            self._run()

    def die(self) -> None:
        """Its supervisor starts another one, now and then with other weights."""
        super().die()
        self.sim.broker.deaths.update(self.blamed)
        self.sim.after(self.sim.random.uniform(0.1, 4.0), lambda: self.sim.replace_worker(self))

    def _say(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if isinstance(message, wire.WorkerHello) and self.link:
                self.sim.worker_of[self.link.peer] = self
            self.send(message)

    def _beat(self) -> None:
        if self.session.is_hung(self.sim.now):
            self.die()
            return
        self._say(self.session.due(self.sim.now))
        self.sim.after(0.25, lambda: self.awake(self._beat))

    def _run(self) -> None:
        if self._running or not self._queue:
            return
        batch, texts = first = min(self._queue, key=lambda one: one[0].lane)
        self._queue.remove(first)
        self._running = True
        seconds = self._a + self._b * sum(map(len, texts))
        if any(POISON in text for text in texts):
            self.sim.seen["poison ran"] += 1
            self.sim.after(seconds, lambda: self.awake(self.die))
        elif self.hang_next:
            self.sim.seen["hang"] += 1
            self.hung = True
        else:
            self.sim.after(seconds, lambda: self.awake(lambda: self._finish(batch, texts)))

    def _finish(self, batch: wire.Batch, texts: list[str]) -> None:
        by_chance = self.raise_next and len(texts) > 1
        marked = any(RAISES in text for text in texts)
        if by_chance or marked:
            self.sim.seen["marked text raised" if marked else "raise"] += 1
            self.raise_next = self.raise_next and not by_chance
            self.send(self.session.make_error(batch, ErrorCode.DEVICE, "the device failed"))
        else:
            tokens = wire.pack_u32(len(text) for text in texts)
            rows = b"".join(vector(text, self.revision) for text in texts)
            self.send(self.session.make_result(batch, 3, tokens, [], 1), [rows])
        self._running = False
        self._run()
