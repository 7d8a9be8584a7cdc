"""A worker's half of the conversation with the broker: hello, credit, heartbeats, drain.

Pure: no socket, clock or thread. What it returns is to be sent, and what it refuses is ignored.
"""

import math

import msgspec

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Frame, Message

#: Batches that a worker takes: of each lane one that runs and the next.
SLOTS = 4


class Session:
    """CONNECTING (hello until welcomed) → SERVING → DRAINING. Holds at most `slots` batches.

    It starts with the first `hello`, which its owner sends when a connection stands.
    """

    def __init__(self, hello: wire.WorkerHello, slots: int) -> None:
        self._hello = hello
        self._slots = slots
        #: Batches taken and not yet answered, by epoch and number.
        self.held: dict[tuple[int, int], None] = {}
        #: Whether a hello is under way: its answer will answer every `Who` that comes before.
        self._greeting = False
        self._hellos = 0
        #: The oldest held batch, and since when it is the oldest.
        self._running: tuple[int, int] | None = None
        self._running_since = 0.0
        self._lease_s = 20.0
        self._epoch: int | None = None
        self._seen = 0
        self._heartbeat_s = 0.25
        self._liveness_s = 3.5
        self._next_heartbeat = math.inf
        self._last_heard = 0.0
        self.draining = False

    @property
    def welcomed(self) -> bool:
        """Whether the broker knows this worker, as far as can be told."""
        return self._epoch is not None

    def make_hello(self, now: float) -> Message:
        """What opens a connection."""
        self._next_heartbeat = now + self._heartbeat_s
        self._epoch = None
        self._seen = 0
        self._greeting = True
        self._hellos += 1
        return msgspec.structs.replace(self._hello, credit=self._credit(), number=self._hellos)

    def handle(self, message: Message, now: float) -> tuple[wire.Batch | None, list[Message]]:
        """A message from the broker: the batch it brings, if any, and the messages to send."""
        self._last_heard = now
        match message:
            case wire.Welcome() if message.hello == self._hellos:
                self._epoch = message.epoch
                self._greeting = False
                self._lease_s = message.lease_ms / 1000
                self._heartbeat_s = message.heartbeat_ms / 1000
                self._liveness_s = message.liveness_ms / 1000
                self._next_heartbeat = now + self._heartbeat_s
                if self.draining:
                    # This broker does not know it yet.
                    return None, [wire.WorkerDrain(b"")]
            case wire.Who():
                # One for each message that it did not expect: one hello answers them all.
                return None, [] if self._greeting else [self.make_hello(now)]
            case wire.Goodbye():
                # Refused or evicted: ask again at the pace of heartbeats, for the reason may pass.
                self._epoch = None
                self._greeting = False
                self._next_heartbeat = now + self._heartbeat_s
            case wire.Batch() if message.epoch == self._epoch:
                self._seen = max(self._seen, message.batch)
                self.held[message.epoch, message.batch] = None
                return message, []
        return None, []

    def due(self, now: float) -> list[Message]:
        """What time alone asks for: a heartbeat, or another hello while nobody welcomed the last one."""
        if self.welcomed and now >= self._last_heard + self._liveness_s:
            self._epoch = None
        if now < self._next_heartbeat:
            return []
        self._next_heartbeat = now + self._heartbeat_s
        if self.welcomed:
            return [wire.WorkerHeartbeat(self._credit(), self._seen)]
        return [] if self.draining else [self.make_hello(now)]

    def is_hung(self, now: float) -> bool:
        """Whether one batch has run for longer than a lease, whoever still knows of it; asked at every turn."""
        oldest = next(iter(self.held), None)
        if oldest != self._running:
            self._running, self._running_since = oldest, now
        return oldest is not None and now >= self._running_since + self._lease_s

    def next_deadline(self) -> float:
        """When `due` must be called."""
        return self._next_heartbeat

    def make_result(
        self,
        batch: wire.Batch,
        dimension: int,
        tokens: Frame,
        failures: list[wire.JobFailure],
        inference_us: int,
        *,
        truncated: bytes = b"",
        sizes: bytes = b"",
        padding: int = 0,
    ) -> Message:
        """A batch is done."""
        self.held.pop((batch.epoch, batch.batch), None)
        return wire.BatchResult(
            epoch=batch.epoch,
            batch=batch.batch,
            dimension=dimension,
            tokens=bytes(tokens),
            failures=failures,
            inference_us=inference_us,
            credit=self._credit(),
            seen=self._seen,
            cut=truncated,
            sizes=sizes,
            padding=padding,
        )

    def make_error(self, batch: wire.Batch, code: ErrorCode, text: str) -> Message:
        """A batch failed as a whole."""
        self.held.pop((batch.epoch, batch.batch), None)
        return wire.BatchError(batch.epoch, batch.batch, code, text, self._credit(), self._seen)

    def drain(self) -> list[Message]:
        """Take nothing more; held batches are finished and answered."""
        self.draining = True
        return [wire.WorkerDrain(b"")] if self.welcomed else []

    def _credit(self) -> int:
        return 0 if self.draining else max(0, self._slots - len(self.held))
