"""`python -m broker`: read the configuration, set up the log, run the service."""

import logging
import os
import signal
import sys

import msgspec
import zmq

from broker.shared import logs
from broker.shared.descriptors import raise_descriptor_limit
from broker.shared.exit import exit_refused
from broker.shared.settings import SettingsError
from broker.shell.config import load
from broker.shell.curve_auth import CurveAuthError
from broker.shell.routers import ConfigError
from broker.shell.service import Service
from broker.wire.curve import KeyFileError


def main() -> None:
    """Run a broker. Exit with status 0 after a drain, and with 2 if the broker cannot start."""
    # Ignored until the service handles it: a reload must not end a process that is starting.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_descriptor_limit()
    try:
        config = load(sys.argv[1:], os.environ)
    except SettingsError as error:
        exit_refused("broker", error)
    logs.set_up("broker", config.log_level, config.log_format)
    settings = " ".join(f"{name}={value}" for name, value in msgspec.structs.asdict(config).items() if value != "")
    logging.getLogger(__name__).info("starting: %s", settings)
    try:
        Service(config).run()
    except (ConfigError, CurveAuthError, KeyFileError, OSError, zmq.ZMQError) as error:
        exit_refused("broker", error)


if __name__ == "__main__":
    main()
