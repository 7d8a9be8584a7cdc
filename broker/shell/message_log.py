"""Log of what the broker receives and sends."""

import logging
import math
import time
from collections.abc import Callable

from broker.shared.version import VERSION
from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode, RemoteProtocolError

log = logging.getLogger(__name__)

#: The first 100 malformed messages are logged, and then every 100th.
LOGGED_MALFORMED = 100
#: Most versions of peers that are warned of, each once.
MAX_WARNED_VERSIONS = 16
#: Codes of refused hellos, which peers repeat.
REFUSALS = (ErrorCode.PROTOCOL, ErrorCode.REVISION_CONFLICT, ErrorCode.REVOKED)
#: A refusal of one peer for one reason is logged once in this many seconds.
REPEATED_S = 60.0
#: Most refused peers that are remembered.
MAX_REFUSED = 1000


class MessageLog:
    """Writes the log lines of messages, with fields for `--log-format json`. Inputs are never logged."""

    def __init__(self, find_worker_name: Callable[[bytes], str]) -> None:
        self._find_worker_name = find_worker_name
        self._warned_versions: set[tuple[str, str]] = set()
        #: When the refusal of each peer was logged, and its text. The oldest is first.
        self._refused: dict[bytes, tuple[float, str]] = {}

    def log_received(self, peer: bytes, message: wire.Message) -> None:
        """Log a hello, and how a batch ended."""
        match message:
            case wire.FrontendHello() if not self._was_refused(peer):
                self._log_hello("frontend", message)
            case wire.WorkerHello() if not self._was_refused(peer):
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
            if message.code in REFUSALS and not self._record_refusal(peer, message.text):
                return
            level = logging.INFO if message.code == ErrorCode.DRAINING else logging.WARNING
            log.log(level, "session closed: %s: %s", message.code.name, message.text)
        elif isinstance(message, wire.Welcome) and peer in self._refused:
            del self._refused[peer]
            log.info("accepted a peer that was refused before")
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

    def _was_refused(self, peer: bytes) -> bool:
        """Return whether the refusal of a peer was logged a short while ago."""
        return time.monotonic() < self._refused.get(peer, (-math.inf, ""))[0] + REPEATED_S

    def _record_refusal(self, peer: bytes, text: str) -> bool:
        """Return whether to log a refusal, because the same one was not logged a short while ago."""
        if self._was_refused(peer) and self._refused[peer][1] == text:
            return False
        self._refused.pop(peer, None)
        self._refused[peer] = time.monotonic(), text
        if len(self._refused) > MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        return True

    def _log_hello(self, role: str, hello: wire.FrontendHello | wire.WorkerHello) -> None:
        version = hello.build or "unknown"
        log.info("hello from %s %s/%d, version %s", role, hello.host, hello.pid, version)
        is_new = (role, version) not in self._warned_versions and len(self._warned_versions) < MAX_WARNED_VERSIONS
        if version != VERSION and is_new:
            self._warned_versions.add((role, version))
            text = "%s %s has version %s, but the broker has version %s; run the same version everywhere"
            log.warning(text, role, f"{hello.host}/{hello.pid}", version, VERSION)
