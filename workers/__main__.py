"""`python -m workers`: read the configuration, prepare and compile the model, run the service."""

import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import zmq

from broker.shared import logs
from broker.shared.settings import SettingsError
from broker.shared.version import VERSION
from broker.wire import protocol as wire
from broker.wire.curve import KeyFileError
from workers.config import Config, load
from workers.session.loading_notice import announce_loading

if TYPE_CHECKING:
    from workers.engine.engine import Engine
    from workers.models.prepare import PreparedModel


class Process(NamedTuple):
    """Who this is."""

    uuid: bytes
    host: str
    pid: int


def main() -> None:
    """Exit status 0 after a drain, 2 for a configuration, model, device, key or address that cannot be used."""
    # A worker has nothing to read anew.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        config = load(sys.argv[1:], os.environ)
    except SettingsError as error:
        refuse(error)
    logs.set_up("worker", config.log_level, config.log_format)
    threading.excepthook = end_process
    # The heartbeat's thread must get its turn soon while others hold the interpreter.
    sys.setswitchinterval(0.001)
    serve(config)


def refuse(reason: object) -> NoReturn:
    """End, as nothing can be served; the reason is one sentence."""
    print(f"vecmill worker: {reason}", file=sys.stderr)
    sys.exit(2)


def serve(config: Config) -> None:
    """Prepare the model, then serve until drained."""
    # These import OpenVINO: a wrong flag should not wait a second to be told.
    from workers.engine.engine import DeviceError, Engine
    from workers.engine.pipeline import Pipeline
    from workers.models.default import NAME, fetch_default_model
    from workers.models.folder import ModelError
    from workers.models.prepare import prepare_model
    from workers.session.service import Service
    from workers.session.session import SLOTS, Session

    log = logging.getLogger(__name__)
    cache = Path(config.cache).expanduser()
    started = time.monotonic()
    me = Process(uuid.uuid4().bytes, socket.gethostname(), os.getpid())
    name = config.model_name or choose_model_name(Path(config.model or NAME))
    loading = wire.WorkerLoading(me.uuid, me.host, me.pid, name)
    try:
        with announce_loading(config, loading, (ModelError, DeviceError)):
            folder = Path(config.model) if config.model else fetch_default_model(cache, log.info)
            prepared = prepare_model(folder, cache, log.info)
            engine = Engine(prepared, config.device, config.streams, cache)
            engine.warm_up()
    except (ModelError, DeviceError, KeyFileError, zmq.ZMQError) as error:
        refuse(error)
    batch_tokens = max(engine.micro_batch_tokens, int(engine.tokens_per_second * config.batch_ms / 1000))
    log.info(
        "%s revision %s on %s: %d streams, %.0f tokens/s, micro-batches of %d, batches of %d tokens; ready in %.1f s",
        name,
        prepared.revision,
        config.device,
        engine.streams,
        engine.tokens_per_second,
        engine.micro_batch_tokens,
        batch_tokens,
        time.monotonic() - started,
    )
    hello = wire.WorkerHello(
        protocol_min=wire.PROTOCOL_MIN,
        protocol_max=wire.PROTOCOL_MAX,
        build=VERSION,
        uuid=me.uuid,
        incarnation=time.time_ns(),
        host=me.host,
        pid=me.pid,
        device=config.device,
        models=[describe(name, prepared, engine)],
        batch_tokens=batch_tokens,
        tokens_per_s=max(1, int(engine.tokens_per_second)),
        credit=0,
        streams=engine.streams,
    )
    wakeup = os.eventfd(0, os.EFD_NONBLOCK)
    pipeline = Pipeline(engine, lambda: os.eventfd_write(wakeup, 1))
    Service(config, Session(hello, SLOTS), pipeline, wakeup).run()


def describe(name: str, prepared: "PreparedModel", engine: "Engine") -> wire.ModelInfo:
    """The model as it is announced."""
    return wire.ModelInfo(
        name=name,
        revision=prepared.revision,
        dimension=prepared.dimension,
        max_tokens=prepared.max_tokens,
        vocabulary=prepared.vocabulary_size,
        pad_id=prepared.pad_id,
        before=engine.before.tolist(),
        after=engine.after.tolist(),
        normalized=prepared.normalize,
        prompts=prepared.prompts.texts,
        default_prompt=prepared.prompts.default,
        matryoshka=prepared.matryoshka.declared,
        matryoshka_dimensions=prepared.matryoshka.dimensions,
    )


def choose_model_name(folder: Path) -> str:
    """What a model is served as when nobody names it: its folder's name; the default model by its known name."""
    name = folder.resolve().name
    return f"sentence-transformers/{name}" if name == "all-MiniLM-L6-v2" else name


def end_process(args: threading.ExceptHookArgs) -> None:
    """A thread of the pipeline died: a worker that only looks alive is worse than a dead one."""
    logging.getLogger(__name__).critical("thread %s died", args.thread, exc_info=args.exc_value)
    os._exit(70)


if __name__ == "__main__":
    main()
