"""Reloads of the workers' configurations that frontends have requested and not all workers have answered. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from broker.wire.columns import MAX_TEXT_LENGTH
from broker.wire.protocol import ModelsReloaded, Reloaded

#: Open reloads at most. A worker that loads for minutes answers none of them.
MAX_OPEN = 64


@dataclass(eq=False)
class _Reload:
    """A reload that workers carry out."""

    #: uuid of the frontend and its number of the reload.
    owner: bytes
    number: int
    #: Peers of the workers that have not answered.
    waiting: set[bytes]
    changed: bool = False
    failures: list[str] = field(default_factory=list)


class Reloads:
    """Open reloads by the number that the broker gave them."""

    def __init__(self, epoch: int) -> None:
        self._open: dict[int, _Reload] = {}
        #: The epoch is in the numbers, because a worker may answer a reload of the broker before this one.
        self._newest = epoch % 2**31 << 32

    def begin(self, owner: bytes, number: int, workers: Iterable[bytes]) -> int:
        """Add a reload of a frontend, and return the number for its workers. End the oldest of too many."""
        for oldest in list(self._open.values())[: max(0, len(self._open) + 1 - MAX_OPEN)]:
            oldest.waiting.clear()
            oldest.failures.append(
                f"a worker is still loading, and {MAX_OPEN} later reloads wait; wait until it is ready"
            )
        self._newest += 1
        self._open[self._newest] = _Reload(owner, number, set(workers))
        return self._newest

    def record_answer(self, peer: bytes, answer: Reloaded) -> None:
        """Record the answer of a worker."""
        reload = self._open.get(answer.number)
        if reload and peer in reload.waiting:
            reload.waiting.remove(peer)
            reload.changed |= answer.changed
            if answer.failure and answer.failure not in reload.failures:
                reload.failures.append(answer.failure)

    def take_ended(self, workers: Iterable[bytes]) -> list[tuple[bytes, ModelsReloaded]]:
        """Remove and return the reloads without a connected worker that has not answered, with their frontends."""
        connected = set(workers)
        ended = [number for number, reload in self._open.items() if not reload.waiting & connected]
        reloads = [self._open.pop(number) for number in ended]
        return [
            (one.owner, ModelsReloaded(one.number, one.changed, "; ".join(one.failures)[:MAX_TEXT_LENGTH]))
            for one in reloads
        ]
