"""A worker process with the real service and a backend of arithmetic: fast, deterministic, and bad on command.

`python -m tests.fake_worker` takes a worker's flags. Some texts are orders: "crash" ends the process, "raise" raises,
"hang" never returns, "slow SECONDS" takes its time.
"""

import hashlib
import os
import socket
import sys
import time
import uuid
from collections.abc import Sequence

import numpy as np

from broker import protocol as wire
from broker.errors import ErrorCode
from workers.backend import Ids, Vectors
from workers.config import Config, load
from workers.pipeline import Pipeline
from workers.service import Service
from workers.session import Session

DIMENSION = 8
MAX_TOKENS = 64
MODEL = wire.ModelInfo("fake", "revision-1", DIMENSION, MAX_TOKENS)


def vector(text: str) -> Vectors:
    """The vector that belongs to a text, and to no other."""
    digest = hashlib.sha256(text.encode()).digest()[: DIMENSION * 2]
    return np.frombuffer(digest, "<u2").astype(np.float32)


class FakeBackend:
    """A `Backend` whose token ids are the characters of a text."""

    dimension = DIMENSION
    requests = 2
    micro_batch_tokens = 256

    def tokenise(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array([ord(letter) for letter in text] or [0], np.int64) for text in texts]

    def refusal(self, ids: Ids) -> tuple[ErrorCode, str] | None:
        if len(ids) > MAX_TOKENS:
            return ErrorCode.TOO_LONG, f"Input length {len(ids)} longer than allowed {MAX_TOKENS}"
        return None

    def infer(self, request: int, ids: Sequence[Ids]) -> Vectors:
        texts = ["".join(map(chr, one)) for one in ids]
        for text in texts:
            self._obey(text)
        return np.stack([vector(text) for text in texts])

    def check(self, request: int) -> None:
        pass

    def _obey(self, text: str) -> None:
        match text.split():
            case ["crash"]:
                os._exit(139)
            case ["raise"]:
                raise RuntimeError("told to")
            case ["hang"]:
                time.sleep(3600)
            case ["slow", seconds]:
                time.sleep(float(seconds))


def serve(config: Config) -> None:
    """Serve the fake model until drained."""
    hello = wire.WorkerHello(
        wire.PROTOCOL_MIN,
        wire.PROTOCOL_MAX,
        "test",
        uuid.uuid4().bytes,
        time.time_ns(),
        socket.gethostname(),
        os.getpid(),
        "FAKE",
        [MODEL],
        batch_tokens=1024,
        tokens_per_s=100_000,
        credit=0,
    )
    wakeup = os.eventfd(0, os.EFD_NONBLOCK)
    pipeline = Pipeline(FakeBackend(), lambda: os.eventfd_write(wakeup, 1))
    Service(config, Session(hello, slots=2), pipeline, wakeup).run()


if __name__ == "__main__":
    serve(load(sys.argv[1:], {}))
