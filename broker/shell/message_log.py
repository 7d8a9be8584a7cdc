"""Log of what the broker receives and sends."""

import logging
from collections.abc import Callable

from broker.shared.version import VERSION
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, RemoteProtocolError

log = logging.getLogger(__name__)

#: The first 100 malformed messages are logged, and then every 100th.
LOGGED_MALFORMED = 100
#: Most versions of peers that are warned of, each once.
MAX_WARNED_VERSIONS = 16


class MessageLog:
    """Writes the log lines of messages, with fields for `--log-format json`. Inputs are never logged."""

    def __init__(self, find_worker_name: Callable[[bytes], str]) -> None:
        self._find_worker_name = find_worker_name
        self._warned_versions: set[tuple[str, str]] = set()

    def log_received(self, peer: bytes, message: wire.Message) -> None:
        """Log a hello, and how a batch ended."""
        match message:
            case wire.FrontendHello():
                self._log_hello("frontend", message)
            case wire.WorkerHello():
                self._log_hello("worker", message)
            case wire.BatchError():
                fields = {"batch": message.batch, "worker": self._find_worker_name(peer)}
                log.warning("batch %d failed: %s: %s", message.batch, message.code.name, message.text, extra=fields)
            case wire.BatchResult() if log.isEnabledFor(logging.DEBUG):
                worker = self._find_worker_name(peer)
                result = {"batch": message.batch, "worker": worker, "inference_us": message.inference_us}
                log.debug("batch %d answered", message.batch, extra=result)

    def log_sent(self, peer: bytes, message: wire.Message) -> None:
        """Log a dispatched batch with the requests that it serves, and the end of a session."""
        if isinstance(message, wire.Goodbye):
            level = logging.INFO if message.code == ErrorCode.DRAINING else logging.WARNING
            log.log(level, "session closed: %s: %s", message.code.name, message.text)
        elif isinstance(message, wire.Batch) and log.isEnabledFor(logging.DEBUG):
            fields = {
                "batch": message.batch,
                "model": message.model,
                "worker": self._find_worker_name(peer),
                "jobs": len(message.kinds),
                "request_ids": [origin.request_id for origin in message.origins],
                "trace_ids": [origin.trace_id for origin in message.origins if origin.trace_id],
            }
            log.debug("batch %d of %d jobs to %s", message.batch, len(message.kinds), fields["worker"], extra=fields)

    def log_malformed(self, error: RemoteProtocolError, number: int) -> None:
        """Log a message that could not be decoded, the `number`-th since the start, unless there are very many."""
        if number <= LOGGED_MALFORMED or number % LOGGED_MALFORMED == 0:
            log.warning("malformed message ignored (%d so far): %s", number, error)

    def _log_hello(self, role: str, hello: wire.FrontendHello | wire.WorkerHello) -> None:
        version = hello.build or "unknown"
        log.info("hello from %s %s/%d, version %s", role, hello.host, hello.pid, version)
        is_new = (role, version) not in self._warned_versions and len(self._warned_versions) < MAX_WARNED_VERSIONS
        if version != VERSION and is_new:
            self._warned_versions.add((role, version))
            text = "%s %s has version %s, but the broker has version %s; run the same version everywhere"
            log.warning(text, role, f"{hello.host}/{hello.pid}", version, VERSION)
