"""Entry point of a worker, `python -m workers`: configuration, preparation of the model, service."""

import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
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
from workers.config import Config, load, make_options
from workers.engine.cpus import claim_part, count_cpus
from workers.models.default import NAME
from workers.models.json_files import ModelError
from workers.models.sources import choose_model_name, find_sources
from workers.session.catalog import Catalog, Version, repair_text
from workers.session.loader import Loaded, Loader, LoadError, Scan, load_safely, scan_safely
from workers.session.loading_notice import announce_loading
from workers.session.model_keeper import ModelKeeper

if TYPE_CHECKING:
    from workers.session.service import Service

log = logging.getLogger(__name__)


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
    """Load a model, then serve until drained. The other models are loaded meanwhile."""
    # No variable here has the first model, because its memory must be free after it is unloaded, replaced or removed.
    create_service(config).run()


def create_service(config: Config) -> "Service":
    """Return the service of a worker with its first model. Exit if there is none."""
    # OpenVINO runs on the CPUs that this process has when it is imported.
    claim_cpus(config)
    # These import OpenVINO, which takes a second; a wrong flag is reported before.
    from workers.engine.pipeline import Pipeline
    from workers.loading import load_model, scan_models
    from workers.session.service import Service
    from workers.session.session import SLOTS, Session

    started = time.monotonic()
    wakeup = os.eventfd(0, os.EFD_NONBLOCK)
    scan, load_one = functools.partial(scan_models, config), functools.partial(load_model, config)
    loading = wire.WorkerLoading(
        uuid.uuid4().bytes, socket.gethostname(), os.getpid(), repair_text(choose_name(config))
    )
    catalog = Catalog()
    try:
        with announce_loading(config, loading, (LoadError,)) as announce:
            first = scan_safely(scan)
            loaded = load_first(catalog, first, load_one, announce)
    except zmq.ZMQError as error:
        exit_refused("worker", f"could not connect to the broker: {error}; check --broker")
    except (LoadError, KeyFileError) as error:
        exit_refused("worker", error)
    log.info("started in %.1f s", time.monotonic() - started)
    poll_s = config.config_poll_s if config.config_path or config.model_repository_path else 0.0
    loader = Loader(scan, load_one, poll_s, lambda: os.eventfd_write(wakeup, 1))
    pipeline = Pipeline(lambda: os.eventfd_write(wakeup, 1))
    session = Session(make_hello(config, loading, loaded), SLOTS)
    keeper = ModelKeeper(catalog, loader, session, pipeline, config.unload_idle_s)
    keeper.start(first, loaded)
    return Service(config, session, pipeline, keeper, wakeup)


def claim_cpus(config: Config) -> None:
    """Run on this worker's part of the host's CPUs, and log which ones. A worker for other devices keeps all CPUs."""
    if not may_use_cpu(config):
        return
    folder = Path(config.cache).expanduser() / "cpus"
    available = len(os.sched_getaffinity(0))
    try:
        part = claim_part(folder, config.broker, config.host_workers, share_quota=config.share_quota)
    except OSError as error:
        log.warning("could not divide the CPUs among the workers of this host: %s; check --cache", error)
        return
    if part.number is None:
        text = "other workers run on the same %d CPUs; set --host-workers to the number of workers on this host"
        log.warning(text, len(part.cpus))
    elif (count := count_cpus()) < len(part.cpus):
        log.info("running on %d of %d CPUs at a time, because of a CPU quota", count, len(part.cpus))
    elif config.host_workers > 1:
        if part.number == 0 and config.host_workers > available:
            text = "%d workers share %d CPUs, so that some run on the same CPU; fewer workers give as many texts/s"
            log.warning(text, config.host_workers, available)
        numbers = ", ".join(map(str, part.cpus))
        log.info("running on CPUs %s, part %d of %d", numbers, part.number + 1, config.host_workers)


def may_use_cpu(config: Config) -> bool:
    """Return whether a model may run on a CPU, as far as that is known before models are fetched."""
    devices = [config.device]
    is_local = config.config_path or config.model_repository_path or (config.model and Path(config.model).exists())
    if is_local and not config.device:
        with contextlib.suppress(ModelError):
            found = find_sources(make_options(config), Path(config.cache).expanduser(), lambda _: None)
            devices = [source.overrides.device for source in found.sources]
    kinds = {device.partition(".")[0].upper() for device in devices}
    return not kinds or bool(kinds - {"GPU", "NPU"})


def choose_name(config: Config) -> str:
    """Return the name of the model that the worker will load, as far as it is known before."""
    if config.config_path or config.model_repository_path:
        return config.model_name or Path(config.config_path or config.model_repository_path).name
    return config.model_name or choose_model_name(Path(config.model or NAME))


def load_first(
    catalog: Catalog, first: Scan, load: Callable[[str, Version], Loaded], announce: Callable[[str], None]
) -> Loaded:
    """Return the first model of a scan that can be loaded. Raise `LoadError` with all reasons if none can.

    `announce` gets the name of each model before it is loaded.
    """
    catalog.configure(first.wanted, first.refused)
    for remark in first.remarks:
        log.warning("%s", remark)
    while begun := catalog.begin_load():
        announce(begun[0])
        try:
            loaded = load_safely(load, *begun)
        except LoadError as error:
            catalog.fail_load(str(error))
        else:
            for failure in catalog.list_failures():
                log.error("cannot serve %s", failure)
            catalog.end_load(loaded.info, time.monotonic())
            return loaded
    failures = catalog.list_failures()
    if len(failures) == 1:
        # The name is that of the folder in the error.
        failures = [failure.partition(": ")[2] for failure in failures]
    raise LoadError("; ".join(failures) or "the configuration lists no models; add one")


def make_hello(config: Config, loading: wire.WorkerLoading, loaded: Loaded) -> wire.WorkerHello:
    """Return the hello of the process that sent `loading`, with the figures of its first model."""
    return wire.WorkerHello(
        protocol_min=wire.PROTOCOL_MIN,
        protocol_max=wire.PROTOCOL_MAX,
        build=VERSION,
        uuid=loading.uuid,
        incarnation=time.time_ns(),
        host=loading.host,
        pid=loading.pid,
        device=loaded.device,
        models=[],
        batch_tokens=loaded.info.batch_tokens,
        tokens_per_s=loaded.info.tokens_per_s,
        credit=0,
        streams=loaded.backend.streams,
    )


def end_process(args: threading.ExceptHookArgs) -> None:
    """End the process after a thread of the pipeline died, because without it the worker answers no batch."""
    logging.getLogger(__name__).critical("thread %s died", args.thread, exc_info=args.exc_value)
    os._exit(HUNG_STATUS)


if __name__ == "__main__":
    main()
