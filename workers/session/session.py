"""A worker's half of the conversation with the broker: hello, models, credit, heartbeats, drain.

Pure: no socket, clock or thread. The caller sends the messages that the methods return.
"""

import math
from collections.abc import Sequence

import msgspec

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Frame, Message, ModelInfo, ModelKey, ModelState

#: Batches that a worker holds at most: in each lane the batch that runs and the next.
SLOTS = 4
#: Longest pause, in seconds, before the next hello after the broker has refused some in a row.
MAX_PAUSE_S = 10.0


class Session:
    """Session of a worker: CONNECTING (hello until a welcome) → SERVING → DRAINING.

    The session starts with the first `make_hello`, which the caller sends on each new connection.
    """

    def __init__(self, hello: wire.WorkerHello, slots: int) -> None:
        """Take the hello to send, and the number of batches that the worker may hold."""
        self._hello = hello
        self._slots = slots
        #: States of models that the worker does not serve.
        self._states: Sequence[ModelState] = ()
        #: Number of changes of the models, and how many of them the last hello has.
        self._changes = self._greeted_changes = 0
        #: Models to keep in memory until the broker releases them, with the number of the change that ended each.
        self._retired: dict[ModelKey, int] = {}
        #: Models that the broker has released; see `take_released`.
        self._released: list[ModelKey] = []
        #: Batches that were received and not answered, by epoch and number, oldest first, with the model of each.
        self.held: dict[tuple[int, int], ModelKey] = {}
        self.draining = False
        #: The broker's epoch, or None before a welcome.
        self._epoch: int | None = None
        #: Number of the last hello.
        self._hellos = 0
        #: Whether a hello is unanswered; then the answer to that hello also answers any `Who`.
        self._greeting = False
        #: Newest batch received in this session.
        self._seen = 0
        #: The oldest held batch, and since when it has been the oldest.
        self._oldest: tuple[int, int] | None = None
        self._oldest_since = 0.0
        self._next_heartbeat = math.inf
        self._last_received = 0.0
        # Defaults until a welcome, which brings the broker's settings.
        self._lease_s = 20.0
        self._heartbeat_s = 0.25
        self._liveness_s = 3.5
        #: Seconds from the next goodbye to a hello. They double with each goodbye that no welcome comes before.
        self._pause_s = self._heartbeat_s

    def __repr__(self) -> str:
        state = "DRAINING" if self.draining else "SERVING" if self.welcomed else "CONNECTING"
        return f"<Session {state} epoch={self._epoch} held={list(self.held)}>"

    @property
    def welcomed(self) -> bool:
        """Whether the broker has accepted the last hello and sent messages since then."""
        return self._epoch is not None

    @property
    def precisions(self) -> str:
        """What the models are computed in, such as f32 or bf16+f32."""
        return "+".join(sorted({info.precision for info in self._hello.models if info.precision}))

    def make_hello(self, now: float) -> Message:
        """Return a hello for a new connection, and start the session again."""
        self._next_heartbeat = now + self._heartbeat_s
        self._epoch = None
        self._seen = 0
        self._greeting = True
        self._greeted_changes = self._changes
        self._hellos += 1
        return msgspec.structs.replace(self._hello, credit=self._count_free_slots(), number=self._hellos)

    def announce(self, models: Sequence[ModelInfo], states: Sequence[ModelState] = ()) -> list[Message]:
        """Set the models, and the states of models that the worker does not serve. Return the message about a change.

        A loaded model that is missing, or that is now unloaded, must stay in memory until `take_released` returns it.
        """
        if (self._hello.models, list(self._states)) == (list(models), list(states)):
            return []
        self._changes += 1
        before = {info.key for info in self._hello.models if not info.unloaded}
        loaded = {info.key for info in models if not info.unloaded}
        kept = {key: number for key, number in self._retired.items() if key not in loaded}
        self._retired = dict.fromkeys(before - loaded, self._changes) | kept
        self._hello = msgspec.structs.replace(self._hello, models=list(models))
        self._states = list(states)
        return self._describe_models() if self.welcomed else []

    def list_busy(self) -> set[ModelKey]:
        """Return the models of the held batches."""
        return set(self.held.values())

    def take_released(self) -> list[ModelKey]:
        """Return the models that no batch will come for, each once. Batches of them may still run."""
        released, self._released = self._released, []
        return released

    def _describe_models(self) -> list[Message]:
        return [wire.WorkerModels(self._changes, self._hello.models, list(self._states))]

    def _make_heartbeat(self, ping: int = 0) -> Message:
        return wire.WorkerHeartbeat(self._count_free_slots(), self._seen, ping)

    def _release_models(self, until: int, only: ModelKey | None = None) -> None:
        """Release the models that were ended by the change `until` or an earlier one: one of them, or all."""
        for key, number in list(self._retired.items()):
            if number <= until and only in (None, key):
                del self._retired[key]
                self._released.append(key)

    def handle(self, message: Message, now: float) -> tuple[wire.Batch | None, list[Message]]:
        """Handle a message from the broker. Return the batch to run, if any, and the messages to send."""
        self._last_received = now
        match message:
            case wire.Welcome() if message.hello == self._hellos:
                self._begin_session(message, now)
                # The broker has only the models of the hello. It sends no batch of a model that ended before.
                self._release_models(self._greeted_changes)
                changed = self._describe_models() if self._states or self._changes > self._greeted_changes else []
                # A broker that has restarted does not have the drain yet.
                return None, [*changed, *([wire.WorkerDrain(b"")] if self.draining else [])]
            case wire.Who():
                # The broker sends one for each unexpected message. One hello answers all of them.
                return None, [] if self._greeting else [self.make_hello(now)]
            case wire.Goodbye():
                # Refused or evicted. `due` sends another hello, because the reason may pass.
                self._epoch = None
                self._greeting = False
                self._next_heartbeat = now + self._pause_s
                self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s)
            case wire.Heartbeat(ping=ping) if ping and self.welcomed:
                return None, [self._make_heartbeat(ping)]
            case wire.Release() if self.welcomed:
                self._release_models(message.number, ModelKey(message.model, message.revision))
            case wire.Batch() if message.epoch == self._epoch:
                self._seen = max(self._seen, message.batch)
                self.held[message.epoch, message.batch] = message.key
                return message, []
        return None, []

    def _begin_session(self, message: wire.Welcome, now: float) -> None:
        self._epoch = message.epoch
        self._greeting = False
        self._lease_s = message.lease_ms / 1000
        self._heartbeat_s = self._pause_s = message.heartbeat_ms / 1000
        self._liveness_s = message.liveness_ms / 1000
        self._next_heartbeat = now + self._heartbeat_s

    def due(self, now: float) -> list[Message]:
        """Return the messages that are due: a heartbeat, or another hello if the last one was not answered."""
        if self.welcomed and now >= self._last_received + self._liveness_s:
            self._epoch = None
        if now < self._next_heartbeat:
            return []
        self._next_heartbeat = now + self._heartbeat_s
        if self.welcomed:
            return [self._make_heartbeat()]
        return [] if self.draining else [self.make_hello(now)]

    def next_deadline(self) -> float:
        """Return when to call `due`."""
        return self._next_heartbeat

    def is_hung(self, now: float) -> bool:
        """Return whether the oldest batch has run for longer than a lease. Call this at every turn.

        The result does not depend on the broker, which may have restarted and lost the lease.
        """
        oldest = next(iter(self.held), None)
        if oldest != self._oldest:
            self._oldest, self._oldest_since = oldest, now
        return oldest is not None and now >= self._oldest_since + self._lease_s

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
        micro_batches: int = 0,
        micro_batch_inputs: int = 0,
    ) -> Message:
        """Return the result of a batch, and free the batch's slot. The columns are those of `wire.BatchResult`."""
        self.held.pop((batch.epoch, batch.batch), None)
        return wire.BatchResult(
            epoch=batch.epoch,
            batch=batch.batch,
            dimension=dimension,
            tokens=bytes(tokens),
            failures=failures,
            inference_us=inference_us,
            credit=self._count_free_slots(),
            seen=self._seen,
            truncated=truncated,
            sizes=sizes,
            padding=padding,
            micro_batches=micro_batches,
            micro_batch_inputs=micro_batch_inputs,
        )

    def make_error(self, batch: wire.Batch, code: ErrorCode, text: str) -> Message:
        """Return the error of a batch that failed as a whole, and free the batch's slot."""
        self.held.pop((batch.epoch, batch.batch), None)
        return wire.BatchError(batch.epoch, batch.batch, code, text, self._count_free_slots(), self._seen)

    def drain(self) -> list[Message]:
        """Stop accepting batches, and return the message that announces this. Held batches may still be answered."""
        self.draining = True
        return [wire.WorkerDrain(b"")] if self.welcomed else []

    def _count_free_slots(self) -> int:
        return 0 if self.draining else max(0, self._slots - len(self.held))
