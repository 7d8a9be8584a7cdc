"""What each client may use in a minute: a token bucket for each that has a limit. Pure.

The bucket holds one minute's tokens and fills steadily. A request takes its estimated tokens when it is admitted, and
the difference is settled when the exact number is known. One that is larger than the bucket waits until it is full and
then leaves it in debt: an estimate must not refuse a request for ever.
"""

from collections.abc import Hashable

#: Buckets kept at most; full ones are let go first, which changes nothing.
MAX_BUCKETS = 10_000


class Bucket:
    """A client's."""

    __slots__ = ("at", "level", "per_minute")

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self.level = float(per_minute)
        self.at = now

    def fill(self, per_minute: int, now: float) -> None:
        """Time has passed, and the limit may have been changed."""
        self.level = min(per_minute, self.level + (now - self.at) * per_minute / 60)
        self.per_minute, self.at = per_minute, now


class Quotas:
    """All clients that have a limit and have used some of it."""

    def __init__(self) -> None:
        self._buckets: dict[Hashable, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_s(self, client: Hashable, tokens: int, per_minute: int, now: float) -> float:
        """How long until a request of so many tokens may be admitted; 0: now. Without a limit (0) always 0."""
        bucket = self._buckets.get(client)
        if not per_minute or bucket is None:
            return 0.0
        bucket.fill(per_minute, now)
        return max(0.0, (min(tokens, per_minute) - bucket.level) * 60 / per_minute)

    def take(self, client: Hashable, tokens: int, per_minute: int, now: float) -> None:
        """A request is admitted."""
        if not per_minute:
            return
        if len(self._buckets) >= MAX_BUCKETS:
            self._drop_full(now)
        bucket = self._buckets.setdefault(client, Bucket(per_minute, now))
        bucket.fill(per_minute, now)
        bucket.level -= tokens

    def settle(self, client: Hashable, estimated: int, exact: int) -> None:
        """The job that was taken for `estimated` tokens had `exact`."""
        if self._buckets and (bucket := self._buckets.get(client)):
            bucket.level += estimated - exact

    def _drop_full(self, now: float) -> None:
        for client, bucket in list(self._buckets.items()):
            bucket.fill(bucket.per_minute, now)
            if bucket.level >= bucket.per_minute:
                del self._buckets[client]
