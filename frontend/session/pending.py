"""The frontend's truth: every request that has no answer yet, and what has come in for it so far. Pure.

The broker's and the workers' state can be lost and made again from here; see `unanswered`.
"""

import itertools
import math
from collections.abc import Iterable, Sequence

import msgspec

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, describe_replaced_model, describe_too_many_tokens
from broker.wire.protocol import Frame, Lane

#: How long the wait that the broker told is taken to be the same, in seconds.
NOTED_S = 0.1
#: Clients whose wait is remembered at most.
MAX_NOTED = 1000


class Pending:
    """One request on its way. `failure`, or a row or a failure of each input, ends it."""

    __slots__ = (
        "abandoned",
        "cut",
        "deadline",
        "failure",
        "failures",
        "frame",
        "inference_us",
        "max_tokens",
        "missing",
        "model",
        "per_item",
        "queue_us",
        "revision",
        "rows",
        "submission",
        "tokens",
        "told",
    )  # fmt: skip

    def __init__(
        self, submission: wire.Submission, frame: Frame, deadline: float, *, per_item: bool, max_tokens: float
    ) -> None:
        inputs = len(wire.unpack_u32(submission.lengths))
        self.submission = submission
        self.model = submission.model
        self.frame = frame
        self.deadline = deadline
        #: Whether an input that fails leaves the others to be answered.
        self.per_item = per_item
        #: Tokens that it may have.
        self.max_tokens = max_tokens
        #: Each input's row as bytes, in the order of the inputs; None: not there yet.
        self.rows: list[memoryview | None] = [None] * inputs
        self.missing = inputs
        self.tokens = 0
        #: Tokens cut off, and what went wrong, by input.
        self.cut: dict[int, int] = {}
        self.failures: dict[int, wire.Failure] = {}
        self.failure: wire.Failure | None = None
        #: Whether the broker itself has ended the whole request.
        self.told = False
        #: Whether its client has gone away.
        self.abandoned = False
        #: Longest wait in the queue and longest inference among its batches.
        self.queue_us = self.inference_us = 0
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

    def place(self, position: int, row: memoryview, tokens: int, cut: int) -> None:
        """An input's row has come."""
        self.rows[position] = row
        self.tokens += tokens
        self.missing -= 1
        if cut:
            self.cut[position] = cut
        if self.tokens > self.max_tokens:
            text = describe_too_many_tokens(self.max_tokens)
            self.failure = wire.Failure(self.number, -1, ErrorCode.TOO_MANY_TOKENS, text)

    def fail(self, failure: wire.Failure) -> None:
        """An input has failed, or the whole request."""
        if failure.position < 0:
            self.failure, self.told = failure, True
        elif not self.per_item:
            self.failure = failure
        elif self.waits_for(failure.position):
            self.failures[failure.position] = failure
            self.missing -= 1

    def waits_for(self, position: int) -> bool:
        """Whether the input has neither a row nor a failure."""
        return position < len(self.rows) and self.rows[position] is None and position not in self.failures


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
        self,
        submission: wire.Submission,
        frame: Frame,
        deadline: float,
        *,
        per_item: bool = False,
        max_tokens: float = math.inf,
    ) -> Pending:
        """A new request, whose submission gets its number here; it stays until `remove`."""
        self._newest += 1
        numbered = msgspec.structs.replace(submission, request=self._newest)
        pending = Pending(numbered, frame, deadline, per_item=per_item, max_tokens=max_tokens)
        self._pending[self._newest] = pending
        return pending

    def remove(self, pending: Pending) -> None:
        """Nobody waits for it any more."""
        self._pending.pop(pending.number, None)

    def answered(self, answers: wire.Answers, frame: Frame) -> list[Pending]:
        """Put rows in their places; the requests that this completed. Rows that nobody waits for are dropped."""
        rows = wire.split(frame, _sizes(answers))
        cut = wire.unpack_u32(answers.cut) or itertools.repeat(0)
        ended: list[Pending] = []
        columns = (
            wire.unpack_u64(answers.requests),
            wire.unpack_u32(answers.positions),
            wire.unpack_u32(answers.tokens),
        )
        for number, position, tokens, row, off in zip(*columns, rows, cut, strict=False):
            pending = self._pending.get(number)
            if pending is None or pending.ended or not pending.waits_for(position):
                continue
            if pending.revision not in ("", answers.revision):
                # Two epochs of the broker can serve two revisions; one answer must not mix them.
                text = describe_replaced_model(pending.model)
                pending.failure = wire.Failure(number, -1, ErrorCode.NO_WORKER, text, 1000)
                ended.append(pending)
                continue
            pending.revision = answers.revision
            pending.queue_us = max(pending.queue_us, answers.queue_us)
            pending.inference_us = max(pending.inference_us, answers.inference_us)
            pending.place(position, row, tokens, off)
            if pending.ended:
                ended.append(pending)
        return ended

    def failed(self, failures: Iterable[wire.Failure]) -> list[Pending]:
        """The requests that these failures ended."""
        ended: list[Pending] = []
        for failure in failures:
            pending = self._pending.get(failure.request)
            if pending and not pending.ended:
                pending.fail(failure)
                if pending.ended:
                    ended.append(pending)
        return ended

    def unanswered(self) -> list[Pending]:
        """What a broker that knows nothing must be sent, oldest first."""
        return [pending for pending in self._pending.values() if not pending.ended]


def _sizes(answers: wire.Answers) -> Sequence[int]:
    """Bytes of each row."""
    if answers.sizes:
        return wire.unpack_u32(answers.sizes)
    return [answers.dimension * 4] * (len(answers.positions) // 4)
