"""What is owed to whom: the connected frontends, their open requests, and the deadlines. Pure.

A job enters with its request and leaves by `close`, once.
"""

import heapq
from collections import Counter
from collections.abc import Sequence

from broker.admission import Load
from broker.errors import LocalProtocolError
from broker.protocol import FrontendHello
from broker.queues import Job

#: Ended requests wait for their deadline to come up until there are this many more of them than open jobs.
MAX_ENDED = 1000


class Request:
    """An admitted request: its jobs that have no answer yet."""

    __slots__ = ("deadline", "inputs", "jobs", "number")

    def __init__(self, number: int, deadline: float, jobs: Sequence[Job]) -> None:
        self.number = number
        self.deadline = deadline
        self.inputs = len(jobs)
        #: Open jobs by position.
        self.jobs = {job.position: job for job in jobs}


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
        self.jobs = 0
        self.tokens = 0
        self.bytes = 0
        #: Open jobs of each client that has any.
        self.client_jobs: Counter[str | bytes] = Counter()
        #: (deadline, uuid, request); entries of ended requests are dropped when they come up.
        self._deadlines: list[tuple[float, bytes, int]] = []

    @property
    def load(self) -> Load:
        """All that is open."""
        return Load(self.jobs, self.tokens, self.bytes)

    def join(self, peer: bytes, hello: FrontendHello, now: float) -> None:
        """A session for a hello, where the process and the connection have none."""
        self.by_peer[peer] = self.by_uuid[hello.uuid] = Frontend(peer, hello, now)

    def leave(self, frontend: Frontend) -> None:
        """Forget a frontend that is owed nothing."""
        if frontend.requests:
            raise LocalProtocolError(f"frontend {frontend.name} leaves with open requests")
        self.by_peer.pop(frontend.peer, None)
        self.by_uuid.pop(frontend.uuid, None)

    def enter(self, frontend: Frontend, number: int, deadline: float, jobs: Sequence[Job]) -> None:
        """Record an admitted request; it has at least one job."""
        frontend.requests[number] = Request(number, deadline, jobs)
        heapq.heappush(self._deadlines, (deadline, frontend.uuid, number))
        if len(self._deadlines) > 2 * self.jobs + MAX_ENDED:
            self._rebuild_deadlines()
        self.jobs += len(jobs)
        self.tokens += sum(job.tokens for job in jobs)
        self.bytes += sum(job.bytes for job in jobs)
        self.client_jobs[jobs[0].client] += len(jobs)

    def close(self, job: Job) -> None:
        """End an open job: it has its answer, or will get none."""
        job.open = False
        job.payload = b""
        self.jobs -= 1
        self.tokens -= job.tokens
        self.bytes -= job.bytes
        self.client_jobs[job.client] -= 1
        if not self.client_jobs[job.client]:
            del self.client_jobs[job.client]
        frontend = self.by_uuid[job.owner]
        request = frontend.requests[job.request]
        del request.jobs[job.position]
        if not request.jobs:
            del frontend.requests[job.request]

    def pop_expired(self, now: float) -> list[tuple[Frontend, Request]]:
        """The open requests whose deadline has passed, each told once."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, uuid, number = heapq.heappop(self._deadlines)
            frontend = self.by_uuid.get(uuid)
            request = frontend.requests.get(number) if frontend else None
            if frontend and request and request.deadline == deadline:
                expired.append((frontend, request))
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
