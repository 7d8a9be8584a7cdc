"""A worker process with the real service and a fast, deterministic backend that fails on command.

`python -m tests.harness.fake_worker` takes a worker's flags and, for its backend, FAKE_* variables. Some texts are
commands: "crash" and "segfault" end the process, "break" ends a thread of the pipeline, "raise" raises, "nan" and
"short" return bad vectors, "hang" never returns, "slow SECONDS" sleeps, "wait NAME" waits for a file of that name, and
"once NAME COMMAND" is the command for the first worker that runs it, and later an ordinary text.
"""

import ctypes
import functools
import hashlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from broker.shared import logs
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, describe_too_long
from workers.__main__ import end_process, load_first
from workers.config import Config, load
from workers.engine.backend import Ids, Vectors
from workers.engine.micro_batches import Costs
from workers.engine.pipeline import Pipeline
from workers.session.catalog import Catalog, Version
from workers.session.loader import Loaded, Loader, LoadError, Scan
from workers.session.model_keeper import ModelKeeper
from workers.session.service import Service
from workers.session.session import SLOTS, Session

DIMENSION = 8
MAX_TOKENS = 64


def model(dimension: int = DIMENSION, default_prompt: str = "") -> wire.ModelInfo:
    """Return the fake model as its workers announce it. A default prompt is added to its prompts."""
    default = {default_prompt: f"{default_prompt}: "} if default_prompt else {}
    return wire.ModelInfo(
        "fake",
        "revision-1",
        dimension,
        MAX_TOKENS,
        vocabulary=200_000,
        prompts={"query": "query: ", "document": "passage: ", **default},
        default_prompt=default_prompt,
        matryoshka=True,
        matryoshka_dimensions=[4],
    )


def vector(text: str, dimension: int = DIMENSION, revision: str = "revision-1") -> Vectors:
    """Return the vector of a text, which no other text and no other revision has."""
    salt = b"" if revision == "revision-1" else revision.encode()
    digest = hashlib.shake_128(text.encode() + salt).digest(dimension * 2)
    return np.frombuffer(digest, "<u2").astype(np.float32)


class Fakery(NamedTuple):
    """Settings of the backend, from FAKE_DIMENSION and so on."""

    dimension: int = DIMENSION
    #: Number of infer requests; 1 runs one batch after another.
    requests: int = 2
    us_per_token: int = 0
    default_prompt: str = ""
    #: Folder of the files that commands name.
    folder: str = "."
    #: JSON file with the models to serve instead of "fake": an object with a revision by name, which may be followed by
    #: the seconds that it takes to load, or by "!" if it is damaged.
    models: str = ""
    #: Other names of every model, separated by commas.
    aliases: str = ""


class FakeBackend:
    """A `Backend` whose token ids are the characters of a text."""

    costs = Costs(inference_ms=0.15, token_ms=0.125, pair_ms=0, pads=True)
    max_tokens = MAX_TOKENS
    before = after = np.empty(0, np.int64)

    def __init__(self, fakery: Fakery = Fakery(), revision: str = "revision-1") -> None:  # noqa: B008  a constant
        self.dimension = fakery.dimension
        self._revision = revision
        self.requests = fakery.requests
        self.streams = max(1, fakery.requests - 1)
        self._us_per_token = fakery.us_per_token
        self._folder = Path(fakery.folder)
        self._broken = False
        #: Output of each infer request, which the next inference overwrites.
        self._outputs = [np.empty((0, self.dimension), np.float32)] * self.requests

    def tokenize_texts(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array([ord(letter) for letter in text] or [0], np.int64) for text in texts]

    def count_prompt_tokens(self, text: wire.Frame) -> int:
        return 0

    def validate_ids(self, ids: Ids) -> tuple[ErrorCode, str] | None:
        if len(ids) > MAX_TOKENS:
            return ErrorCode.TOO_LONG, describe_too_long(len(ids), MAX_TOKENS)
        return None

    def get_divisors(self, request: int) -> Vectors | None:
        return None

    def run_inference(self, request: int, ids: Sequence[Ids], prompt_tokens: Sequence[int]) -> Vectors:
        texts = ["".join(map(chr, text_ids)) for text_ids in ids]
        commands = [text.split() for text in texts]
        for command in commands:
            self._run_command(command)
        time.sleep(self._us_per_token * sum(map(len, ids)) / 1e6)
        if len(self._outputs[request]) < len(texts):
            self._outputs[request] = np.empty((len(texts), self.dimension), np.float32)
        output = self._outputs[request][: len(texts)]
        output[:] = [vector(text, self.dimension, self._revision) for text in texts]
        if ["nan"] in commands:
            output[commands.index(["nan"]), -1] = np.nan
        return output[:-1] if ["short"] in commands else output

    def open_spare_request(self) -> int | None:
        return None

    def open_wide_request(self, borrow: Callable[[], AbstractContextManager[Sequence[int]]]) -> int | None:
        return None

    def verify_device(self, request: int) -> None:
        if self._broken:
            raise RuntimeError("the device is broken")

    def _run_command(self, command: list[str]) -> None:
        match command:
            case ["crash"]:
                os._exit(139)
            case ["segfault"]:
                ctypes.string_at(0)
            case ["raise"]:
                raise RuntimeError("ordered by the input")
            case ["break"]:
                self._broken = True
                raise RuntimeError("the device breaks")
            case ["hang"]:
                time.sleep(3600)
            case ["slow", seconds]:
                time.sleep(float(seconds))
            case ["wait", name]:
                while not (self._folder / name).exists():
                    time.sleep(0.01)
            case ["once", name, *rest] if not (self._folder / name).exists():
                (self._folder / name).touch()
                self._run_command(rest)


def scan_models(fakery: Fakery) -> Scan:
    """Return the models of the file `fakery.models`, or the fake model."""
    if not fakery.models:
        return Scan({"fake": "revision-1"})
    try:
        return Scan(json.loads(Path(fakery.models).read_text()))
    except ValueError as error:
        raise LoadError(f"{fakery.models} is not valid JSON: {error}") from None


def load_model(fakery: Fakery, name: str, version: Version) -> Loaded:
    """Return a model of the given revision, after the seconds that follow its name."""
    revision, _, seconds = str(version).partition(" ")
    if revision.endswith("!"):
        raise LoadError(f"the model {name} is damaged")
    time.sleep(float(seconds or 0))
    info = model(fakery.dimension, fakery.default_prompt)
    info = msgspec.structs.replace(info, aliases=fakery.aliases.split(",") if fakery.aliases else [])
    return Loaded(msgspec.structs.replace(info, name=name, revision=revision), FakeBackend(fakery, revision))


def serve(config: Config, fakery: Fakery) -> None:
    """Serve the fake models until drained."""
    logs.set_up("worker", config.log_level, config.log_format)
    threading.excepthook = end_process
    hello = wire.WorkerHello(
        wire.PROTOCOL_MIN,
        wire.PROTOCOL_MAX,
        "test",
        uuid.uuid4().bytes,
        time.time_ns(),
        socket.gethostname(),
        os.getpid(),
        "FAKE",
        [],
        batch_tokens=1024,
        tokens_per_s=100_000,
        credit=0,
    )
    wakeup = os.eventfd(0, os.EFD_NONBLOCK)
    scan, load_one = functools.partial(scan_models, fakery), functools.partial(load_model, fakery)
    catalog, first = Catalog(), scan()
    loader = Loader(scan, load_one, config.config_poll_s, lambda: os.eventfd_write(wakeup, 1))
    pipeline = Pipeline(lambda: os.eventfd_write(wakeup, 1))
    session = Session(hello, SLOTS)
    keeper = ModelKeeper(catalog, loader, session, pipeline, config.unload_idle_s)
    keeper.start(first, load_first(catalog, first, load_one, lambda _: None))
    Service(config, session, pipeline, keeper, wakeup).run()


def read_fakery(environ: dict[str, str]) -> Fakery:
    """Return the settings in the FAKE_* variables."""
    names = {name.removeprefix("FAKE_").lower(): text for name, text in environ.items() if name.startswith("FAKE_")}
    return Fakery(**{name: Fakery.__annotations__[name](text) for name, text in names.items()})


if __name__ == "__main__":
    serve(load(sys.argv[1:], {}), read_fakery(dict(os.environ)))
