"""`python -m broker`: read the configuration, set up the log, run the service."""

import logging
import os
import signal
import sys
from typing import NoReturn

import msgspec
import zmq

from broker.shared import logs
from broker.shared.descriptors import raise_descriptor_limit
from broker.shared.settings import SettingsError
from broker.shell.config import load
from broker.shell.curve_auth import CurveAuthError
from broker.shell.routers import ConfigError
from broker.shell.service import Service
from broker.wire.curve import KeyFileError

#: Exit status for what no restart can repair, such as an invalid setting or a taken port.
REFUSED = 2


def main() -> None:
    """Run a broker. Exit with status 0 after a drain, and with 2 if the broker cannot start."""
    # Ignored until the service handles it: a reload must not end a process that is starting.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_descriptor_limit()
    try:
        config = load(sys.argv[1:], os.environ)
    except SettingsError as error:
        refuse_start(error)
    logs.set_up("broker", config.log_level, config.log_format)
    settings = " ".join(f"{name}={value}" for name, value in msgspec.structs.asdict(config).items() if value != "")
    logging.getLogger(__name__).info("starting: %s", settings)
    try:
        Service(config).run()
    except (ConfigError, CurveAuthError, KeyFileError, OSError, zmq.ZMQError) as error:
        refuse_start(error)


def refuse_start(error: Exception) -> NoReturn:
    """Print why the broker cannot start, and exit."""
    print(f"vecmill broker: {error}", file=sys.stderr)
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
