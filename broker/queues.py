"""Jobs that wait, and the order in which they leave: one queue a model.

Decides which waiting jobs make up the next batch, and nothing else. Suspects go one at a time. Other batches are each
of one lane, for a worker runs interactive ones before bulk ones. While both lanes have jobs, the interactive one may be
ahead of its share by no more than a batch; shares go by weight (start-time fair queueing, Goyal, Vin and Cheng 1996),
and a lane's weight grows with the age of the oldest job of the client whose turn it is, so that none starves. Inside a
lane, clients take turns by deficit round-robin in tokens (Shreedhar and Varghese 1995). Inside a client, the bucket
with the oldest job goes first, and jobs of similar length follow it. Pure.
"""

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence

from broker.protocol import Frame, Kind, Lane, Origin

#: Shares of the tokens when both lanes have jobs that have just come.
WEIGHTS = {Lane.INTERACTIVE: 4.0, Lane.BULK: 1.0}
#: A lane's weight grows by itself once in this many seconds that its oldest job waits.
AGEING_S = 2.0
#: Tokens a client may take each turn.
QUANTUM = 512
#: Lengths in one bucket differ by less than this factor: at most a fifth of a micro-batch of one bucket is padding.
BUCKET_RATIO = 1.25
#: Jobs that came at most so many seconds after a client's oldest may overtake it to leave with others of their length.
OVERTAKE_S = 0.5
#: A batch's bounds beside its tokens, so that neither it nor its answer outgrows a frame, for vectors of up to 4,096.
MAX_BATCH_JOBS = 2048
MAX_BATCH_BYTES = 16 * 1024 * 1024
#: Of jobs whose frontend does not say where they come from.
NOWHERE = Origin()
#: Cancelled jobs stay where they wait until there are this many more of them than of others.
MAX_CLOSED = 1000


class Job:
    """One input from its admission to its one answer. Data only; the scheduler changes it."""

    __slots__ = (
        "arrived",
        "bytes",
        "client",
        "crashes",
        "dispatched",
        "errors",
        "kind",
        "lane",
        "model",
        "open",
        "options",
        "origin",
        "owner",
        "payload",
        "position",
        "queued",
        "request",
        "suspect",
        "tokens",
    )

    def __init__(
        self,
        owner: bytes,
        request: int,
        position: int,
        *,
        model: str,
        lane: Lane,
        client: str | bytes,
        kind: Kind,
        payload: Frame,
        tokens: int,
        arrived: float,
        options: int = 0,
        origin: Origin = NOWHERE,
    ) -> None:
        #: uuid of the frontend process that is owed the answer.
        self.owner = owner
        self.request = request
        self.position = position
        self.model = model
        self.lane = lane
        #: Whom fairness counts it to.
        self.client = client
        self.kind = kind
        #: `Option` bits.
        self.options = options
        self.origin = origin
        self.payload = payload
        self.bytes = len(payload)
        #: Estimated for text, exact for token ids.
        self.tokens = tokens
        self.arrived = arrived
        self.dispatched = arrived
        #: How many workers died, and how many inferences failed, while it ran.
        self.crashes = 0
        self.errors = 0
        #: It was in a batch that killed or failed its worker: it runs alone, so that the next time names the cause.
        self.suspect = False
        #: False once answered, failed or cancelled: whoever still holds it drops it.
        self.open = True
        #: Whether its model's queue counts it.
        self.queued = False


class Room:
    """What a batch can still take."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._jobs, self._bytes = MAX_BATCH_JOBS, MAX_BATCH_BYTES

    def fits(self, job: Job) -> bool:
        """Whether the job may join; the first one always may."""
        if self._jobs == MAX_BATCH_JOBS:
            return True
        return self._jobs > 0 and job.tokens <= self.tokens and job.bytes <= self._bytes

    def fill(self, job: Job) -> None:
        """The job joins."""
        self.tokens -= job.tokens
        self._jobs -= 1
        self._bytes -= job.bytes


class ClientQueue:
    """One client's jobs in one lane, in buckets of similar length."""

    def __init__(self) -> None:
        self._buckets: dict[int, deque[Job]] = {}
        #: Tokens it may still take; below 0 after a job that was larger than its turn.
        self.deficit = 0

    def push(self, job: Job, *, front: bool = False) -> None:
        """At the end, or back at the head."""
        bucket = self._buckets.setdefault(int(math.log(max(1, job.tokens), BUCKET_RATIO)), deque())
        bucket.appendleft(job) if front else bucket.append(job)

    def pop(self, near: int | None, room: Room) -> tuple[Job, int] | None:
        """The next job and its bucket, if there is room: the oldest, or of those that came soon after it one from the
        bucket nearest to `near`. There is one."""
        heads = self._heads()
        number = min(heads, key=lambda bucket: heads[bucket].arrived)
        if near is not None:
            last = heads[number].arrived + OVERTAKE_S
            number = min((one for one in heads if heads[one].arrived <= last), key=lambda bucket: abs(bucket - near))
        if not room.fits(heads[number]):
            return None
        job = self._buckets[number].popleft()
        job.queued = False
        return job, number

    def oldest(self) -> Job | None:
        """The job that waits longest."""
        return min(self._heads().values(), key=lambda job: job.arrived, default=None)

    def jobs(self) -> Iterator[Job]:
        """All of them."""
        return (job for bucket in self._buckets.values() for job in bucket if job.queued)

    def _heads(self) -> dict[int, Job]:
        for number, bucket in list(self._buckets.items()):
            while bucket and not bucket[0].queued:
                bucket.popleft()
            if not bucket:
                del self._buckets[number]
        return {number: bucket[0] for number, bucket in self._buckets.items()}


class LaneQueue:
    """The clients of one lane, taking turns."""

    def __init__(self) -> None:
        self._clients: dict[str | bytes, ClientQueue] = {}
        #: Clients with jobs, the one whose turn it is first.
        self._turns: deque[str | bytes] = deque()
        #: What waits, as the model's queue counts it, and how many tokens of each client that has any.
        self.jobs = self.tokens = 0
        self.client_tokens: Counter[str | bytes] = Counter()
        #: Tokens that have left, by the lane's weight.
        self.served = 0.0

    def push(self, job: Job, *, front: bool = False) -> None:
        """Queue a job for its client."""
        client = self._clients.get(job.client)
        if client is None:
            client = self._clients[job.client] = ClientQueue()
            self._turns.append(job.client)
        client.push(job, front=front)

    def take(self, room: Room) -> Iterator[Job]:
        """Jobs for which there is room; the first of a batch always has some."""
        near: int | None = None
        while client := self._next_turn():
            popped = client.pop(near, room)
            if popped is None:
                return
            job, near = popped
            room.fill(job)
            client.deficit -= job.tokens
            if client.deficit <= 0:
                self._turns.rotate(-1)
            yield job

    def oldest(self) -> float:
        """When the job arrived that has waited longest of the client whose turn it is; infinity when none waits."""
        client = self._next_turn()
        job = client and client.oldest()
        return job.arrived if job else math.inf

    def _next_turn(self) -> ClientQueue | None:
        """The client whose turn it is: with jobs, and with tokens left to take, of which each turn brings some."""
        while self._turns:
            client = self._clients[self._turns[0]]
            if client.oldest() is None:
                del self._clients[self._turns.popleft()]
            elif client.deficit > 0:
                return client
            elif len(self._turns) == 1:
                client.deficit = QUANTUM
            else:
                client.deficit += QUANTUM
                if client.deficit <= 0:
                    self._turns.rotate(-1)
        return None

    def waiting(self) -> Iterator[Job]:
        """All jobs."""
        return (job for client in self._clients.values() for job in client.jobs())


class ModelQueue:
    """The waiting jobs of one model. A job that is no longer open is dropped when its turn comes."""

    def __init__(self) -> None:
        self._lanes = {lane: LaneQueue() for lane in Lane}
        self._suspects: deque[Job] = deque()
        self._closed = 0
        self.jobs = 0
        self.tokens = 0

    def __bool__(self) -> bool:
        return self.jobs > 0

    def push(self, job: Job) -> None:
        """Admit a job at the end."""
        self._lanes[job.lane].push(job)
        self._enter(job)

    def push_back(self, jobs: Sequence[Job]) -> None:
        """Return leased jobs to the head, in their old order; suspects wait apart."""
        for job in reversed(jobs):
            if job.suspect:
                self._suspects.appendleft(job)
            else:
                self._lanes[job.lane].push(job, front=True)
            self._enter(job)

    def discard(self, job: Job) -> None:
        """Forget a waiting job; its place is given up when its turn comes, or when too many such wait."""
        self._leave(job)
        job.payload = b""
        self._closed += 1
        if self._closed > self.jobs + MAX_CLOSED:
            self._rebuild()

    def lanes(self, ahead: int) -> list[Lane]:
        """Whose jobs may leave now, the lane that is further behind its share first; suspects go apart.

        The interactive lane may be `ahead` tokens ahead of its share.
        """
        waiting = [lane for lane in Lane if self._lanes[lane].jobs]
        first, last = self._lanes[Lane.INTERACTIVE].served, self._lanes[Lane.BULK].served
        if len(waiting) > 1 and first > last + ahead / WEIGHTS[Lane.INTERACTIVE]:
            return [Lane.BULK]
        return sorted(waiting, key=lambda lane: self._lanes[lane].served)

    @property
    def suspected(self) -> bool:
        """Whether a suspect waits."""
        while self._suspects and not self._suspects[0].queued:
            self._suspects.popleft()
        return bool(self._suspects)

    def take_suspect(self) -> list[Job]:
        """The next suspect, alone. There is one."""
        job = self._suspects.popleft()
        self._leave(job)
        return [job]

    def take(self, lane: Lane, max_tokens: int, now: float) -> list[Job]:
        """A lane's next batch: up to `max_tokens`, but at least one job. There is one."""
        taken = self._lanes[lane]
        age = max(0.0, now - taken.oldest())
        batch = list(taken.take(Room(max_tokens)))
        for job in batch:
            self._leave(job)
        taken.served += sum(job.tokens for job in batch) / (WEIGHTS[lane] * (1 + age / AGEING_S))
        return batch

    def lane_jobs(self, lane: Lane) -> int:
        """Jobs that wait in a lane, suspects not counted."""
        return self._lanes[lane].jobs

    def lane_tokens(self, lane: Lane) -> int:
        """Tokens that wait in a lane."""
        return self._lanes[lane].tokens

    def oldest(self) -> float:
        """When a job arrived that is about to leave; infinity when none waits."""
        if self.suspected:
            return self._suspects[0].arrived
        return min((lane.oldest() for lane in self._lanes.values()), default=math.inf)

    def tokens_ahead(self, lane: Lane, client: str | bytes, asked: int) -> int:
        """Tokens that leave before the last of a client's request for so many that comes into the lane now: its own,
        as many of each other client, for they take turns, and the other lane's share meanwhile."""
        held = self._lanes[lane].client_tokens
        own = held[client] + asked
        before = sum(min(tokens, own) for other, tokens in held.items() if other != client) + held[client]
        return min(self.tokens, int(before * sum(WEIGHTS.values()) / WEIGHTS[lane]))

    def waiting(self) -> list[Job]:
        """All jobs that wait."""
        suspects = [job for job in self._suspects if job.queued]
        return [*suspects, *(job for lane in Lane for job in self._lanes[lane].waiting())]

    def _enter(self, job: Job) -> None:
        lane = self._lanes[job.lane]
        if not lane.jobs:
            # It was empty, and has no claim on the time before.
            lane.served = max(one.served for one in self._lanes.values())
        job.queued = True
        self._count(job, 1)

    def _leave(self, job: Job) -> None:
        job.queued = False
        self._count(job, -1)

    def _count(self, job: Job, by: int) -> None:
        self.jobs += by
        self.tokens += by * job.tokens
        if not job.suspect:
            lane = self._lanes[job.lane]
            lane.jobs += by
            lane.tokens += by * job.tokens
            lane.client_tokens[job.client] += by * job.tokens
            if not lane.client_tokens[job.client]:
                del lane.client_tokens[job.client]

    def _rebuild(self) -> None:
        """Only the jobs that still wait, and the lanes as far as they have come."""
        waiting, old = self.waiting(), self._lanes
        self.__init__()  # type: ignore[misc]
        for job in waiting:
            if job.suspect:
                self._suspects.append(job)
            else:
                self._lanes[job.lane].push(job)
            self._enter(job)
        for lane in Lane:
            self._lanes[lane].served = old[lane].served
