"""Connected frontends, their open requests, totals of all open jobs, and deadlines. Pure.

A request enters with all its jobs. Each job leaves exactly once: by `close_jobs`, or with its request by
`close_request`.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence

from broker.core.jobs import Job, Request
from broker.wire.errors import LocalProtocolError
from broker.wire.protocol import FrontendHello, ModelKey

#: Deadlines of ended requests are removed once there are this many more of them than open requests.
MAX_ENDED = 1000
#: Most requests that expire in one call, so that the call stays short; the next call continues.
MAX_EXPIRED = 100


class Frontend:
    """One frontend process on one connection."""

    def __init__(self, peer: bytes, hello: FrontendHello, now: float) -> None:
        self.peer = peer
        self.uuid = hello.uuid
        self.name = f"{hello.host}/{hello.pid}"
        self.last_heard = now
        self.requests: dict[int, Request] = {}
        #: Bytes of vectors since the last hello: sent by the broker, and received as the frontend reports; -1 before
        #: the first report.
        self.sent, self.received = 0, -1

    def __repr__(self) -> str:
        return f"<Frontend {self.name}, {len(self.requests)} open requests>"

    @property
    def unread(self) -> int:
        """Bytes of vectors sent but not reported as received; 0 before the first report."""
        return self.sent - self.received if self.received >= 0 else 0


class Ledger:
    """All frontends and their open requests, with totals over all open jobs."""

    def __init__(self, liveness_s: float) -> None:
        self.liveness_s = liveness_s
        self.by_peer: dict[bytes, Frontend] = {}
        self.by_uuid: dict[bytes, Frontend] = {}
        self.requests = 0
        self.jobs = 0
        self.tokens = 0
        self.bytes = 0
        #: Open jobs by client and by address (see `Request.holders`).
        self.holder_jobs: Counter[str | bytes] = Counter()
        #: Open requests by model.
        self.model_requests: Counter[ModelKey] = Counter()
        #: Heap of (deadline, frontend's uuid, request number). Entries of ended requests are skipped when they come up.
        self._deadlines: list[tuple[float, bytes, int]] = []

    def add_frontend(self, peer: bytes, hello: FrontendHello, now: float) -> Frontend:
        """Add and return a frontend; neither its process nor its connection may be known."""
        frontend = self.by_peer[peer] = self.by_uuid[hello.uuid] = Frontend(peer, hello, now)
        return frontend

    def remove_frontend(self, frontend: Frontend) -> None:
        """Remove a frontend. Raise `LocalProtocolError` if it has open requests."""
        if frontend.requests:
            raise LocalProtocolError(f"frontend {frontend.name} was removed with open requests")
        self.by_peer.pop(frontend.peer, None)
        self.by_uuid.pop(frontend.uuid, None)

    def open_request(self, frontend: Frontend, request: Request) -> None:
        """Add an admitted request, which has at least one input."""
        frontend.requests[request.number] = request
        heapq.heappush(self._deadlines, (request.deadline, frontend.uuid, request.number))
        self.requests += 1
        self.model_requests[request.model] += 1
        if len(self._deadlines) > 2 * self.requests + MAX_ENDED:
            self._rebuild_deadlines()
        request.open_jobs, request.open_tokens, request.open_bytes = request.inputs, request.tokens, request.size
        self._add_totals(request.holders, request.open_jobs, request.open_tokens, request.open_bytes)

    def close_jobs(self, request: Request, jobs: Sequence[Job]) -> None:
        """Close open jobs of one request that were answered or failed."""
        tokens = size = 0
        for job in jobs:
            job.is_open = False
            del request.jobs[job.position]
            tokens += job.tokens
            size += job.size
        request.open_jobs -= len(jobs)
        request.open_tokens -= tokens
        request.open_bytes -= size
        self._add_totals(request.holders, -len(jobs), -tokens, -size)
        if not request.open_jobs:
            self._remove_request(request)

    def close_request(self, request: Request) -> None:
        """Close all open jobs of a request."""
        for job in request.jobs.values():
            job.is_open = False
        self._add_totals(request.holders, -request.open_jobs, -request.open_tokens, -request.open_bytes)
        request.open_jobs = request.open_tokens = request.open_bytes = 0
        self._remove_request(request)

    def _remove_request(self, request: Request) -> None:
        self.requests -= 1
        self.model_requests[request.model] -= 1
        if not self.model_requests[request.model]:
            del self.model_requests[request.model]
        del self.by_uuid[request.owner].requests[request.number]
        request.release_inputs()

    def _add_totals(self, holders: Iterable[str | bytes], jobs: int, tokens: int, size: int) -> None:
        self.jobs += jobs
        self.tokens += tokens
        self.bytes += size
        for holder in holders:
            self.holder_jobs[holder] += jobs
            if not self.holder_jobs[holder]:
                del self.holder_jobs[holder]

    def pop_expired(self, now: float) -> list[Request]:
        """Return open requests past their deadline, each once, and at most `MAX_EXPIRED` in a call."""
        expired: list[Request] = []
        while self._deadlines and self._deadlines[0][0] <= now and len(expired) < MAX_EXPIRED:
            deadline, uuid, number = heapq.heappop(self._deadlines)
            frontend = self.by_uuid.get(uuid)
            request = frontend.requests.get(number) if frontend else None
            if request and request.deadline == deadline:
                expired.append(request)
        return expired

    def _rebuild_deadlines(self) -> None:
        self._deadlines = [
            (request.deadline, frontend.uuid, request.number)
            for frontend in self.by_uuid.values()
            for request in frontend.requests.values()
        ]
        heapq.heapify(self._deadlines)

    def find_silent(self, now: float) -> list[Frontend]:
        """Return the frontends that have sent no message for `liveness_s`."""
        return [frontend for frontend in self.by_uuid.values() if now >= frontend.last_heard + self.liveness_s]

    def next_deadline(self) -> float | None:
        """Return the earliest time at which `pop_expired` or `find_silent` can find something; None without any."""
        times = [frontend.last_heard + self.liveness_s for frontend in self.by_uuid.values()]
        times += [self._deadlines[0][0]] if self._deadlines else []
        return min(times, default=None)
