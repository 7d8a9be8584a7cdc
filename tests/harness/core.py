"""Scheduler whose peers and clock are played by a test; all invariants are checked after each call."""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from broker.core.jobs import Request, choose_pricing
from broker.core.limits import Limits
from broker.core.models import Model
from broker.core.outbox import Send
from broker.core.scheduler import Scheduler
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from broker.wire.protocol import Caching, Kind, Lane, Message, ModelInfo, ModelKey, Option

EPOCH = 7
DIMENSION = 4
#: The model that workers have by default.
KEY = ModelKey("m", "r")
M = TypeVar("M", bound=Message)


class Core:
    """Scheduler, its clock, and the messages that it has sent and no test has taken."""

    def __init__(self, limits: Limits | None = None, *, cache: bool = False) -> None:
        limits = limits or Limits()
        self.scheduler = Scheduler(EPOCH, limits if cache else msgspec.structs.replace(limits, cache_bytes=0))
        self.now = 1000.0
        self.sent: list[Send] = []
        #: `Option` bits of the jobs of each batch.
        self._options: dict[int, bytes] = {}
        #: Whether the last value of a vector is the number of the batch that computed it.
        self.marks_batches = False
        #: Workers that answer no ping.
        self.silent: set[bytes] = set()

    def handle(self, peer: bytes, message: Message, *frames: bytes) -> None:
        """Deliver a message from a peer, encoded and decoded on the way."""
        decoder: Any = wire.FROM_FRONTEND if peer.startswith(b"F") else wire.FROM_WORKER
        decoded, payload = wire.decode(decoder, wire.encode(message, frames))
        self._out(self.scheduler.handle(peer, decoded, self.now, payload))

    def tick(self, after: float = 0.0) -> None:
        """Advance the clock in one step."""
        self.now += after
        self._out(self.scheduler.tick(self.now))

    def lost(self, peer: bytes) -> None:
        """End a peer's connection."""
        self._out(self.scheduler.lost(peer, self.now))

    def revoke(self, peer: bytes) -> None:
        """Revoke a peer's key."""
        self._out(self.scheduler.revoke(peer, self.now))

    def _out(self, sends: list[Send]) -> None:
        for peer, message, frames in sends:
            decoder: Any = wire.TO_FRONTEND if peer.startswith(b"F") else wire.TO_WORKER
            wire.decode(decoder, wire.encode(message, frames))
            if isinstance(message, wire.Batch):
                self._options[message.batch] = message.options or bytes(len(message.kinds))
        self.sent += sends
        self.scheduler.check_invariants()
        for peer, message, _ in sends:
            if isinstance(message, wire.Heartbeat) and message.ping and peer not in self.silent:
                self.answer_ping(peer, message.ping)

    def answer_ping(self, peer: bytes, ping: int) -> None:
        """Answer a ping of a worker that is still connected; its credit stays the same."""
        if worker := self.scheduler.state.pool.workers.get(peer):
            self.handle(peer, wire.WorkerHeartbeat(worker.credit, 0, ping))

    def take(self, kind: type[M], peer: bytes | None = None) -> list[tuple[bytes, M, list[bytes]]]:
        """Remove and return the sent messages of a kind, with their peers and frames."""
        taken = [send for send in self.sent if isinstance(send.message, kind) and peer in (None, send.peer)]
        self.sent = [send for send in self.sent if send not in taken]
        return [(send.peer, send.message, [bytes(frame) for frame in send.frames]) for send in taken]  # type: ignore[misc]

    def list_sent(self, kind: type[M]) -> list[tuple[bytes, M, list[bytes]]]:
        """Return the sent messages of a kind, which no test has taken, with their peers and frames."""
        sent = [send for send in self.sent if isinstance(send.message, kind)]
        return [(send.peer, send.message, [bytes(frame) for frame in send.frames]) for send in sent]  # type: ignore[misc]

    def model(self, name: str = "m") -> Model:
        """Return the current revision of a model."""
        state = self.scheduler.state
        return state.models[state.current[name]]

    def waiting(self, model: str = "m") -> list[tuple[int, int]]:
        """Return the queued inputs of a model as request number and position."""
        waiting = self.model(model).queue.list_waiting()
        return [(request.number, position) for request, positions in waiting for position in positions]

    def frontend_requests(self, peer: bytes = b"F1") -> list[Request]:
        """Return the open requests of a frontend."""
        return list(self.scheduler.state.ledger.by_peer[peer].requests.values())

    # --- peers -------------------------------------------------------------------------------------------------------

    def frontend(self, peer: bytes = b"F1", uuid: bytes | None = None) -> bytes:
        """Connect a frontend and return its peer id."""
        self.handle(peer, wire.FrontendHello(1, 1, "test", (uuid or peer).ljust(16, b"."), "host", 1))
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
        """Connect a worker with one model and return its peer id."""
        models = [info(model, revision)]
        uuid = (uuid or peer).ljust(16, b".")
        self.handle(
            peer, wire.WorkerHello(1, 1, "test", uuid, 1, "host", 1, "CPU", models, batch_tokens, tokens_per_s, credit)
        )
        return peer

    def announce(
        self,
        *infos: ModelInfo,
        peer: bytes = b"W1",
        number: int = 1,
        states: Sequence[wire.ModelState] = (),
    ) -> None:
        """Announce all models of a worker."""
        self.handle(peer, wire.WorkerModels(number, list(infos), list(states)))

    def releases(self, peer: bytes | None = None) -> list[tuple[bytes, str, str]]:
        """Take the releases sent to workers and return the worker, name and revision of each."""
        return [(to, message.model, message.revision) for to, message, _ in self.take(wire.Release, peer)]

    def submit(
        self,
        request: int,
        texts: Sequence[str],
        peer: bytes = b"F1",
        *,
        model: str = "m",
        budget_ms: int = 10_000,
        lane: Lane = Lane.INTERACTIVE,
        client: str = "",
        options: int = 0,
        client_jobs: int = 0,
        client_tokens: int = 0,
        revision: str = "",
        caching: Caching = Caching.USE,
    ) -> None:
        """Submit a request from a frontend; its request id contains its number."""
        payloads = [text.encode() for text in texts]
        lengths = wire.pack_u32(map(len, payloads))
        origin = wire.Origin(f"request {request}")
        submission = wire.Submission(
            *(request, model, lane, client, budget_ms, Kind.TEXT, lengths, options, origin, client_jobs, client_tokens),
            revision=revision,
            caching=caching,
        )
        self.handle(peer, wire.Submit([submission]), b"".join(payloads))

    def batches(self, peer: bytes | None = None) -> list[tuple[bytes, int, list[str]]]:
        """Take the sent batches and return the worker, number and texts of each."""
        found = []
        for to, batch, frames in self.take(wire.Batch, peer):
            texts = [str(part, "utf-8") for part in wire.split_frame(frames[0], wire.unpack_u32(batch.lengths))]
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
        """Answer a batch from its worker, with the vector or token ids of each text."""
        peer, number, texts = batch
        failed = {failure.position for failure in failures}
        options = self._options[number]
        batch_mark = number if self.marks_batches else 0
        rows = [row(text, options[at], batch_mark) for at, text in enumerate(texts) if at not in failed]
        tokens = wire.pack_u32(len(text) + 2 for text in texts)
        sizes = wire.pack_u32(map(len, rows)) if any(one & Option.TOKENIZE for one in options) else b""
        result = wire.BatchResult(epoch, number, DIMENSION, tokens, list(failures), 5, credit, number, sizes=sizes)
        self.handle(peer, result, b"".join(rows))

    def fail(self, batch: tuple[bytes, int, list[str]]) -> None:
        """Report from a worker that its device failed on a batch."""
        peer, number, _ = batch
        self.handle(peer, wire.BatchError(EPOCH, number, ErrorCode.DEVICE, "failed", 2, number))

    def answers(self, peer: bytes = b"F1") -> dict[tuple[int, int], bytes]:
        """Take the rows sent to a frontend and return them by request and position; fail if a row comes twice."""
        found: dict[tuple[int, int], bytes] = {}
        for _, message, frames in self.take(wire.Answers, peer):
            columns = list(zip(wire.unpack_u64(message.requests), wire.unpack_u32(message.positions), strict=True))
            sizes = wire.unpack_u32(message.sizes) or [message.dimension * 4] * len(columns)
            for key, part in zip(columns, wire.split_frame(frames[0], sizes), strict=True):
                assert key not in found
                found[key] = bytes(part)
        return found

    def failures(self, peer: bytes = b"F1") -> list[tuple[int, int, ErrorCode]]:
        """Take the failures sent to a frontend and return the request, position and code of each."""
        messages = self.take(wire.Failures, peer)
        return [(one.request, one.position, one.code) for _, message, _ in messages for one in message.failures]


def info(name: str = "m", revision: str = "r", **others: Any) -> ModelInfo:
    """Return a model as workers announce it."""
    return ModelInfo(name, revision, DIMENSION, 100, **others)


def row(text: str, options: int = 0, batch: int = 0) -> bytes:
    """Return the answer to a text: token ids between two special tokens, or a vector, which may end with its batch."""
    if options & Option.TOKENIZE:
        return wire.pack_u32([0, *map(ord, text), 0])
    return vector(text)[:-4] + np.float32(batch).tobytes() if batch else vector(text)


def vector(text: str) -> bytes:
    """Return the vector of a text, which differs between the texts of these tests."""
    return np.frombuffer(text.encode().ljust(DIMENSION, b"\0")[:DIMENSION], np.uint8).astype("<f4").tobytes()


def make_request(
    inputs: Sequence[bytes],
    arrived: float = 0.0,
    *,
    client: str = "a",
    lane: Lane = Lane.BULK,
    kind: Kind = Kind.TEXT,
    number: int = 1,
) -> Request:
    """Return a request of a frontend b"F" for a model that takes inputs of 10,000 tokens."""
    lengths = wire.pack_u32(map(len, inputs))
    asked = wire.Submission(number, "m", lane, client, 60_000, kind, lengths)
    pricing = choose_pricing(kind, 0, 0.3, 10_000)
    return Request.from_submission(b"F", asked, b"".join(inputs), ModelKey("m", "r"), pricing, arrived)
