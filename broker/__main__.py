"""`python -m broker`: read the configuration, set up logging, run the service."""

import logging
import os
import signal
import sys

import zmq

from broker.shared import logs
from broker.shared.settings import SettingsError
from broker.shell.config import load
from broker.shell.curve_auth import GateError
from broker.shell.service import ConfigError, Service, describe
from broker.wire.curve import KeyFileError


def main() -> None:
    """Exit status 0 after a drain, 2 for a configuration that is refused."""
    # Until the service listens for it: a reload ends no process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        config = load(sys.argv[1:], os.environ)
    except SettingsError as error:
        print(f"vecmill broker: {error}", file=sys.stderr)
        sys.exit(2)
    logs.set_up("broker", config.log_level, config.log_format)
    logging.getLogger(__name__).info("starting: %s", describe(config))
    try:
        Service(config).run()
    except (ConfigError, GateError, KeyFileError, OSError, zmq.ZMQError) as error:
        print(f"vecmill broker: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
