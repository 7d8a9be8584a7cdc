"""Frontends and clients in the simulated system, the faults that befall it, and the judge: every request of a frontend
that lives ends once, with its own vectors in order or with a failure that has a reason, and at the end nobody holds
anything. See `simulation.py`.
"""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from broker import protocol as wire
from broker.errors import ErrorCode
from broker.protocol import Frame, Kind, Lane
from frontend.pending import REPLACED, Pending, Table
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
        self.known_by = frontend.sim.now + BROKER_GRACE_S
        self.pending: Pending | None = None
        self.ended = ""

    def end(self, how: str) -> None:
        """Once, and no second time."""
        assert not self.ended, f"a request that {self.ended} now {how}"
        self.ended = how
        self.frontend.sim.seen[how] += 1
        self.frontend.finish(self)


class Frontend(End):
    """The logic of `frontend/broker_client.py` around the real table."""

    role, decoder = b"F", wire.TO_FRONTEND

    def __init__(self, sim: "Simulation") -> None:
        super().__init__(sim)
        self.judge = sim
        self.models: set[str] = set()
        self._table = Table()
        self._asks: dict[int, Ask] = {}
        self._waiting: list[Ask] = []
        self._outbox: list[Pending] = []
        self._cancelled: list[int] = []
        self._epoch: int | None = None
        self._heartbeat_s, self._liveness_s = 0.25, 3.5
        self._last_heard = self._welcomed_at = self.last_known = sim.now
        self._flush_soon = False
        sim.after(self._heartbeat_s, self._on_timer)

    def ask(self, ask: Ask) -> None:
        """A client's call."""
        self._waiting.append(ask)
        self._look()

    def _look(self) -> None:
        """Submit what waited for its model to be known, and end what waited for too long."""
        for ask in list(self._waiting):
            until = self._welcomed_at + BROKER_GRACE_S if self._epoch is not None else ask.known_by
            if MODEL in self.models:
                self._waiting.remove(ask)
                self._add(ask)
            elif self.sim.now >= until:
                self.judge.failed(ask, wire.Failure(0, -1, ErrorCode.NO_WORKER, ALONE))

    def _add(self, ask: Ask) -> None:
        lane, inputs = self.sim.random.choice(list(Lane)), [text.encode() for text in ask.texts]
        submission = wire.Submission(0, MODEL, lane, "", 0, Kind.TEXT, wire.pack_u32(map(len, inputs)))
        ask.pending = self._table.add(submission, b"".join(inputs), ask.deadline)
        self._asks[ask.pending.number] = ask
        self._outbox.append(ask.pending)
        self._soon()
        self.sim.at(max(self.sim.now, ask.deadline + DEADLINE_SLACK_S), lambda: self.awake(lambda: self._time_out(ask)))

    def _time_out(self, ask: Ask) -> None:
        if not ask.ended:
            self.judge.failed(ask, wire.Failure(0, -1, ErrorCode.DEADLINE, "not answered"))

    def finish(self, ask: Ask) -> None:
        """Nobody waits for it any more."""
        self._waiting = [one for one in self._waiting if one is not ask]
        if (pending := ask.pending) is None:
            return
        self._table.remove(pending)
        del self._asks[pending.number]
        if pending.missing and not pending.told:
            self._cancelled.append(pending.number)
            self._soon()

    def _soon(self) -> None:
        if not self._flush_soon:
            self._flush_soon = True
            self.sim.after(0.0, lambda: self.awake(self._flush))

    def _flush(self) -> None:
        self._flush_soon = False
        outbox, self._outbox = [one for one in self._outbox if one.number in self._asks and not one.ended], []
        cancelled, self._cancelled = self._cancelled, []
        if outbox and self._epoch is not None:
            self.send(wire.Submit([self._with_budget(one) for one in outbox]), [one.frame for one in outbox])
        if cancelled and self._epoch is not None:
            self.send(wire.Cancel(wire.pack_u64(cancelled)))

    def _with_budget(self, pending: Pending) -> wire.Submission:
        one, budget_ms = pending.submission, max(0, int((pending.deadline - self.sim.now) * 1000))
        return wire.Submission(one.request, one.model, one.lane, one.client, budget_ms, one.kind, one.lengths)

    def _wake(self, ended: Sequence[Pending]) -> None:
        for pending in ended:
            if pending.failure:
                self.judge.failed(self._asks[pending.number], pending.failure)
            else:
                self.judge.answered(self._asks[pending.number], pending)

    def connected(self) -> None:
        self.send(wire.FrontendHello(1, 1, "", self.uuid, self.number, "host", self.number))

    def disconnected(self) -> None:
        if self._epoch is not None:
            self._last_heard = self.sim.now
        self._epoch = None
        self._forget_models()
        self._look()

    def _forget_models(self) -> None:
        if MODEL in self.models:
            self.last_known = self.sim.now
        self.models = set()

    def _on_timer(self) -> None:
        now = self.sim.now
        if self._epoch is not None and now >= self._last_heard + self._liveness_s:
            self.disconnected()
        if self._epoch is not None:
            self.send(wire.FrontendHeartbeat())
        else:
            self.connected()
        away_since = self._last_heard if self._epoch is None else self._welcomed_at
        if now >= away_since + BROKER_GRACE_S:
            gone = [one for one in self._table.unanswered() if one.model not in self.models]
            self._wake(self._table.failed(wire.Failure(one.number, -1, ErrorCode.NO_WORKER, ALONE) for one in gone))
        self._look()
        self.sim.after(self._heartbeat_s, lambda: self.awake(self._on_timer))

    def handle(self, message: Any, frames: Sequence[Frame]) -> None:
        self._last_heard = self.sim.now
        match message:
            case wire.Answers():
                self._wake(self._table.answered(message, frames[0]))
            case wire.Failures():
                self._wake(self._table.failed(message.failures))
            case wire.Models():
                self._on_models(message)
            case wire.Welcome():
                self._epoch, self._welcomed_at = message.epoch, self.sim.now
                self._forget_models()
                self._heartbeat_s, self._liveness_s = message.heartbeat_ms / 1000, message.liveness_ms / 1000
            case wire.Who():
                self.disconnected()
                self.connected()
            case wire.Goodbye():
                self.disconnected()

    def _on_models(self, message: wire.Models) -> None:
        before, self.models = self.models, {model.name for model in message.models}
        again = [one for one in self._table.unanswered() if one.model in self.models - before]
        self.sim.seen["sent again"] += len(again)
        self._outbox.extend(again)
        self._soon()
        self._look()


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
            case ErrorCode.NO_WORKER if failure.text == REPLACED or "was replaced" in failure.text:
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
        return self.broker.scheduler.story(ask.frontend.uuid, failure.request, max(0, failure.position))

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
        core = self.broker.scheduler
        assert core
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
