"""The frontend's truth: every request that has no answer yet, and what has come in for it so far. Pure.

The broker's and the workers' state can be lost and made again from here; see `unanswered`.
"""

import math
from collections.abc import Iterable, Sequence

from broker import protocol as wire
from broker.errors import ErrorCode
from broker.protocol import Frame, Kind, Lane

#: Two brokers' lives can serve two revisions; one answer must not.
REPLACED = "the model was replaced while the request ran"
#: How long the wait that the broker told is taken to be the same, in seconds.
NOTED_S = 0.1
#: Clients whose wait is remembered at most.
MAX_NOTED = 1000


class Pending:
    """One request on its way. `failure` or all of `rows` end it."""

    __slots__ = ("deadline", "failure", "frame", "missing", "model", "revision", "rows",
                 "submission", "tokens")  # fmt: skip

    def __init__(self, submission: wire.Submission, frame: Frame, inputs: int, deadline: float) -> None:
        self.submission = submission
        self.model = submission.model
        self.frame = frame
        self.deadline = deadline
        #: Each input's vector as bytes of float32, in the order of the inputs.
        self.rows: list[memoryview] = [memoryview(b"")] * inputs
        self.missing = inputs
        self.tokens = 0
        self.failure: wire.Failure | None = None
        #: Of the model that made the rows so far.
        self.revision = ""

    @property
    def number(self) -> int:
        """The request's number on the wire."""
        return self.submission.request

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.failure is not None or self.missing == 0


class Door:
    """How long the wait was when the broker last refused a request for it: a flood is refused without asking."""

    def __init__(self) -> None:
        self.max_wait_s = math.inf
        self._waits: dict[tuple[str, Lane, str], tuple[float, float]] = {}

    def note(self, pending: Pending, now: float) -> None:
        """The broker has answered a request."""
        if pending.failure and pending.failure.code == ErrorCode.OVERLOADED:
            if len(self._waits) > MAX_NOTED:
                self._waits.clear()
            key = (pending.model, pending.submission.lane, pending.submission.client)
            self._waits[key] = (now + NOTED_S, pending.failure.retry_after_ms / 1000)

    def refuses(self, model: str, lane: Lane, client: str, budget_s: float, now: float) -> float | None:
        """The wait in seconds for which the broker would refuse such a request; None: it must be asked."""
        until, wait_s = self._waits.get((model, lane, client), (now, 0.0))
        return wait_s if now < until and wait_s > min(self.max_wait_s, budget_s) else None


class Table:
    """All pending requests by number."""

    def __init__(self) -> None:
        self._pending: dict[int, Pending] = {}
        self._newest = 0

    def __len__(self) -> int:
        return len(self._pending)

    def add(
        self, model: str, kind: Kind, inputs: Sequence[bytes], *, lane: Lane, client: str, deadline: float
    ) -> Pending:
        """A new request; it stays until `remove`."""
        self._newest += 1
        lengths = wire.pack_u32(map(len, inputs))
        submission = wire.Submission(self._newest, model, lane, client, 0, kind, lengths)
        pending = Pending(submission, b"".join(inputs), len(inputs), deadline)
        self._pending[self._newest] = pending
        return pending

    def remove(self, pending: Pending) -> None:
        """Nobody waits for it any more."""
        self._pending.pop(pending.number, None)

    def answered(self, answers: wire.Answers, frame: Frame) -> list[Pending]:
        """Put rows in their places; the requests that this completed. Rows that nobody waits for are dropped."""
        width = answers.dimension * 4
        vectors = memoryview(frame)
        ended: list[Pending] = []
        columns = (
            wire.unpack_u64(answers.requests),
            wire.unpack_u32(answers.positions),
            wire.unpack_u32(answers.tokens),
        )
        for row, (number, position, tokens) in enumerate(zip(*columns, strict=True)):
            pending = self._pending.get(number)
            if pending is None or pending.ended or position >= len(pending.rows) or pending.rows[position]:
                continue
            if pending.revision not in ("", answers.revision):
                pending.failure = wire.Failure(number, -1, ErrorCode.NO_WORKER, REPLACED, 1000)
                ended.append(pending)
                continue
            pending.revision = answers.revision
            pending.rows[position] = vectors[row * width : (row + 1) * width]
            pending.tokens += tokens
            pending.missing -= 1
            if pending.ended:
                ended.append(pending)
        return ended

    def failed(self, failures: Iterable[wire.Failure]) -> list[Pending]:
        """The requests that these failures ended: one failed input fails its request."""
        ended = []
        for failure in failures:
            pending = self._pending.get(failure.request)
            if pending and not pending.ended:
                pending.failure = failure
                ended.append(pending)
        return ended

    def unanswered(self) -> list[Pending]:
        """What a broker that knows nothing must be sent, oldest first."""
        return [pending for pending in self._pending.values() if not pending.ended]
