"""Models that workers prepare before they say hello, and those that none could prepare. Pure."""

import itertools

from broker.wire.protocol import State, WorkerLoading

#: How long a failure is told when nobody tries again, in seconds.
FAILED_S = 3600.0
#: Processes remembered at most; the one not heard of for longest is let go.
MAX_REMEMBERED = 1000


class Loading:
    """What processes say that are no workers yet, by their uuid."""

    def __init__(self, liveness_s: float) -> None:
        self._liveness_s = liveness_s
        #: When each was last heard and what it said, the latest last.
        self._heard: dict[bytes, tuple[float, WorkerLoading]] = {}

    def hear(self, message: WorkerLoading, now: float) -> bool:
        """A process prepares a model or has failed to; whether that is news."""
        _, before = self._heard.pop(message.uuid, (now, None))
        self._heard[message.uuid] = (now, message)
        while len(self._heard) > MAX_REMEMBERED:
            del self._heard[next(iter(self._heard))]
        return before != message

    def end(self, uuid: bytes, models: list[str]) -> None:
        """That process serves these models: it loads no more, and earlier failures are over."""
        over = [one for one, (_, said) in self._heard.items() if one == uuid or (said.failure and said.model in models)]
        for one in over:
            del self._heard[one]

    def forget(self, now: float) -> bool:
        """Drop who has not been heard of for too long; whether there was any."""
        silent = [uuid for uuid, (at, said) in self._heard.items() if now >= at + self._patience_s(said)]
        for uuid in silent:
            del self._heard[uuid]
        return bool(silent)

    def next_deadline(self) -> float | None:
        """When `forget` may next find any."""
        return min((at + self._patience_s(said) for at, said in self._heard.values()), default=None)

    def states(self) -> dict[str, tuple[State, str]]:
        """Of each model that is being loaded, else has failed, and why: the latest reason."""
        failed = {said.model: (State.FAILED, said.failure) for _, said in self._heard.values() if said.failure}
        loading = {said.model: (State.LOADING, "") for _, said in self._heard.values() if not said.failure}
        return dict(itertools.chain(failed.items(), loading.items()))

    def _patience_s(self, said: WorkerLoading) -> float:
        return FAILED_S if said.failure else self._liveness_s
