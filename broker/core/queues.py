"""Inputs that wait, and the order in which they leave: one queue for each model.

Decides which waiting inputs make up the next batch, and nothing else. Suspects go one at a time. Other batches are each
of one lane, because a worker runs interactive ones before bulk ones. While both lanes have inputs, the interactive one
may be ahead of its share by no more than a batch; shares go by weight (start-time fair queueing, Goyal, Vin and Cheng
1996), and a lane's weight grows with the age of the oldest input of the client whose turn it is, so that none starves.
Inside a lane, clients take turns by deficit round-robin in tokens (Shreedhar and Varghese 1995). The order inside a
client is `client_queue.py`'s. Pure.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator

from broker.core.client_queue import ClientQueue, Room
from broker.core.holdings import Holdings
from broker.core.jobs import Job, Request
from broker.wire.protocol import Lane

#: Shares of the tokens when both lanes have jobs that have just come.
WEIGHTS = {Lane.INTERACTIVE: 4.0, Lane.BULK: 1.0}
#: A lane's weight grows by itself once in this many seconds that its oldest job waits.
AGEING_S = 2.0
#: Tokens a client may take each turn.
QUANTUM = 512


class LaneQueue:
    """The clients of one lane, taking turns."""

    def __init__(self) -> None:
        #: Clients with inputs, the one whose turn it is first.
        self._clients: OrderedDict[str | bytes, ClientQueue] = OrderedDict()
        #: What waits, as the model's queue counts it.
        self.jobs = 0
        self.holdings = Holdings()
        #: Tokens that have left, by the lane's weight.
        self.served = 0.0

    def find_client(self, name: str | bytes) -> ClientQueue:
        """Return a client's queue, a new one at the end of the turns if there is none."""
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = ClientQueue()
        return client

    def discard(self, request: Request) -> None:
        """Forget what waits of a request."""
        client = self._clients[request.client]
        client.discard(request)
        if not client:
            del self._clients[request.client]

    def take(self, room: Room) -> Iterator[list[Job]]:
        """Yield jobs, those of one request at a time, while there is room; for the first of a batch there always is."""
        while self._clients and not room.full:
            name, client = self._find_next_turn()
            yield from client.take(room)
            if not client:
                del self._clients[name]
            elif client.deficit <= 0:
                self._clients.move_to_end(name)

    def find_oldest(self) -> float:
        """Return when the input arrived that waits longest of the client whose turn it is; infinity when none waits."""
        return self._find_next_turn()[1].find_oldest() if self._clients else math.inf

    def _find_next_turn(self) -> tuple[str | bytes, ClientQueue]:
        """Return the client whose turn it is, with tokens left to take; each turn brings some. There is a client."""
        while True:
            name, client = next(iter(self._clients.items()))
            if client.deficit > 0:
                return name, client
            if len(self._clients) == 1:
                client.deficit = QUANTUM
                continue
            client.deficit += QUANTUM
            if client.deficit <= 0:
                self._clients.move_to_end(name)

    def list_waiting(self) -> Iterator[tuple[Request, Iterable[int]]]:
        """Yield what waits, as `ClientQueue.list_waiting` does."""
        for client in self._clients.values():
            yield from client.list_waiting()


class ModelQueue:
    """The waiting inputs of one model."""

    def __init__(self) -> None:
        self._lanes = {lane: LaneQueue() for lane in Lane}
        #: Suspects; those that are no longer queued are dropped when their turn comes.
        self._suspects: deque[Job] = deque()
        self.jobs = 0
        self.tokens = 0

    def __bool__(self) -> bool:
        return self.jobs > 0

    def push(self, request: Request) -> None:
        """Add a request at the end."""
        self._lanes[request.lane].find_client(request.client).push(request)
        self._count(request, request.inputs, request.tokens)

    def push_back(self, jobs: Iterable[Job]) -> None:
        """Return open jobs to the head, in their old order; suspects wait apart."""
        for job in sorted(jobs, key=lambda one: (one.request.arrived, *one.key), reverse=True):
            request = job.request
            if job.suspect:
                job.queued = True
                self._suspects.appendleft(job)
                self.jobs += 1
                self.tokens += job.tokens
            else:
                self._lanes[request.lane].find_client(request.client).push_back(job)
                self._count(request, 1, job.tokens)

    def discard(self, request: Request) -> None:
        """Forget what waits of a request that has ended."""
        if request.queued_jobs:
            self._lanes[request.lane].discard(request)
            self._count(request, -request.queued_jobs, -request.queued_tokens)
        for job in request.jobs.values():
            if job.queued:
                self._leave_suspects(job)

    def find_lanes(self, ahead: int) -> list[Lane]:
        """Return the lanes whose inputs may leave now, the one that is further behind its share first.

        The interactive lane may be `ahead` tokens ahead of its share. Suspects go apart.
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
        """Return the next suspect, alone. There is one."""
        job = self._suspects.popleft()
        self._leave_suspects(job)
        return [job]

    def take(self, lane: Lane, max_tokens: int, now: float) -> list[Job]:
        """Return a lane's next batch: up to `max_tokens`, but at least one job. There is one."""
        taken = self._lanes[lane]
        age = max(0.0, now - taken.find_oldest())
        batch: list[Job] = []
        tokens_before = self.tokens
        for jobs in taken.take(Room(max_tokens)):
            self._count(jobs[0].request, -len(jobs), -sum(job.tokens for job in jobs))
            batch += jobs
        taken.served += (tokens_before - self.tokens) / (WEIGHTS[lane] * (1 + age / AGEING_S))
        return batch

    def count_lane_jobs(self, lane: Lane) -> int:
        """Return how many inputs wait in a lane, suspects not counted."""
        return self._lanes[lane].jobs

    def count_lane_tokens(self, lane: Lane) -> int:
        """Return how many tokens wait in a lane, suspects not counted."""
        return self._lanes[lane].holdings.total

    def find_oldest(self) -> float:
        """Return when an input arrived that is about to leave; infinity when none waits."""
        if self.suspected:
            return self._suspects[0].request.arrived
        return min(lane.find_oldest() for lane in self._lanes.values())

    def count_tokens_ahead(self, lane: Lane, client: str | bytes, asked: int) -> int:
        """Return the tokens that leave before the last of a request for `asked` tokens that comes into the lane now.

        They are the client's own, as many of each other client, because clients take turns, and the other lane's share
        meanwhile.
        """
        before = self._lanes[lane].holdings.count_before(client, asked)
        return min(self.tokens, int(before * sum(WEIGHTS.values()) / WEIGHTS[lane]))

    def list_waiting(self) -> Iterator[tuple[Request, Iterable[int]]]:
        """Yield what waits: requests and positions of theirs; a request may come several times."""
        for job in self._suspects:
            if job.queued:
                yield job.request, [job.position]
        for lane in self._lanes.values():
            yield from lane.list_waiting()

    def _leave_suspects(self, job: Job) -> None:
        job.queued = False
        self.jobs -= 1
        self.tokens -= job.tokens

    def _count(self, request: Request, jobs: int, tokens: int) -> None:
        """Count inputs of a request that come or go, suspects apart."""
        lane = self._lanes[request.lane]
        if not lane.jobs:
            # The lane was empty, and has no claim on the time before.
            lane.served = max(one.served for one in self._lanes.values())
        self.jobs += jobs
        self.tokens += tokens
        request.queued_jobs += jobs
        request.queued_tokens += tokens
        lane.jobs += jobs
        lane.holdings.add(request.client, tokens)
