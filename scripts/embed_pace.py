"""How many requests `scripts/embed` has open, and what follows from an answer that is not 200. Pure."""

import enum

#: Requests at the start, and at most.
START, MOST = 2, 64
#: Shortest time in seconds, and fewest rounds of all open requests, that a throughput is measured over.
MEASURED_S, MEASURED_ROUNDS = 0.5, 2
#: A throughput is better if it is this many times as high.
BETTER = 1.05
#: Measurements at one number of requests before a higher one is tried again.
HOLD = 20
#: Seconds before a request is sent again: the first time, and at most, unless Retry-After has more.
FIRST_DELAY_S, MOST_DELAY_S = 0.5, 10.0
#: Codes of rows and of requests that another try does not change.
_PERMANENT = {"context_length_exceeded", "invalid_input", "poison_input"}
_TOO_LARGE = {"max_tokens_per_request", "body_too_large"}


class Pace:
    """Number of requests to have open: grows while the throughput grows, and halves when the server is full."""

    def __init__(self, fixed: int = 0) -> None:
        self._fixed = fixed
        self.limit = fixed or START
        self._previous = 0
        self._best = 0.0
        self._hold = 0
        self._done = 0
        self._work = 0
        self._since: float | None = None

    def finish_request(self, work: int, now: float) -> None:
        """Count an answered request; `work` is any measure of its size."""
        if self._since is None:
            self._since = now
            return
        self._done += 1
        self._work += work
        elapsed = now - self._since
        if self._done < MEASURED_ROUNDS * self.limit or elapsed < MEASURED_S:
            return
        if not self._fixed:
            self._adapt(self._work / elapsed)
        self._restart(now)

    def slow_down(self) -> None:
        """Halve the number of requests, because the server is full or away."""
        if not self._fixed:
            self.limit = max(1, self.limit // 2)
        self._previous, self._best, self._hold, self._since = 0, 0.0, HOLD // 4, None
        self._done = self._work = 0

    def _adapt(self, throughput: float) -> None:
        if self._hold:
            self._hold -= 1
            self._best = throughput
        elif throughput >= self._best * BETTER:
            self._best, self._previous = throughput, self.limit
            self.limit = min(MOST, self.limit + max(1, self.limit // 2))
        else:
            # The last step was no gain. Later measurements decide whether the server has become faster.
            self.limit, self._best, self._hold = self._previous or self.limit, throughput, HOLD

    def _restart(self, now: float) -> None:
        self._done, self._work, self._since = 0, 0, now


class Next(enum.Enum):
    """What to do with the rows of a request that failed."""

    RETRY = enum.auto()
    #: Send the request in two halves; a single row gets the error.
    SPLIT = enum.auto()
    #: End the run.
    REFUSE = enum.auto()


def choose_next(status: int, code: str, param: str) -> Next:
    """Return what follows from the status and the error object of a request."""
    if status in (413, 422) or code in _TOO_LARGE or code in _PERMANENT:
        return Next.SPLIT
    if status == 504:
        # Fewer texts take less time.
        return Next.SPLIT
    if status in (0, 408, 429) or status >= 500 or code == "model_not_found":
        return Next.RETRY
    if status == 400 and param == "input":
        return Next.SPLIT
    return Next.REFUSE


def is_permanent(code: str) -> bool:
    """Return whether another try cannot change the error of a row."""
    return code in _PERMANENT


def choose_delay_s(attempt: int, retry_after_s: float) -> float:
    """Return the seconds before a request is sent again, by the number of tries so far."""
    return max(retry_after_s, min(MOST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt, 10)))
