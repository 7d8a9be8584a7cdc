"""`python -m frontend`: read the configuration, listen, and run Sanic in one process or several."""

import logging
import os
import signal
import ssl
import sys
from pathlib import Path

import zmq
from sanic import Sanic

from broker.shared import logs
from broker.shared.descriptors import raise_descriptor_limit
from broker.shared.exit import exit_refused
from broker.shared.files import explain, read_small_file
from broker.shared.settings import SettingsError
from broker.wire.curve import KeyFileError, read_dealer_keys
from broker.wire.sockets import is_loopback
from frontend.batches.errors import StoreError
from frontend.batches.store import open_store
from frontend.config import Config, load
from frontend.listening import adopt_sockets, describe_refusal, open_sockets
from frontend.processes import share_port
from frontend.rest.api_keys import Keys, KeysError
from frontend.rest.app import DRAIN_S, create_app, serve_sockets
from frontend.rest.http_protocol import Connection, limit_unread
from frontend.session.link import check_endpoint
from frontend.welcome import list_published_hosts

log = logging.getLogger(__name__)

#: Maximum size of a file with a certificate chain or a key.
MAX_PEM_BYTES = 1 << 20


class TlsError(Exception):
    """The certificate or its key cannot be used. The text is one sentence for the operator."""


def main() -> None:
    """Run until SIGTERM. Exit with 0 after a drain, and with 2 if a setting, a file or an address cannot be used."""
    # Until the handler that reloads the keys is installed.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_descriptor_limit()
    try:
        config = load(sys.argv[1:], os.environ)
        keys = Keys(config.api_keys, os.environ.get("API_KEY", ""))
        tls = make_tls_context(config)
        if config.keys:
            read_dealer_keys(Path(config.keys), "frontend")
        check_endpoint(config.broker)
        if config.data:
            store = open_store(config)
            store.check_at_start()
            store.database.close()
    except (SettingsError, KeysError, KeyFileError, StoreError, TlsError) as error:
        exit_refused("frontend", error)
    except zmq.ZMQError as error:
        exit_refused("frontend", f"cannot connect to the broker at {config.broker}: {error}")
    try:
        sockets = adopt_sockets(config.listen_fds) if config.listen_fds else open_sockets(config.host, config.port)
        for listening in sockets:
            limit_unread(listening, config.send_timeout_s)
    except OSError as error:
        exit_refused("frontend", describe_refusal(config.host, config.port, error))
    logs.set_up("frontend", config.log_level, config.log_format)
    if not (keys.required or config.listen_fds or all(map(is_loopback, list_published_hosts(config.host, os.environ)))):
        text = "no API key is required on %s, so everybody who reaches this address can use the server; set --api-keys"
        log.warning(text, config.host)
    if config.processes > 1:
        sys.exit(share_port(config.processes, sockets, sys.argv[1:], DRAIN_S + 5))
    if config.log_level == "info":
        # Sanic logs its own words for a start and a stop.
        logging.getLogger("sanic").setLevel(logging.WARNING)
    app = create_app(config, keys)
    # Set before `prepare`, which would warn on a terminal that Sanic is not in development mode.
    os.environ["SANIC_IGNORE_PRODUCTION_WARNING"] = "true"
    # Sanic serves one socket itself.
    first, *others = sockets
    serve_sockets(app, others, tls)
    app.prepare(sock=first, single_process=True, motd=False, access_log=False, protocol=Connection, ssl=tls)
    Sanic.serve_single(primary=app)


def make_tls_context(config: Config) -> ssl.SSLContext | None:
    """Return the TLS context of the configured certificate, or None without one.

    Raise `TlsError` if the certificate or its key cannot be used.
    """
    if not config.tls_cert:
        if config.tls_key:
            raise SettingsError("--tls-key is given without --tls-cert; give both for TLS, or neither for plain HTTP")
        return None
    key = config.tls_key or config.tls_cert
    refusal = f"the certificate {config.tls_cert} and the key {key} cannot be used"
    for path in (config.tls_cert, key):
        try:
            # OpenSSL blocks on a FIFO, and its error does not name the file.
            read_small_file(Path(path), MAX_PEM_BYTES)
        except (OSError, ValueError) as error:
            raise TlsError(f"{refusal}: {path}: {explain(error)}") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # An empty pass phrase, so that OpenSSL does not prompt for one at the terminal.
        context.load_cert_chain(config.tls_cert, key, password="")
    except OSError as error:  # the base class of ssl.SSLError
        hint = "both must be PEM and belong together, and the key must have no pass phrase"
        raise TlsError(f"{refusal}: {explain(error)}; {hint}") from None
    return context


if __name__ == "__main__":
    main()
