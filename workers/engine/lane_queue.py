"""Queue of the two lanes of a worker, from which threads take what they can run."""

import bisect
import itertools
import math
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from broker.wire import protocol as wire

#: How many interactive items may overtake one bulk item. The broker divides the lanes only while both wait there; a
#: leased bulk batch must run here long before its lease expires.
MAX_OVERTAKES = 16

T = TypeVar("T")


class LanePriorityQueue(Generic[T]):
    """Queue in which interactive items overtake bulk items, at most `MAX_OVERTAKES` each. A lane keeps its order."""

    def __init__(self) -> None:
        self._items: list[tuple[float, int, T | None]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()

    def put(self, lane: wire.Lane, item: T) -> None:
        """Append an item to a lane."""
        with self._changed:
            number = next(self._numbers)
            # Numbers differ, so that items are not compared.
            bisect.insort(self._items, (number - (MAX_OVERTAKES if lane == wire.Lane.INTERACTIVE else 0), number, item))
            self._changed.notify_all()

    def put_end(self) -> None:
        """Make one `get` return None after all items."""
        with self._changed:
            self._items.append((math.inf, next(self._numbers), None))
            self._changed.notify_all()

    def retry(self) -> None:
        """Let each waiting `get` look again, because its claim may have another result now."""
        with self._changed:
            self._changed.notify_all()

    def get(self, claim: Callable[[T], bool] = lambda _: True) -> T | None:
        """Wait for the first item that can be taken, and return it, or None at the end.

        `claim` returns whether an item can be taken now, and if so reserves what the item needs.
        """
        with self._changed:
            while (position := self._find(claim)) is None:
                self._changed.wait()
            return self._items.pop(position)[2]

    def _find(self, claim: Callable[[T], bool]) -> int | None:
        """Return the position of the item to take; None if there is none."""
        for position, (_, _, item) in enumerate(self._items):
            if item is None:
                return None if position else 0
            if claim(item):
                return position
        return None
