"""Entry point of a worker, `python -m workers`: configuration, preparation of the model, service."""

import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from broker.shared import logs
from broker.shared.descriptors import raise_descriptor_limit
from broker.shared.exit import HUNG_STATUS, exit_refused
from broker.shared.settings import SettingsError
from broker.shared.version import VERSION
from broker.wire import protocol as wire
from broker.wire.curve import KeyFileError
from workers.config import Config, load
from workers.models.sources import choose_model_name
from workers.session.loading_notice import announce_loading, repair_text

if TYPE_CHECKING:
    from workers.engine.engine import Engine
    from workers.models.prepare import PreparedModel


def main() -> None:
    """Run a worker. Exit with 0 after a drain, 2 if a setting, model, device or key cannot be used, 70 if it hangs."""
    # A worker has no files to reload.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_descriptor_limit()
    try:
        config = load(sys.argv[1:], os.environ)
    except SettingsError as error:
        exit_refused("worker", error)
    logs.set_up("worker", config.log_level, config.log_format)
    threading.excepthook = end_process
    # In seconds. The thread that sends heartbeats must not wait long for threads that hold the interpreter.
    sys.setswitchinterval(0.001)
    serve(config)


def serve(config: Config) -> None:
    """Prepare the model, then serve until drained."""
    # These import OpenVINO, which takes a second; a wrong flag is reported before.
    from workers.engine.engine import DeviceError, Engine
    from workers.engine.pipeline import Pipeline
    from workers.models.default import NAME, find_folder
    from workers.models.json_files import ModelError
    from workers.models.prepare import prepare_model
    from workers.session.service import Service
    from workers.session.session import SLOTS, Session

    log = logging.getLogger(__name__)
    cache = Path(config.cache).expanduser()
    started = time.monotonic()
    name = repair_text(config.model_name or choose_model_name(Path(config.model or NAME)))
    loading = wire.WorkerLoading(uuid.uuid4().bytes, socket.gethostname(), os.getpid(), name)
    try:
        with announce_loading(config, loading, (ModelError, DeviceError)):
            folder = find_folder(config.model, cache, log.info)
            prepared = prepare_model(folder, cache, log.info)
            engine = Engine(prepared, config.device, config.streams, cache)
            engine.warm_up()
    except zmq.ZMQError as error:
        exit_refused("worker", f"could not connect to the broker: {error}; check --broker")
    except (ModelError, DeviceError, KeyFileError) as error:
        exit_refused("worker", error)
    hello = make_hello(config, loading, prepared, engine)
    log.info(
        "serving %s revision %s on %s: %d streams, %.0f tokens/s, micro-batches of %d and batches of %d tokens; "
        "started in %.1f s",
        name,
        prepared.revision,
        config.device,
        engine.streams,
        engine.tokens_per_second,
        engine.micro_batch_tokens,
        hello.batch_tokens,
        time.monotonic() - started,
    )
    wakeup = os.eventfd(0, os.EFD_NONBLOCK)
    pipeline = Pipeline(lambda: os.eventfd_write(wakeup, 1))
    pipeline.add_model(hello.models[0].key, engine)
    Service(config, Session(hello, SLOTS), pipeline, wakeup).run()


def make_hello(
    config: Config, loading: wire.WorkerLoading, prepared: "PreparedModel", engine: "Engine"
) -> wire.WorkerHello:
    """Return the hello of the process that sent `loading`. A batch of its size takes `batch_ms` on the device."""
    batch_tokens = int(engine.tokens_per_second * config.batch_ms / 1000)
    return wire.WorkerHello(
        protocol_min=wire.PROTOCOL_MIN,
        protocol_max=wire.PROTOCOL_MAX,
        build=VERSION,
        uuid=loading.uuid,
        incarnation=time.time_ns(),
        host=loading.host,
        pid=loading.pid,
        device=config.device,
        models=[describe_model(loading.model, prepared, engine)],
        batch_tokens=min(2**32 - 1, max(engine.micro_batch_tokens, batch_tokens)),
        tokens_per_s=max(1, int(engine.tokens_per_second)),
        credit=0,
        streams=engine.streams,
    )


def describe_model(name: str, prepared: "PreparedModel", engine: "Engine") -> wire.ModelInfo:
    """Return the model as the worker announces it."""
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


def end_process(args: threading.ExceptHookArgs) -> None:
    """End the process after a thread of the pipeline died, because without it the worker answers no batch."""
    logging.getLogger(__name__).critical("thread %s died", args.thread, exc_info=args.exc_value)
    os._exit(HUNG_STATUS)


if __name__ == "__main__":
    main()
