"""Sending of a batch's lines to the broker, in order, as many at once as the broker admits."""

import asyncio
import enum
import heapq
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from frontend.api.errors import ApiError
from frontend.batches.answering import Answer, Line, ModelReplacedError, RefusedError, render_failure
from frontend.batches.pace import Pace

log = logging.getLogger(__name__)


class Stop(enum.Enum):
    """Why no further line of a batch is sent."""

    #: The runner drains; another one goes on.
    DRAIN = "drain"
    #: The lease is lost; another runner has the batch.
    LOST = "lost"
    CANCEL = "cancel"
    EXPIRE = "expire"
    REPLACE = "replace"
    #: The model, the queue or a quota has admitted no line for long; this or another runner goes on later.
    WAIT = "wait"


#: Stops after which the batch goes on later.
PAUSES = (Stop.DRAIN, Stop.LOST, Stop.WAIT)
#: Seconds without an answer after which a batch gives its slot to others.
WAIT_S = 10.0


class Part:
    """Lines that are committed together, and their answers; None for a line that did not run."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.answers: list[Answer | None] = [None] * len(lines)
        #: Number of lines that may still run.
        self._open = len(lines)
        #: Set when no line runs any more.
        self.settled = asyncio.Event()
        self.began = time.monotonic()

    def settle(self, index: int, answer: Answer | None) -> None:
        """Record the answer of a line, or that the line will not run."""
        self.answers[index] = answer
        self._open -= 1
        if not self._open:
            self.settled.set()


class Sender:
    """Lines that wait to be sent, those that are with the broker, and the pace."""

    def __init__(self, answer: Callable[[Line], Awaitable[Answer]]) -> None:
        """`answer` gets the answer of one line; see `Answerer.answer`."""
        self._answer = answer
        self._pace = Pace()
        # Lines wait in the order of the file; a refused line comes before those after it.
        self._waiting: list[tuple[int, Part, int]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        #: Message of the last refusal, to log each once.
        self._reason = ""
        #: When a line was answered last, or when sending began after a pause, by the monotonic clock.
        self._answered_at = time.monotonic()
        self.stopped: Stop | None = None
        #: Why the batch stopped, if it was replaced.
        self.stop_reason = ""
        self.stop_event = asyncio.Event()

    def send(self, part: Part) -> None:
        """Send the lines of the next part as soon as the pace allows; none after a stop."""
        if not self._waiting and not self._tasks:
            self._answered_at = time.monotonic()
        for index, line in enumerate(part.lines):
            if self.stopped:
                part.settle(index, None)
            else:
                heapq.heappush(self._waiting, (line.number, part, index))
        self._send_more()

    def stop(self, stop: Stop, reason: str = "") -> None:
        """Send no further line. Lines that are with the broker are still answered."""
        if self.stopped:
            return
        self.stopped, self.stop_reason = stop, reason
        self.stop_event.set()
        for _, part, index in self._waiting:
            part.settle(index, None)
        self._waiting.clear()

    async def close(self) -> None:
        """Cancel the lines that are with the broker."""
        if self._timer:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _send_more(self) -> None:
        now = time.monotonic()
        while self._waiting and self._pace.may_send(self._waiting[0][1].lines[self._waiting[0][2]].inputs, now):
            _, part, index = heapq.heappop(self._waiting)
            self._pace.begin(part.lines[index].inputs)
            task = asyncio.create_task(self._run_line(part, index))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._waiting and now < self._pace.paused_until:
            if self._timer:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(self._pace.paused_until - now, self._send_more)

    async def _run_line(self, part: Part, index: int) -> None:
        line = part.lines[index]
        answer: Answer | None = None
        try:
            answer = await self._answer(line)
        except RefusedError as refusal:
            self._pace.end(line.inputs, answered=False)
            self._retry(part, index, refusal)
            return
        except ModelReplacedError as replaced:
            self.stop(Stop.REPLACE, str(replaced))
        except Exception:
            log.exception("line failed")
            text = "the server failed to process this request; its log has the reason"
            answer = render_failure(line, ApiError(500, text, kind="server_error", code="internal_error"))
        self._answered_at = time.monotonic()
        self._pace.end(line.inputs, answered=answer is not None)
        part.settle(index, answer)
        self._reason = "" if answer else self._reason
        self._send_more()

    def _retry(self, part: Part, index: int, refusal: RefusedError) -> None:
        now = time.monotonic()
        until = self._pace.refuse(refusal.pause_s, now)
        if not self._pace.sent and now - self._answered_at >= WAIT_S:
            self.stop(Stop.WAIT)
        if self.stopped:
            part.settle(index, None)
            return
        heapq.heappush(self._waiting, (part.lines[index].number, part, index))
        if str(refusal) != self._reason:
            self._reason = str(refusal)
            log.info("lines wait %.1f s: %s", until - now, self._reason)
        self._send_more()
