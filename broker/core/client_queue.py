"""Waiting inputs of one client in one lane, and which of them a batch takes. Pure.

The bucket with the oldest input leaves first, and inputs of similar length follow. A request is pushed and discarded as
a whole; its inputs are sorted into buckets when it is the client's turn and the request is among the client's oldest.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator

from broker.core.jobs import Job, Request, find_bucket

#: Seconds by which an input may be younger than its client's oldest one and overtake it, to leave with inputs of
#: similar length.
OVERTAKE_S = 0.5
#: Most jobs and bytes of a batch, so that neither the batch nor its result exceeds a frame, for vectors of up to 4,096
#: values.
MAX_BATCH_JOBS = 2048
MAX_BATCH_BYTES = 16 * 1024 * 1024
#: Sorted inputs of a client above which no further request is sorted.
MAX_SORTED = 2 * MAX_BATCH_JOBS


class Room:
    """Remaining capacity of a batch."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        #: Whether an input did not fit.
        self.full = False
        #: Bucket of the inputs that were added last.
        self.bucket: int | None = None
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
        #: Requests that have not been sorted, oldest first.
        self._unsorted: OrderedDict[Request, None] = OrderedDict()
        #: Positions of the sorted requests' inputs, by bucket and request, oldest first.
        self._buckets: dict[int, OrderedDict[Request, deque[int]]] = {}
        self._sorted = 0
        #: Tokens that the client may still take in this turn; negative after an input that exceeded it.
        self.deficit = 0

    def __bool__(self) -> bool:
        return bool(self._unsorted or self._buckets)

    def push(self, request: Request) -> None:
        """Add a request at the end."""
        self._unsorted[request] = None

    def push_back(self, job: Job) -> None:
        """Return a job to the head."""
        bucket = find_bucket(job.tokens)
        waiting = self._buckets.setdefault(bucket, OrderedDict())
        waiting.setdefault(job.request, deque()).appendleft(job.position)
        waiting.move_to_end(job.request, last=False)
        job.request.queued_in.add(bucket)
        self._sorted += 1

    def discard(self, request: Request) -> None:
        """Remove a request's waiting inputs."""
        self._unsorted.pop(request, None)
        for bucket in request.queued_in:
            self._sorted -= len(self._buckets[bucket][request])
            self._remove_entry(bucket, request)
        request.queued_in.clear()

    def take(self, room: Room) -> Iterator[list[Job]]:
        """Yield jobs of one request at a time while there is room and the turn lasts.

        Take the oldest inputs, or among those that arrived within `OVERTAKE_S` of the oldest the ones in the bucket
        nearest to the inputs that were added last.
        """
        heads: dict[int, Request] = {}
        while self and self.deficit > 0 and not room.full:
            oldest = min((request.arrived for request in heads.values()), default=math.inf)
            if self._may_sort(oldest):
                oldest = self._sort_requests()
                heads = {bucket: next(iter(waiting)) for bucket, waiting in self._buckets.items()}
            bucket = _choose_bucket(heads, oldest, room.bucket)
            request = heads[bucket]
            jobs = self._take_run(bucket, request, room)
            if bucket not in self._buckets:
                del heads[bucket]
            elif bucket not in request.queued_in:
                heads[bucket] = next(iter(self._buckets[bucket]))
            if jobs:
                yield jobs

    def _take_run(self, bucket: int, request: Request, room: Room) -> list[Job]:
        """Return jobs of one request and bucket, as many as the turn and the room allow."""
        positions = self._buckets[bucket][request]
        jobs: list[Job] = []
        while positions and self.deficit > 0:
            tokens = request.count_tokens(positions[0])
            if not room.add_input(tokens, request.lengths[positions[0]]):
                break
            jobs.append(request.make_job(positions.popleft()))
            self.deficit -= tokens
        if jobs:
            room.bucket = bucket
        self._sorted -= len(jobs)
        if not positions:
            self._remove_entry(bucket, request)
            request.queued_in.remove(bucket)
        return jobs

    def find_oldest(self) -> float:
        """Return the arrival of the oldest input; infinity if no input waits."""
        oldest = min((next(iter(waiting)).arrived for waiting in self._buckets.values()), default=math.inf)
        return min(oldest, next(iter(self._unsorted)).arrived) if self._unsorted else oldest

    def list_waiting(self) -> Iterator[tuple[Request, Iterable[int]]]:
        """Yield waiting inputs as requests and positions; a request may occur several times."""
        for request in self._unsorted:
            yield request, range(request.inputs)
        for waiting in self._buckets.values():
            yield from waiting.items()

    def _may_sort(self, oldest: float) -> bool:
        """Return whether the next unsorted request may overtake sorted ones; `oldest` is their earliest arrival."""
        if not self._unsorted or self._sorted >= MAX_SORTED:
            return oldest == math.inf
        return next(iter(self._unsorted)).arrived <= oldest + OVERTAKE_S

    def _sort_requests(self) -> float:
        """Sort requests that may leave or overtake now, the oldest first, until `MAX_SORTED` inputs are sorted.

        Return the arrival of the oldest input.
        """
        oldest = self.find_oldest()
        while self._unsorted and self._sorted < MAX_SORTED:
            request = next(iter(self._unsorted))
            if request.arrived > oldest + OVERTAKE_S:
                break
            del self._unsorted[request]
            for bucket, positions in request.sort_inputs().items():
                self._buckets.setdefault(bucket, OrderedDict())[request] = deque(positions)
                request.queued_in.add(bucket)
            self._sorted += request.inputs
        return oldest

    def _remove_entry(self, bucket: int, request: Request) -> None:
        del self._buckets[bucket][request]
        if not self._buckets[bucket]:
            del self._buckets[bucket]


def _choose_bucket(heads: dict[int, Request], oldest: float, last_bucket: int | None) -> int:
    """Return the bucket of the oldest head, or the one nearest to `last_bucket` among heads that may overtake it."""
    if last_bucket is None:
        return next(bucket for bucket, request in heads.items() if request.arrived == oldest)
    last = oldest + OVERTAKE_S
    candidates = (bucket for bucket, request in heads.items() if request.arrived <= last)
    return min(candidates, key=lambda bucket: abs(bucket - last_bucket))
