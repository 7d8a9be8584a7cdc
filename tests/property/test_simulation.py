"""Frontends and clients in the simulated system, the faults that befall it, and the judge: every request of a frontend
that lives ends once, with its own vectors in order or with a failure that has a reason, and at the end nobody holds
anything. See `simulation.py`.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Frame, Kind, Lane
from frontend.api.errors import ApiError
from frontend.session.pending import Pending
from frontend.session.session import Session, Step
from tests.property.simulation import LIMITS, MODEL, POISON, RAISES, End, Worker, World, vector

SEEDS = 120 if os.environ.get("CI") else 60
BROKER_GRACE_S = 3.0
DEADLINE_SLACK_S = 2.0
#: What a frontend says by itself, without the broker.
ALONE = "no way to the model"
#: How long a way to a model may take, once nothing is broken.
SETTLED_S = 2.0
#: When faults and requests end, when all must be answered and each frontend asks once more, and when that is answered.
CALM_S, PROBE_S, END_S = 1030.0, 1090.0, 1095.0
FAULTS = ("cut", "cut", "cut", "crash", "freeze", "raise_next", "hang_next", "broker", "frontend")


#: What must have happened over all seeds, lest the test pass by doing nothing.
WANTED = (
    *("cut", "crash", "freeze", "broker", "frontend", "other revision", "messages lost", "sent again", "who"),
    *("poison ran", "marked text raised", "raise", "hang", "hung worker told", "answered", "cancelled"),
    *("DEADLINE", "POISON", "DEVICE", "NO_WORKER", "OVERLOADED", "QUOTA"),
)


class Ask:
    """One client's request, and how it ended."""

    def __init__(self, frontend: "Frontend", texts: list[str], deadline: float) -> None:
        self.frontend, self.texts, self.deadline = frontend, texts, deadline
        self.asked_at = frontend.sim.now
        self.pending: Pending | None = None
        self.ended = ""

    def end(self, how: str) -> None:
        """Once, and no second time."""
        assert not self.ended, f"a request that {self.ended} now {how}"
        self.ended = how
        self.frontend.sim.seen[how] += 1
        self.frontend.finish(self)


class Frontend(End):
    """The real session, and clients that wait as `BrokerClient` lets them."""

    role, decoder = b"F", wire.TO_FRONTEND

    def __init__(self, sim: "Simulation") -> None:
        super().__init__(sim)
        self.judge = sim
        hello = wire.FrontendHello(1, 1, "", self.uuid, "host", self.number)
        self.session = Session(hello, BROKER_GRACE_S, sim.now)
        #: When the model was last known.
        self.last_known = sim.now
        self._asks: dict[int, Ask] = {}
        self._waiting: list[Ask] = []
        self._flush_soon = False
        self._submitted: set[int] = set()
        sim.at(self.session.next_deadline(), self._on_timer)

    def ask(self, ask: Ask) -> None:
        """A client's call."""
        self._waiting.append(ask)
        self._look()

    def _look(self) -> None:
        """Submit what waited for its model to be known, and end what waited for too long."""
        for ask in list(self._waiting):
            try:
                found = self.session.find_model(MODEL, ask.asked_at, self.sim.now)
            except ApiError:
                self.judge.failed(ask, wire.Failure(0, -1, ErrorCode.NO_WORKER, ALONE))
                continue
            # Else it is looked for again after each message and heartbeat.
            if isinstance(found, wire.ModelInfo):
                self._waiting.remove(ask)
                self._add(ask)

    def _add(self, ask: Ask) -> None:
        lane, inputs = self.sim.random.choice(list(Lane)), [text.encode() for text in ask.texts]
        submission = wire.Submission(0, MODEL, lane, "", 0, Kind.TEXT, wire.pack_u32(map(len, inputs)))
        ask.pending = self.session.submit(
            submission, b"".join(inputs), ask.deadline, per_item=False, max_tokens=math.inf
        )
        self._asks[ask.pending.number] = ask
        self._soon()
        self.sim.at(max(self.sim.now, ask.deadline + DEADLINE_SLACK_S), lambda: self.awake(lambda: self._time_out(ask)))

    def _time_out(self, ask: Ask) -> None:
        if not ask.ended:
            self.judge.failed(ask, wire.Failure(0, -1, ErrorCode.DEADLINE, "not answered"))

    def finish(self, ask: Ask) -> None:
        """Nobody waits for it any more."""
        self._waiting = [one for one in self._waiting if one is not ask]
        if ask.pending:
            del self._asks[ask.pending.number]
            self.session.finish(ask.pending)
            self._soon()

    def _soon(self) -> None:
        if self.session.has_outgoing and not self._flush_soon:
            self._flush_soon = True
            self.sim.after(0.0, lambda: self.awake(self._flush))

    def _flush(self) -> None:
        self._flush_soon = False
        self._advance(lambda: self.session.flush(self.sim.now))

    def connected(self) -> None:
        self._advance(self.session.connect)

    def disconnected(self) -> None:
        self._advance(lambda: self.session.disconnect(self.sim.now))

    def handle(self, message: Any, frames: Sequence[Frame]) -> None:
        self._advance(lambda: self.session.handle(message, frames, self.sim.now))

    def _on_timer(self) -> None:
        self.awake(lambda: self._advance(lambda: self.session.due(self.sim.now), alone=True))
        if self.alive:
            self.sim.at(max(self.session.next_deadline(), self.sim.now + 0.001), self._on_timer)

    def _advance(self, call: Callable[[], Step], *, alone: bool = False) -> None:
        """Make a call of the session, and do what it asks for, as `BrokerClient` does.

        `alone`: what fails now, the session fails by itself, without the broker.
        """
        if MODEL in self.session.models:
            self.last_known = self.sim.now
        step = call()
        for message, frames in step.sends:
            for submission in getattr(message, "submissions", []):
                self.sim.seen["sent again"] += submission.request in self._submitted
                self._submitted.add(submission.request)
            self.send(message, frames)
        for pending in step.ended:
            ask = self._asks[pending.number]
            if pending.failure and alone:
                self.judge.failed(ask, msgspec.structs.replace(pending.failure, text=ALONE))
            elif pending.failure:
                self.judge.failed(ask, pending.failure)
            else:
                self.judge.answered(ask, pending)
        self._look()
        self._soon()


class Simulation(World):
    """A run: 30 s of requests and faults, a minute of calm, and one more request from each frontend."""

    def __init__(self, seed: int, *, cuts_only: bool = False) -> None:
        super().__init__(seed)
        self.seed, self.cuts_only = seed, cuts_only
        self.workers = [Worker(self, "r") for _ in range(self.random.randint(1, 4))]
        self.frontends = [Frontend(self) for _ in range(self.random.randint(1, 3))]
        self.asks: list[Ask] = []
        self._pace = self.random.uniform(0.1, 0.6)
        self.after(0.5, self._request)
        self.after(1.0, self._fault)

    def run(self) -> Counter[str]:
        """The counts of what happened; AssertionError tells how to see it again."""
        try:
            self.pass_time(PROBE_S)
            for frontend in self.frontends:
                self._send_ask(frontend, [f"{next(self.numbers)} probe"], PROBE_S + 1000.0)
            self.pass_time(END_S)
            self._check_end()
        except Exception as error:
            option = ", cuts_only=True" if self.cuts_only else ""
            events = "\n".join(f"{when:10.4f} {who} {what} {message}" for when, who, what, message in self.events)
            replay = f"Simulation({self.seed}{option}).run()"
            raise AssertionError(f"{error!r} at {self.now:.4f}; seed {self.seed}: {replay}\n{events}") from error
        return self.seen

    def _request(self) -> None:
        """A client asks a frontend; some are impatient, and some of their texts do harm."""
        if self.now >= CALM_S:
            return
        self.after(self.random.expovariate(1 / self._pace), self._request)
        draw = self.random
        count = draw.choice([1, 1, 2, 8, 40])
        texts = [f"{next(self.numbers)} " + "x" * draw.choice([0, 5, 5, 50]) for _ in range(count)]
        harm = 1.0 if self.cuts_only else draw.random()
        if harm < 0.04:
            texts[draw.randrange(count)] = f"{next(self.numbers)} {RAISES}"
        elif harm < 0.06:
            texts[draw.randrange(count)] = f"{draw.randint(1, 3)} {POISON}"
        patience = draw.choice([0.01, 0.1, 1.0]) if draw.random() < 0.15 else 1000.0
        ask = self._send_ask(draw.choice(self.frontends), texts, self.now + patience)
        if draw.random() < 0.1:
            self.after(draw.uniform(0.0, 1.0), lambda: self._cancel(ask))

    def _send_ask(self, frontend: Frontend, texts: list[str], deadline: float) -> Ask:
        ask = Ask(frontend, texts, deadline)
        self.asks.append(ask)
        frontend.ask(ask)
        return ask

    def _cancel(self, ask: Ask) -> None:
        if not ask.ended and ask.frontend.alive:
            ask.end("cancelled")

    def _fault(self) -> None:
        if self.now >= CALM_S:
            for worker in self.workers:
                worker.raise_next = worker.hang_next = False
            return
        self.after(self.random.expovariate(1.5), self._fault)
        kind = "cut" if self.cuts_only else self.random.choice(FAULTS)
        worker = self.random.choice(self.workers)
        ends: list[End] = [one for one in (*self.workers, *self.frontends) if one.link and one.link.open]
        if kind == "cut" and ends:
            self.random.choice(ends).link.cut()  # type: ignore[union-attr]
        elif kind == "crash" and worker.alive:
            worker.die()
        elif kind == "freeze" and worker.alive:
            worker.frozen_until = self.now + self.random.uniform(0.5, 8.0)
        elif kind in ("raise_next", "hang_next"):
            setattr(worker, kind, True)
            return
        elif kind == "broker" and self.broker.scheduler:
            self.broker.crash()
            self.after(self.random.uniform(0.1, 5.0), self.broker.start)
        elif kind == "frontend":
            index = self.random.randrange(len(self.frontends))
            self.frontends[index].die()
            self.frontends[index] = Frontend(self)
        self.seen[kind] += 1

    def replace_worker(self, dead: Worker) -> None:
        other = self.now < CALM_S and self.random.random() < 0.15
        self.seen["other revision"] += other
        self.workers[self.workers.index(dead)] = Worker(self, "s" if other else "r")

    def answered(self, ask: Ask, pending: Pending) -> None:
        """Are the rows the right ones?"""
        rows = [bytes(row or b"") for row in pending.rows]
        assert rows == [vector(text, pending.revision) for text in ask.texts], "wrong vectors"
        ask.end("answered")

    def failed(self, ask: Ask, failure: wire.Failure) -> None:
        """Is there a reason for it? See `Broker._watch` for those that only the broker can have."""
        texts = ask.texts[failure.position :][:1] if failure.position >= 0 else ask.texts
        match failure.code:
            case ErrorCode.DEADLINE:
                holds = self.now >= ask.deadline - 0.001
            case ErrorCode.POISON:
                poison = any(POISON in text for text in texts)
                self.seen["innocent called poison"] += not poison
                holds = poison or max(self.broker.deaths[text] for text in texts) >= LIMITS.max_crashes
            case ErrorCode.DEVICE:
                holds = any(RAISES in text for text in texts)
            case ErrorCode.NO_WORKER if "was replaced" in failure.text:
                holds = self.seen["other revision"] > 0
            case ErrorCode.NO_WORKER if failure.text == ALONE:
                holds = self._had_no_worker(ask.frontend)
            case code:
                # Those of the broker are judged where they leave it.
                holds = code in (ErrorCode.OVERLOADED, ErrorCode.QUOTA, ErrorCode.NO_WORKER)
        assert holds, f"no reason for {failure} of {texts}: {self._story(ask, failure)}"
        ask.end(failure.code.name)

    def _story(self, ask: Ask, failure: wire.Failure) -> list[str]:
        assert self.broker.scheduler
        return self.broker.scheduler.describe_job(ask.frontend.uuid, failure.request, max(0, failure.position))

    def _had_no_worker(self, frontend: Frontend) -> bool:
        """Whether a frontend that does not know the model has not known it for the grace, and could not have."""
        link, core = frontend.link, self.broker
        well_since = max(link.since, core.known_since) if link and link.open and core.scheduler else self.now
        return self.now >= frontend.last_known + BROKER_GRACE_S and self.now < well_since + SETTLED_S

    def _check_end(self) -> None:
        """Everything is answered, and nobody holds anything."""
        never = [ask.texts for ask in self.asks if ask.frontend.alive and not ask.ended]
        assert not never, f"never answered: {never}"
        assert {ask.ended for ask in self.asks[-len(self.frontends) :]} == {"answered"}, "a request fails in calm"
        assert self.broker.scheduler
        core = self.broker.scheduler.state
        assert (core.ledger.jobs, core.ledger.tokens, core.ledger.bytes) == (0, 0, 0), "the ledger is not empty"
        assert not any(frontend.requests for frontend in core.ledger.by_uuid.values()), "a request is still open"
        assert len(core.ledger.by_uuid) == len(self.frontends), "a frontend is missing, or one too many is there"
        serving = {one.uuid: one for one in self.workers if one.session.welcomed}
        assert {one.uuid for one in core.pool.workers.values()} == set(serving), "not everybody is back"
        assert len({one.revision for one in serving.values()}) == 1, "two revisions are served"
        for one in core.pool.workers.values():
            assert one.available == serving[one.uuid].slots, "credit is missing"
        assert not any(one.session.held for one in self.workers), "a worker still holds a batch"


@pytest.mark.timeout(600)
def test_with_every_fault_each_request_ends_once_and_rightly() -> None:
    """And each of the faults did happen."""
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        seen.update(Simulation(seed).run())
    assert not [name for name in WANTED if not seen[name]], f"never happened in {dict(seen)}"


@pytest.mark.timeout(600)
def test_cut_connections_make_no_input_poison() -> None:
    """A connection that ends says nothing about what ran meanwhile."""
    for seed in range(SEEDS // 5):
        assert not Simulation(seed, cuts_only=True).run()["innocent called poison"]
