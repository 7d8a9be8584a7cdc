"""Frontends, clients and faults of the simulated system, and the checks of every run; see `simulation.py`.

Each request of a frontend that lives ends once: with its own vectors in order, or with a failure that has a cause. At
the end no process holds a request, a job or a batch.
"""

import functools
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
#: Text that marks failures which a frontend reports without the broker.
ALONE = "no connection to the model"
#: Seconds within which a frontend must know the model once no fault is left.
SETTLED_S = 2.0
#: When faults and requests stop, when each frontend sends one more request, and when that request must be answered.
CALM_S, PROBE_S, END_S = 1030.0, 1090.0, 1095.0
FAULTS = ("cut", "cut", "cut", "crash", "freeze", "raise_next", "hang_next", "broker", "frontend")

#: Events that must occur at least once over all seeds; without them the test would show too little.
WANTED = (
    *("cut", "crash", "freeze", "broker", "frontend", "other revision", "messages lost", "resent", "who"),
    *("poison ran", "marked text raised", "raise", "hang", "hung worker exited", "answered", "cancelled"),
    *("DEADLINE", "POISON", "DEVICE", "NO_WORKER", "OVERLOADED", "QUOTA"),
    *("changed", "unloaded", "load", "released", "started again"),
)


class ClientRequest:
    """Request of one client, and how it ended."""

    def __init__(self, frontend: "Frontend", texts: list[str], deadline: float) -> None:
        self.frontend, self.texts, self.deadline = frontend, texts, deadline
        self.sent_at = frontend.sim.now
        self.pending: Pending | None = None
        self.ended = ""

    def end(self, how: str) -> None:
        """Record how the request ended, and check that it has not ended before."""
        assert not self.ended, f"a request ended twice: {self.ended}, then {how}"
        self.ended = how
        self.frontend.sim.seen[how] += 1
        self.frontend.finish(self)


class Frontend(End):
    """Real session of a frontend, and its clients, which wait for the model as `BrokerClient` lets them."""

    role, decoder = b"F", wire.TO_FRONTEND

    def __init__(self, sim: "Simulation") -> None:
        super().__init__(sim)
        self.judge = sim
        hello = wire.FrontendHello(1, 1, "", self.uuid, "host", self.number)
        self.session = Session(hello, BROKER_GRACE_S, sim.now)
        #: When the model was last known.
        self.last_known = sim.now
        self._requests: dict[int, ClientRequest] = {}
        self._waiting: list[ClientRequest] = []
        self._flush_scheduled = False
        self._submitted: set[int] = set()
        sim.run_at(self.session.next_deadline(), self._on_timer)

    def accept(self, request: ClientRequest) -> None:
        """Accept a request from a client."""
        self._waiting.append(request)
        self._submit_waiting()

    def _submit_waiting(self) -> None:
        """Submit the requests for known models, and fail the requests that have waited too long."""
        for request in list(self._waiting):
            try:
                model = self.session.find_model(MODEL, request.sent_at, self.sim.now)
            except ApiError:
                self.judge.failed(request, wire.Failure(0, -1, ErrorCode.NO_WORKER, ALONE))
                continue
            # Otherwise try again after the next message or heartbeat.
            if isinstance(model, wire.ModelInfo):
                self._waiting.remove(request)
                self._submit(request)

    def _submit(self, request: ClientRequest) -> None:
        lane, inputs = self.sim.random.choice(list(Lane)), [text.encode() for text in request.texts]
        submission = wire.Submission(0, MODEL, lane, "", 0, Kind.TEXT, wire.pack_u32(map(len, inputs)))
        request.pending = self.session.submit(
            submission, b"".join(inputs), request.deadline, per_item=False, max_tokens=math.inf
        )
        self._requests[request.pending.number] = request
        self._schedule_flush()
        self.sim.run_at(
            max(self.sim.now, request.deadline + DEADLINE_SLACK_S),
            lambda: self.run_when_awake(lambda: self._time_out(request)),
        )

    def _time_out(self, request: ClientRequest) -> None:
        if not request.ended:
            self.judge.failed(request, wire.Failure(0, -1, ErrorCode.DEADLINE, "not answered"))

    def finish(self, request: ClientRequest) -> None:
        """Forget a request that has ended."""
        self._waiting = [other for other in self._waiting if other is not request]
        if request.pending:
            del self._requests[request.pending.number]
            self.session.finish(request.pending)
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        if self.session.has_outgoing and not self._flush_scheduled:
            self._flush_scheduled = True
            self.sim.run_after(0.0, lambda: self.run_when_awake(self._flush))

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._call_session(lambda: self.session.flush(self.sim.now))

    def connected(self) -> None:
        self._call_session(self.session.connect)

    def disconnected(self) -> None:
        self._call_session(lambda: self.session.disconnect(self.sim.now))

    def handle(self, message: Any, frames: Sequence[Frame]) -> None:
        codes = [failure.code for failure in getattr(message, "failures", [])]
        self.sim.seen["started again"] += codes.count(ErrorCode.REPLACED)
        self._call_session(lambda: self.session.handle(message, frames, self.sim.now))

    def _on_timer(self) -> None:
        self.run_when_awake(lambda: self._call_session(lambda: self.session.due(self.sim.now), alone=True))
        if self.alive:
            self.sim.run_at(max(self.session.next_deadline(), self.sim.now + 0.001), self._on_timer)

    def _call_session(self, call: Callable[[], Step], *, alone: bool = False) -> None:
        """Call the session, and carry out the returned step as `BrokerClient` does.

        `alone`: the session decides failures in this call without the broker.
        """
        if MODEL in self.session.models:
            self.last_known = self.sim.now
        step = call()
        for message, frames in step.sends:
            for submission in getattr(message, "submissions", []):
                self.sim.seen["resent"] += submission.request in self._submitted
                self._submitted.add(submission.request)
            self.send(message, frames)
        for pending in step.ended:
            request = self._requests[pending.number]
            if pending.failure and alone:
                self.judge.failed(request, msgspec.structs.replace(pending.failure, text=ALONE))
            elif pending.failure:
                self.judge.failed(request, pending.failure)
            else:
                self.judge.answered(request, pending)
        self._submit_waiting()
        self._schedule_flush()


class Simulation(World):
    """Run of 30 s with requests and faults, a minute of calm, and one more request from each frontend."""

    def __init__(self, seed: int, *, cuts_only: bool = False) -> None:
        super().__init__(seed)
        self.seed, self.cuts_only = seed, cuts_only
        self.workers = [Worker(self, "r") for _ in range(self.random.randint(1, 4))]
        self.frontends = [Frontend(self) for _ in range(self.random.randint(1, 3))]
        self.requests: list[ClientRequest] = []
        self._pace = self.random.uniform(0.1, 0.6)
        self.run_after(0.5, self._send_random)
        self.run_after(1.0, self._cause_fault)
        #: Revision in the configuration of all workers.
        self.wanted = "r"
        if not cuts_only:
            self.run_after(self.random.uniform(1.0, 10.0), self._change_models)

    def run(self) -> Counter[str]:
        """Return the number of events by kind. Raise `AssertionError` with the call that replays a failed run."""
        try:
            self.pass_time(PROBE_S)
            for frontend in self.frontends:
                self._send_request(frontend, [f"{next(self.numbers)} probe"], PROBE_S + 1000.0)
            self.pass_time(END_S)
            self._check_end()
        except Exception as error:
            option = ", cuts_only=True" if self.cuts_only else ""
            events = "\n".join(f"{when:10.4f} {who} {what} {message}" for when, who, what, message in self.events)
            replay = f"Simulation({self.seed}{option}).run()"
            raise AssertionError(f"{error!r} at {self.now:.4f}; seed {self.seed}: {replay}\n{events}") from error
        return self.seen

    def _send_random(self) -> None:
        """Send a request of a client. Some clients have short deadlines, and some texts crash workers or fail."""
        if self.now >= CALM_S:
            return
        self.run_after(self.random.expovariate(1 / self._pace), self._send_random)
        draw = self.random
        count = draw.choice([1, 1, 2, 8, 40])
        texts = [f"{next(self.numbers)} " + "x" * draw.choice([0, 5, 5, 50]) for _ in range(count)]
        harm = 1.0 if self.cuts_only else draw.random()
        if harm < 0.04:
            texts[draw.randrange(count)] = f"{next(self.numbers)} {RAISES}"
        elif harm < 0.06:
            texts[draw.randrange(count)] = f"{draw.randint(1, 3)} {POISON}"
        patience = draw.choice([0.01, 0.1, 1.0]) if draw.random() < 0.15 else 1000.0
        request = self._send_request(draw.choice(self.frontends), texts, self.now + patience)
        if draw.random() < 0.1:
            self.run_after(draw.uniform(0.0, 1.0), lambda: self._cancel(request))

    def _send_request(self, frontend: Frontend, texts: list[str], deadline: float) -> ClientRequest:
        request = ClientRequest(frontend, texts, deadline)
        self.requests.append(request)
        frontend.accept(request)
        return request

    def _cancel(self, request: ClientRequest) -> None:
        if not request.ended and request.frontend.alive:
            request.end("cancelled")

    def _cause_fault(self) -> None:
        if self.now >= CALM_S:
            for worker in self.workers:
                worker.raise_next = worker.hang_next = False
            return
        self.run_after(self.random.expovariate(1.5), self._cause_fault)
        kind = "cut" if self.cuts_only else self.random.choice(FAULTS)
        worker = self.random.choice(self.workers)
        ends: list[End] = [end for end in (*self.workers, *self.frontends) if end.link and end.link.open]
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
            self.run_after(self.random.uniform(0.1, 5.0), self.broker.start)
        elif kind == "frontend":
            index = self.random.randrange(len(self.frontends))
            self.frontends[index].die()
            self.frontends[index] = Frontend(self)
        self.seen[kind] += 1

    def _change_models(self) -> None:
        """Change the configuration, or unload the model of a worker. Each worker notices the change at its own time."""
        if self.now >= CALM_S:
            return
        self.run_after(self.random.expovariate(0.3), self._change_models)
        if self.random.random() < 0.5:
            worker = self.random.choice(self.workers)
            worker.change_model(worker.revision, unloaded=True)
            return
        self.wanted = self.random.choice([self.wanted, chr(ord(self.wanted) + 2), "r"])
        for worker in self.workers:
            self.run_after(
                self.random.uniform(0.0, 2.0), functools.partial(Worker.change_model, worker, revision=self.wanted)
            )

    def replace_worker(self, dead: Worker) -> None:
        other = self.now < CALM_S and self.random.random() < 0.15
        self.seen["other revision"] += other
        self.workers[self.workers.index(dead)] = Worker(self, "s" if other else self.wanted)

    def answered(self, request: ClientRequest, pending: Pending) -> None:
        """Check that an answer has the vectors of the request."""
        rows = [bytes(row or b"") for row in pending.rows]
        assert rows == [vector(text, pending.revision) for text in request.texts], "wrong vectors"
        request.end("answered")

    def failed(self, request: ClientRequest, failure: wire.Failure) -> None:
        """Check that a failure has a cause. `Broker._check_send` checks causes that only the broker knows."""
        texts = request.texts[failure.position :][:1] if failure.position >= 0 else request.texts
        match failure.code:
            case ErrorCode.DEADLINE:
                has_cause = self.now >= request.deadline - 0.001
            case ErrorCode.POISON:
                is_poison = any(POISON in text for text in texts)
                self.seen["false poison"] += not is_poison
                has_cause = is_poison or max(self.broker.deaths[text] for text in texts) >= LIMITS.max_crashes
            case ErrorCode.DEVICE:
                has_cause = any(RAISES in text for text in texts)
            case ErrorCode.NO_WORKER if failure.text == ALONE:
                has_cause = self._had_no_worker(request.frontend)
            case code:
                # Failures from the broker are checked when they are sent.
                has_cause = code in (ErrorCode.OVERLOADED, ErrorCode.QUOTA, ErrorCode.NO_WORKER)
        assert has_cause, f"no cause for {failure} of {texts}: {self._describe_job(request, failure)}"
        request.end(failure.code.name)

    def _describe_job(self, request: ClientRequest, failure: wire.Failure) -> list[str]:
        assert self.broker.scheduler
        return self.broker.scheduler.describe_job(request.frontend.uuid, failure.request, max(0, failure.position))

    def _had_no_worker(self, frontend: Frontend) -> bool:
        """Return whether a frontend has not known the model for the grace, nor been connected long enough to."""
        link, core = frontend.link, self.broker
        well_since = max(link.since, core.known_since) if link and link.open and core.scheduler else self.now
        return self.now >= frontend.last_known + BROKER_GRACE_S and self.now < well_since + SETTLED_S

    def _check_end(self) -> None:
        """Check that every request has ended, and that no process holds a job or a batch."""
        unanswered = [request.texts for request in self.requests if request.frontend.alive and not request.ended]
        assert not unanswered, f"never answered: {unanswered}"
        assert {request.ended for request in self.requests[-len(self.frontends) :]} == {"answered"}, (
            "a request fails without a fault"
        )
        assert self.broker.scheduler
        core = self.broker.scheduler.state
        assert (core.ledger.jobs, core.ledger.tokens, core.ledger.bytes) == (0, 0, 0), "the ledger is not empty"
        assert not any(frontend.requests for frontend in core.ledger.by_uuid.values()), "a request is still open"
        assert len(core.ledger.by_uuid) == len(self.frontends), "the broker has the wrong number of frontends"
        welcomed = {worker.uuid: worker for worker in self.workers if worker.session.welcomed}
        assert {worker.uuid for worker in core.pool.workers.values()} == set(welcomed), "a worker has no session"
        assert core.current[MODEL].revision in {worker.revision for worker in welcomed.values()}, "no worker is used"
        for worker in core.pool.workers.values():
            assert worker.available == welcomed[worker.uuid].slots, "credit is missing"
        assert not any(worker.session.held for worker in self.workers), "a worker still holds a batch"


@pytest.mark.timeout(600)
def test_each_request_ends_once_under_faults() -> None:
    """Run all seeds; each wanted event must occur."""
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        seen.update(Simulation(seed).run())
    assert not [name for name in WANTED if not seen[name]], f"some wanted events are missing from {dict(seen)}"


@pytest.mark.timeout(600)
def test_cut_connections_make_no_input_poison() -> None:
    """The end of a connection does not show that a running input crashed the worker."""
    for seed in range(SEEDS // 5):
        assert not Simulation(seed, cuts_only=True).run()["false poison"]
