"""What is owed to whom: the connected frontends, their open requests, and the deadlines. Pure.

A request enters with all its jobs. A job leaves by `close`, or with its request by `close_request`, once.
"""

import heapq
from collections import Counter
from collections.abc import Iterable

from broker.core.admission import Load
from broker.core.jobs import Job, Request
from broker.wire.errors import LocalProtocolError
from broker.wire.protocol import FrontendHello

#: Ended requests wait for their deadline to come up until there are this many more of them than open ones.
MAX_ENDED = 1000
#: Requests that expire in one call at most, so that the call stays short; the next call goes on.
MAX_EXPIRED = 100


class Frontend:
    """One frontend process on one connection."""

    def __init__(self, peer: bytes, hello: FrontendHello, now: float) -> None:
        self.peer = peer
        self.uuid = hello.uuid
        self.name = f"{hello.host}/{hello.pid}"
        self.last_heard = now
        self.requests: dict[int, Request] = {}
        #: Bytes of vectors since its last hello: sent to it, and received as it says, -1 while it does not say.
        self.sent, self.received = 0, -1

    @property
    def unread(self) -> int:
        """Bytes of vectors that it says it has not received."""
        return self.sent - self.received if self.received >= 0 else 0


class Ledger:
    """All frontends, and all open jobs."""

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
        #: (deadline, uuid, request); entries of ended requests are dropped when they come up.
        self._deadlines: list[tuple[float, bytes, int]] = []

    @property
    def load(self) -> Load:
        """All that is open."""
        return Load(self.jobs, self.tokens, self.bytes)

    def join(self, peer: bytes, hello: FrontendHello, now: float) -> None:
        """Begin a session for a hello, where the process and the connection have none."""
        self.by_peer[peer] = self.by_uuid[hello.uuid] = Frontend(peer, hello, now)

    def leave(self, frontend: Frontend) -> None:
        """Forget a frontend that is owed nothing."""
        if frontend.requests:
            raise LocalProtocolError(f"frontend {frontend.name} leaves with open requests")
        self.by_peer.pop(frontend.peer, None)
        self.by_uuid.pop(frontend.uuid, None)

    def enter(self, frontend: Frontend, request: Request) -> None:
        """Record an admitted request; it has at least one input."""
        frontend.requests[request.number] = request
        heapq.heappush(self._deadlines, (request.deadline, frontend.uuid, request.number))
        self.requests += 1
        if len(self._deadlines) > 2 * self.requests + MAX_ENDED:
            self._rebuild_deadlines()
        request.open_jobs, request.open_tokens, request.open_bytes = request.inputs, request.tokens, request.bytes
        self._count(request.holders, request.open_jobs, request.open_tokens, request.open_bytes)

    def close(self, job: Job) -> None:
        """End an open job: it has its answer, or will get none."""
        request = job.request
        job.open = False
        del request.jobs[job.position]
        request.open_jobs -= 1
        request.open_tokens -= job.tokens
        request.open_bytes -= job.bytes
        self._count(request.holders, -1, -job.tokens, -job.bytes)
        if not request.open_jobs:
            self._end(request)

    def close_request(self, request: Request) -> None:
        """End all that is open of a request."""
        for job in request.jobs.values():
            job.open = False
        self._count(request.holders, -request.open_jobs, -request.open_tokens, -request.open_bytes)
        request.open_jobs = request.open_tokens = request.open_bytes = 0
        self._end(request)

    def _end(self, request: Request) -> None:
        self.requests -= 1
        del self.by_uuid[request.owner].requests[request.number]
        request.release()

    def _count(self, holders: Iterable[str | bytes], jobs: int, tokens: int, size: int) -> None:
        self.jobs += jobs
        self.tokens += tokens
        self.bytes += size
        for holder in holders:
            self.holder_jobs[holder] += jobs
            if not self.holder_jobs[holder]:
                del self.holder_jobs[holder]

    def pop_expired(self, now: float) -> list[Request]:
        """Return open requests whose deadline has passed, each once, and at most `MAX_EXPIRED` in a call."""
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

    def silent(self, now: float) -> list[Frontend]:
        """Frontends not heard of for too long."""
        return [one for one in self.by_uuid.values() if now >= one.last_heard + self.liveness_s]

    def next_deadline(self) -> float | None:
        """When `pop_expired` or `silent` may next find something."""
        times = [frontend.last_heard + self.liveness_s for frontend in self.by_uuid.values()]
        times += [self._deadlines[0][0]] if self._deadlines else []
        return min(times, default=None)
