"""Waiting inputs of one client in one lane that may leave, and which of them a batch takes. Pure.

Inputs leave in the order of their requests, and within a request in the order of their positions; those that return
from a worker leave first. The broker does not sort them by length: workers sort the inputs of a batch, and do without
padding where they can.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from broker.core.jobs import Job, Request

#: Most jobs and bytes of a batch, so that neither the batch nor its result exceeds a frame, for vectors of up to 4,096
#: values.
MAX_BATCH_JOBS = 2048
MAX_BATCH_BYTES = 16 * 1024 * 1024


class Room:
    """Remaining capacity of a batch."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        #: Whether an input did not fit.
        self.full = False
        self._jobs, self._bytes = MAX_BATCH_JOBS, MAX_BATCH_BYTES

    def add_input(self, tokens: int, size: int) -> bool:
        """Return True and reduce the capacity if the input fits, else return False. The first input always fits."""
        empty = self._jobs == MAX_BATCH_JOBS
        if not empty and (self._jobs == 0 or tokens > self.tokens or size > self._bytes):
            self.full = True
            return False
        self.tokens -= tokens
        self._jobs -= 1
        self._bytes -= size
        return True


class ClientQueue:
    """Waiting inputs of one client in one lane."""

    def __init__(self) -> None:
        #: Requests with waiting inputs, in their order.
        self._requests: OrderedDict[Request, None] = OrderedDict()
        #: Tokens that the client may still take in this turn; negative after an input that exceeded it.
        self.deficit = 0

    def __bool__(self) -> bool:
        return bool(self._requests)

    def push(self, request: Request) -> None:
        """Add a request at the end, unless it is there."""
        self._requests[request] = None

    def push_back(self, job: Job) -> None:
        """Return a job to the head."""
        job.request.return_input(job.position)
        self._requests[job.request] = None
        self._requests.move_to_end(job.request, last=False)

    def discard(self, request: Request) -> None:
        """Remove a request's waiting inputs."""
        self._requests.pop(request, None)

    def take(self, room: Room) -> Iterator[list[Job]]:
        """Yield jobs of one request at a time while there is room and the turn lasts."""
        while self._requests and self.deficit > 0 and not room.full:
            request = next(iter(self._requests))
            jobs: list[Job] = []
            for position in request.list_ready():
                tokens = request.count_tokens(position)
                if self.deficit <= 0 or not room.add_input(tokens, request.lengths[position]):
                    break
                jobs.append(request.make_job(position))
                self.deficit -= tokens
            else:
                del self._requests[request]
            request.remove_ready(len(jobs))
            if jobs:
                yield jobs

    def find_oldest(self) -> float:
        """Return the arrival of the next input; infinity if no input waits."""
        return next(iter(self._requests)).arrived if self._requests else math.inf

    def list_waiting(self) -> Iterator[tuple[Request, Iterable[int]]]:
        """Yield waiting inputs as requests and positions; a request may occur several times."""
        for request in self._requests:
            yield request, request.list_ready()
