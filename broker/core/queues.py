"""Queue of one model: which waiting inputs make up the next batch. Pure.

Suspects leave one at a time. Every other batch is of one lane, because a worker runs interactive batches before bulk
batches. While both lanes have inputs, the interactive lane may be ahead of its share by at most one batch. Shares
follow weights (start-time fair queueing, Goyal, Vin and Cheng 1996), and a lane's weight grows with the age of the
oldest input of the next client, so that no lane starves. Within a lane, clients take turns by deficit
round-robin in tokens (Shreedhar and Varghese 1995). `client_queue.py` has the order within a client.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator

from broker.core.client_queue import ClientQueue, Room
from broker.core.holdings import Holdings
from broker.core.jobs import Job, Request
from broker.wire.protocol import Lane

#: Weights of the lanes' shares of tokens, before ageing.
WEIGHTS = {Lane.INTERACTIVE: 4.0, Lane.BULK: 1.0}
#: Seconds of waiting that add a lane's initial weight to its weight.
AGEING_S = 2.0
#: Tokens that a client may take in each turn.
QUANTUM = 512


class LaneQueue:
    """Clients of one lane, which take turns."""

    def __init__(self) -> None:
        #: Clients with inputs, in the order of their turns.
        self._clients: OrderedDict[str | bytes, ClientQueue] = OrderedDict()
        #: Requests with inputs that must be looked up before they may leave, in the order of their turns.
        self.unknown: OrderedDict[Request, None] = OrderedDict()
        #: Waiting inputs and their tokens by client. Maintained by the model's queue.
        self.jobs = 0
        self.holdings = Holdings()
        #: Tokens that have left, divided by the lane's weight.
        self.served = 0.0

    def __bool__(self) -> bool:
        """Whether an input may leave."""
        return bool(self._clients)

    def find_client(self, name: str | bytes) -> ClientQueue:
        """Return a client's queue; append a new one to the round if there is none."""
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = ClientQueue()
        return client

    def discard(self, request: Request) -> None:
        """Remove a request's waiting inputs."""
        self.unknown.pop(request, None)
        client = self._clients.get(request.client)
        if client is not None:
            client.discard(request)
            if not client:
                del self._clients[request.client]

    def take(self, room: Room) -> Iterator[list[Job]]:
        """Yield jobs of one request at a time while there is room. A batch's first job always fits."""
        while self._clients and not room.full:
            name, client = self._find_next_turn()
            yield from client.take(room)
            if not client:
                del self._clients[name]
            elif client.deficit <= 0:
                self._clients.move_to_end(name)

    def find_oldest(self) -> float:
        """Return the arrival of the oldest input of the next client; infinity if no input waits."""
        return self._find_next_turn()[1].find_oldest() if self._clients else math.inf

    def _find_next_turn(self) -> tuple[str | bytes, ClientQueue]:
        """Return the next client, after granting quanta until one has a positive deficit. A client must wait."""
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
        """Yield waiting inputs like `ClientQueue.list_waiting`."""
        for client in self._clients.values():
            yield from client.list_waiting()
        for request in self.unknown:
            yield request, request.list_unknown()


class ModelQueue:
    """Waiting inputs of one model, in lanes, and its suspects."""

    def __init__(self) -> None:
        self._lanes = {lane: LaneQueue() for lane in Lane}
        #: Suspects. Those with `is_queued` False have ended and are dropped when their turn comes.
        self._suspects: deque[Job] = deque()
        self.jobs = 0
        self.tokens = 0

    def __bool__(self) -> bool:
        return self.jobs > 0

    def push(self, request: Request) -> None:
        """Add a request at the end."""
        lane = self._lanes[request.lane]
        if request.looks_up:
            lane.unknown[request] = None
        else:
            lane.find_client(request.client).push(request)
        self._add_totals(request, request.inputs, request.tokens)

    def find_unknown(self, lane: Lane) -> Request | None:
        """Return the next request of a lane with inputs that must be looked up; None without one."""
        return next(iter(self._lanes[lane].unknown), None)

    def end_turn(self, request: Request, ready: list[int], known: list[Job]) -> None:
        """Record which of the next unknown inputs may leave, and that others left as jobs. Then others have a turn."""
        lane = self._lanes[request.lane]
        request.end_lookups(len(ready) + len(known), ready)
        if request.list_unknown():
            lane.unknown.move_to_end(request)
        else:
            del lane.unknown[request]
        if ready:
            lane.find_client(request.client).push(request)
        if known:
            self._add_totals(request, -len(known), -sum([job.tokens for job in known]))

    def push_back(self, jobs: Iterable[Job]) -> None:
        """Return open jobs to the head in their old order; suspects to the head of the suspects."""
        for job in sorted(jobs, key=lambda job: (job.request.arrived, *job.key), reverse=True):
            request = job.request
            if job.suspect:
                job.is_queued = True
                self._suspects.appendleft(job)
                self.jobs += 1
                self.tokens += job.tokens
            else:
                self._lanes[request.lane].find_client(request.client).push_back(job)
                self._add_totals(request, 1, job.tokens)

    def discard(self, request: Request) -> None:
        """Remove the waiting inputs of a request that has ended."""
        if request.queued_jobs:
            self._lanes[request.lane].discard(request)
            self._add_totals(request, -request.queued_jobs, -request.queued_tokens)
        for job in request.jobs.values():
            if job.is_queued:
                self._remove_suspect(job)

    def list_lanes(self, ahead: int) -> list[Lane]:
        """Return the lanes with inputs that may leave now, the lane further behind its share first.

        The interactive lane may be `ahead` tokens ahead of its share. Suspects are not counted.
        """
        waiting = [lane for lane in Lane if self._lanes[lane]]
        first, last = self._lanes[Lane.INTERACTIVE].served, self._lanes[Lane.BULK].served
        if len(waiting) > 1 and first > last + ahead / WEIGHTS[Lane.INTERACTIVE]:
            return [Lane.BULK]
        return sorted(waiting, key=lambda lane: self._lanes[lane].served)

    @property
    def has_suspect(self) -> bool:
        """Whether a suspect waits."""
        while self._suspects and not self._suspects[0].is_queued:
            self._suspects.popleft()
        return bool(self._suspects)

    def take_suspect(self) -> list[Job]:
        """Remove and return the next suspect, as a batch of one job. A suspect must wait."""
        job = self._suspects.popleft()
        self._remove_suspect(job)
        return [job]

    def take(self, lane: Lane, max_tokens: int, now: float) -> list[Job]:
        """Remove and return a lane's next batch of up to `max_tokens`, and at least one job. An input must wait."""
        queue = self._lanes[lane]
        age = max(0.0, now - queue.find_oldest())
        batch: list[Job] = []
        tokens_before = self.tokens
        for jobs in queue.take(Room(max_tokens)):
            self._add_totals(jobs[0].request, -len(jobs), -sum(job.tokens for job in jobs))
            batch += jobs
        queue.served += (tokens_before - self.tokens) / (WEIGHTS[lane] * (1 + age / AGEING_S))
        return batch

    def count_lane_jobs(self, lane: Lane) -> int:
        """Return the number of inputs that wait in a lane, without suspects."""
        return self._lanes[lane].jobs

    def count_lane_tokens(self, lane: Lane) -> int:
        """Return the number of tokens that wait in a lane, without suspects."""
        return self._lanes[lane].holdings.total

    def find_oldest(self) -> float:
        """Return the arrival of an input that leaves soon, to order models; infinity if no input may leave."""
        if self.has_suspect:
            return self._suspects[0].request.arrived
        return min(lane.find_oldest() for lane in self._lanes.values())

    def count_tokens_ahead(self, lane: Lane, client: str | bytes, requested: int) -> int:
        """Return the tokens that leave before the last of a request of `requested` tokens that enters the lane now.

        These are the client's own waiting tokens, as many of each other client because clients take turns, and the
        other lane's share meanwhile.
        """
        before = self._lanes[lane].holdings.count_before(client, requested)
        return min(self.tokens, int(before * sum(WEIGHTS.values()) / WEIGHTS[lane]))

    def list_waiting(self) -> Iterator[tuple[Request, Iterable[int]]]:
        """Yield waiting inputs as requests and positions; a request may occur several times."""
        for job in self._suspects:
            if job.is_queued:
                yield job.request, [job.position]
        for lane in self._lanes.values():
            yield from lane.list_waiting()

    def _remove_suspect(self, job: Job) -> None:
        job.is_queued = False
        self.jobs -= 1
        self.tokens -= job.tokens

    def _add_totals(self, request: Request, jobs: int, tokens: int) -> None:
        """Add inputs of a request to the totals, or remove them; suspects are counted elsewhere."""
        lane = self._lanes[request.lane]
        if not lane.jobs:
            # An empty lane does not save up its share.
            lane.served = max(other.served for other in self._lanes.values())
        self.jobs += jobs
        self.tokens += tokens
        request.queued_jobs += jobs
        request.queued_tokens += tokens
        lane.jobs += jobs
        lane.holdings.add_tokens(request.client, tokens)
