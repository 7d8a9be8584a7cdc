"""Token quotas per minute: one token bucket for each client that has a limit. Pure.

A bucket holds one minute's tokens and fills at a constant rate. Admission charges a request's estimated tokens, and the
charge is corrected when the exact number is known. A request larger than the bucket waits until the bucket is full and
leaves it in debt, so that no estimate can make a request impossible.
"""

from collections.abc import Hashable
from dataclasses import dataclass

#: Most buckets kept. Full buckets are dropped first, which has no effect on their clients.
MAX_BUCKETS = 10_000


@dataclass(slots=True)
class Bucket:
    """Token bucket of one client; the level is as of `updated_at`."""

    per_minute: int
    level: float
    updated_at: float

    def refill(self, per_minute: int, now: float) -> None:
        """Advance to `now`, and apply a limit that may have changed."""
        self.level = min(per_minute, self.level + (now - self.updated_at) * per_minute / 60)
        self.per_minute, self.updated_at = per_minute, now


class Quotas:
    """Buckets of all clients that have a limit and have used some of it."""

    def __init__(self) -> None:
        self._buckets: dict[Hashable, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def find_wait_s(self, client: Hashable, tokens: int, per_minute: int, now: float) -> float:
        """Return the seconds until a request of `tokens` may be admitted; 0 without a limit (`per_minute` is 0)."""
        bucket = self._buckets.get(client)
        if not per_minute or bucket is None:
            return 0.0
        bucket.refill(per_minute, now)
        return max(0.0, (min(tokens, per_minute) - bucket.level) * 60 / per_minute)

    def charge(self, client: Hashable, tokens: int, per_minute: int, now: float) -> None:
        """Take an admitted request's tokens from its client's bucket."""
        if not per_minute:
            return
        if len(self._buckets) >= MAX_BUCKETS:
            self._drop_full(now)
        bucket = self._buckets.setdefault(client, Bucket(per_minute, per_minute, now))
        bucket.refill(per_minute, now)
        bucket.level -= tokens

    def correct_charge(self, client: Hashable, estimated: int, exact: int) -> None:
        """Replace a job's estimated tokens by the exact number."""
        if self._buckets and (bucket := self._buckets.get(client)):
            bucket.level += estimated - exact

    def _drop_full(self, now: float) -> None:
        for client, bucket in list(self._buckets.items()):
            bucket.refill(bucket.per_minute, now)
            if bucket.level >= bucket.per_minute:
                del self._buckets[client]
