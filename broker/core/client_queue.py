"""One client's waiting inputs in one lane, and what a batch takes of them.

The bucket with the oldest input goes first, and inputs of similar length follow it. A request is pushed and discarded
as a whole; its inputs are sorted by length when its client's turn has come and it is among the client's oldest. Pure.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator

from broker.core.jobs import Job, Request, find_bucket

#: An input may overtake its client's oldest one, to leave with others of its length, if it came at most this many
#: seconds later.
OVERTAKE_S = 0.5
#: A batch's bounds beside its tokens, so that neither it nor its answer outgrows a frame, for vectors of up to 4,096.
MAX_BATCH_JOBS = 2048
MAX_BATCH_BYTES = 16 * 1024 * 1024
#: While a client has so many sorted inputs, no further request of its is sorted.
MAX_SORTED = 2 * MAX_BATCH_JOBS


class Room:
    """What a batch can still take."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        #: Whether an input has found no room.
        self.full = False
        #: The bucket of the inputs that were taken in last.
        self.bucket: int | None = None
        self._jobs, self._bytes = MAX_BATCH_JOBS, MAX_BATCH_BYTES

    def fill(self, tokens: int, size: int) -> bool:
        """Take an input in and return True, or return False when it does not fit. The first one always fits."""
        empty = self._jobs == MAX_BATCH_JOBS
        if not empty and (self._jobs == 0 or tokens > self.tokens or size > self._bytes):
            self.full = True
            return False
        self.tokens -= tokens
        self._jobs -= 1
        self._bytes -= size
        return True


class ClientQueue:
    """One client's waiting inputs in one lane."""

    def __init__(self) -> None:
        #: Requests whose inputs have not been sorted yet, oldest first.
        self._unsorted: OrderedDict[Request, None] = OrderedDict()
        #: Positions of the others' inputs by bucket and request, oldest first.
        self._buckets: dict[int, OrderedDict[Request, deque[int]]] = {}
        self._sorted = 0
        #: Tokens it may still take; below 0 after an input that was larger than its turn.
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
        """Forget what waits of a request."""
        self._unsorted.pop(request, None)
        for bucket in request.queued_in:
            self._sorted -= len(self._buckets[bucket][request])
            self._drop(bucket, request)
        request.queued_in.clear()

    def take(self, room: Room) -> Iterator[list[Job]]:
        """Yield inputs, as jobs of one request at a time, while there is room and the turn lasts.

        They are the oldest, or of those that came soon after the oldest one from the bucket nearest to the last input
        that the room has taken in.
        """
        heads: dict[int, Request] = {}
        while self and self.deficit > 0 and not room.full:
            oldest = min((request.arrived for request in heads.values()), default=math.inf)
            if self._may_sort(oldest):
                oldest = self._sort()
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
        """Take inputs of one request and bucket, as many as there are turn and room for."""
        positions = self._buckets[bucket][request]
        jobs: list[Job] = []
        while positions and self.deficit > 0:
            tokens = request.count_tokens(positions[0])
            if not room.fill(tokens, request.lengths[positions[0]]):
                break
            jobs.append(request.make_job(positions.popleft()))
            self.deficit -= tokens
        if jobs:
            room.bucket = bucket
        self._sorted -= len(jobs)
        if not positions:
            self._drop(bucket, request)
            request.queued_in.remove(bucket)
        return jobs

    def find_oldest(self) -> float:
        """Return when the input arrived that waits longest; infinity when none waits."""
        oldest = min((next(iter(waiting)).arrived for waiting in self._buckets.values()), default=math.inf)
        return min(oldest, next(iter(self._unsorted)).arrived) if self._unsorted else oldest

    def list_waiting(self) -> Iterator[tuple[Request, Iterable[int]]]:
        """Yield what waits: requests and positions of theirs; a request may come several times."""
        for request in self._unsorted:
            yield request, range(request.inputs)
        for waiting in self._buckets.values():
            yield from waiting.items()

    def _may_sort(self, oldest: float) -> bool:
        """Return whether the next unsorted request may leave beside sorted ones, which came at `oldest` or later."""
        if not self._unsorted or self._sorted >= MAX_SORTED:
            return oldest == math.inf
        return next(iter(self._unsorted)).arrived <= oldest + OVERTAKE_S

    def _sort(self) -> float:
        """Sort requests that may leave or overtake now, the oldest first, until there are enough to choose from.

        Return when the oldest of all came.
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

    def _drop(self, bucket: int, request: Request) -> None:
        del self._buckets[bucket][request]
        if not self._buckets[bucket]:
            del self._buckets[bucket]


def _choose_bucket(heads: dict[int, Request], oldest: float, near: int | None) -> int:
    """Return the bucket of the oldest head, or of those that came soon after it the one nearest to `near`."""
    if near is None:
        return next(bucket for bucket, request in heads.items() if request.arrived == oldest)
    last = oldest + OVERTAKE_S
    return min(
        (bucket for bucket, request in heads.items() if request.arrived <= last), key=lambda one: abs(one - near)
    )
