"""A scheduler between peers that tests play by hand: every call is followed by a check of all invariants."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from broker import protocol as wire
from broker.errors import ErrorCode
from broker.limits import Limits
from broker.protocol import Kind, Lane, Message, ModelInfo
from broker.scheduler import Scheduler, Send

EPOCH = 7
DIMENSION = 4
M = TypeVar("M", bound=Message)


class Core:
    """The scheduler, its clock, and all it has sent that no test has looked at yet."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.scheduler = Scheduler(EPOCH, limits)
        self.now = 1000.0
        self.sent: list[Send] = []

    def handle(self, peer: bytes, message: Message, *frames: bytes) -> None:
        """A message comes in, by way of the codec."""
        decoder: Any = wire.FROM_FRONTEND if peer.startswith(b"F") else wire.FROM_WORKER
        decoded, payload = wire.decode(decoder, wire.encode(message, frames))
        self._out(self.scheduler.handle(peer, decoded, self.now, payload))

    def tick(self, after: float = 0.0) -> None:
        """Time passes, in one jump."""
        self.now += after
        self._out(self.scheduler.tick(self.now))

    def lost(self, peer: bytes) -> None:
        """A connection ends."""
        self._out(self.scheduler.lost(peer, self.now))

    def _out(self, sends: list[Send]) -> None:
        for peer, message, frames in sends:
            decoder: Any = wire.TO_FRONTEND if peer.startswith(b"F") else wire.TO_WORKER
            wire.decode(decoder, wire.encode(message, frames))
        self.sent += sends
        self.scheduler.check()

    def take(self, kind: type[M], peer: bytes | None = None) -> list[tuple[bytes, M, list[bytes]]]:
        """What was sent of a kind, which is then forgotten."""
        mine = [one for one in self.sent if isinstance(one.message, kind) and peer in (None, one.peer)]
        self.sent = [one for one in self.sent if one not in mine]
        return [(one.peer, one.message, [bytes(frame) for frame in one.frames]) for one in mine]  # type: ignore[misc]

    # --- peers -------------------------------------------------------------------------------------------------------

    def frontend(self, peer: bytes = b"F1", uuid: bytes | None = None) -> bytes:
        """A frontend says hello."""
        self.handle(peer, wire.FrontendHello(1, 1, "test", (uuid or peer).ljust(16, b"."), 1, "host", 1))
        return peer

    def worker(
        self,
        peer: bytes = b"W1",
        *,
        model: str = "m",
        revision: str = "r",
        credit: int = 2,
        batch_tokens: int = 1000,
        tokens_per_s: int = 10_000,
        uuid: bytes | None = None,
    ) -> bytes:
        """A worker says hello."""
        info = ModelInfo(model, revision, DIMENSION, 100)
        uuid = (uuid or peer).ljust(16, b".")
        self.handle(
            peer, wire.WorkerHello(1, 1, "test", uuid, 1, "host", 1, "CPU", [info], batch_tokens, tokens_per_s, credit)
        )
        return peer

    def submit(
        self,
        request: int,
        texts: Sequence[str],
        peer: bytes = b"F1",
        *,
        model: str = "m",
        budget_ms: int = 10_000,
        lane: Lane = Lane.INTERACTIVE,
    ) -> None:
        """A frontend submits a request."""
        payloads = [text.encode() for text in texts]
        lengths = wire.pack_u32(map(len, payloads))
        submission = wire.Submission(request, model, lane, "", budget_ms, Kind.TEXT, lengths)
        self.handle(peer, wire.Submit([submission]), b"".join(payloads))

    def batches(self, peer: bytes | None = None) -> list[tuple[bytes, int, list[str]]]:
        """The batches sent since the last look: worker, number, texts."""
        found = []
        for to, batch, frames in self.take(wire.Batch, peer):
            texts = [str(part, "utf-8") for part in wire.split(frames[0], wire.unpack_u32(batch.lengths))]
            found.append((to, batch.batch, texts))
        return found

    def answer(
        self,
        batch: tuple[bytes, int, list[str]],
        *,
        failures: Sequence[wire.JobFailure] = (),
        credit: int = 2,
        epoch: int = EPOCH,
    ) -> None:
        """A worker answers a batch with vectors that tell their texts."""
        peer, number, texts = batch
        failed = {failure.position for failure in failures}
        rows = [vector(text) for position, text in enumerate(texts) if position not in failed]
        tokens = wire.pack_u32(len(text) + 2 for text in texts)
        result = wire.BatchResult(epoch, number, DIMENSION, tokens, list(failures), 5, credit, number)
        self.handle(peer, result, b"".join(rows))

    def fail(self, batch: tuple[bytes, int, list[str]]) -> None:
        """A worker's device fails on a batch."""
        peer, number, _ = batch
        self.handle(peer, wire.BatchError(EPOCH, number, ErrorCode.DEVICE, "failed", 2, number))

    def answers(self, peer: bytes = b"F1") -> dict[tuple[int, int], bytes]:
        """The vectors sent to a frontend since the last look, by request and position; none comes twice."""
        found: dict[tuple[int, int], bytes] = {}
        for _, message, frames in self.take(wire.Answers, peer):
            width = message.dimension * 4
            columns = zip(wire.unpack_u64(message.requests), wire.unpack_u32(message.positions), strict=True)
            for row, key in enumerate(columns):
                assert key not in found
                found[key] = frames[0][row * width : (row + 1) * width]
        return found

    def failures(self, peer: bytes = b"F1") -> list[tuple[int, int, ErrorCode]]:
        """The failures sent to a frontend since the last look: request, position, code."""
        messages = self.take(wire.Failures, peer)
        return [(one.request, one.position, one.code) for _, message, _ in messages for one in message.failures]


def vector(text: str) -> bytes:
    """The vector that belongs to a text, and to no other in these tests."""
    return np.frombuffer(text.encode().ljust(DIMENSION, b"\0")[:DIMENSION], np.uint8).astype("<f4").tobytes()
