"""`python -m frontend.batches`: run the batches of all clients until SIGTERM."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import zmq
from msgspec import Meta

from broker.shared import logs, settings
from broker.shared.descriptors import raise_descriptor_limit
from broker.shared.exit import exit_refused
from broker.shared.settings import SettingsError
from broker.wire.curve import KeyFileError, read_dealer_keys
from frontend.batches import metrics
from frontend.batches.errors import StoreError
from frontend.batches.runner import Runner
from frontend.batches.store import Store, open_store
from frontend.config import Config
from frontend.session.broker_client import BrokerClient
from frontend.session.link import check_endpoint

log = logging.getLogger(__name__)

#: Niceness of the process, so that frontends, which serve clients that wait, get the CPU first.
NICENESS = 5


class RunnerConfig(Config, frozen=True, kw_only=True):
    """The settings of a runner: those of a frontend, because the answers are the same, and two of its own."""

    metrics_bind: Annotated[str, Meta(description="HOST:PORT of /metrics; empty: none")] = ""
    health_file: Annotated[str, Meta(description="file that is touched every second; empty: none")] = ""


def main() -> None:
    """Run until SIGTERM. Exit with 0 after a drain, and with 2 if a setting, a file or an address cannot be used."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_descriptor_limit()
    text = "Vecmill's runner of batches. It has the settings of a frontend; those of HTTP have no effect."
    try:
        config = settings.load(
            RunnerConfig, "VECMILL_FRONTEND_", "python -m frontend.batches", text, sys.argv[1:], os.environ
        )
        if not config.data:
            raise SettingsError("--data is empty, but must be the folder of the files and batches")
        if config.keys:
            read_dealer_keys(Path(config.keys), "frontend")
        check_endpoint(config.broker)
        logs.set_up("batches", config.log_level, config.log_format)
        store = open_store(config)
        store.check_at_start()
    except (SettingsError, KeyFileError, StoreError) as error:
        exit_refused("batches", error)
    except zmq.ZMQError as error:
        exit_refused("batches", f"cannot connect to the broker at {config.broker}: {error}")
    try:
        metrics.serve(config.metrics_bind)
    except (OSError, ValueError) as error:
        exit_refused("batches", f"cannot serve metrics at {config.metrics_bind}: {error}")
    os.nice(NICENESS)
    asyncio.run(run(store, config))


async def run(store: Store, config: RunnerConfig) -> None:
    """Run batches until SIGTERM or SIGINT."""
    broker = BrokerClient(config)
    broker.open()
    runner = Runner(store, broker, config, config.health_file)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, runner.drain)
    log.info("runs batches of %s", config.data)
    await runner.run()
    broker.close()
    await asyncio.to_thread(store.database.close)


if __name__ == "__main__":
    main()
