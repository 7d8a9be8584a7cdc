"""Prediction of a worker's batch time, fixed_s + tokens · slope, learned from its answers. Pure."""

#: Weight of an observation relative to the next one.
DECAY = 0.95
#: Weight of the worker's own measurement at warm-up, in observations.
PRIOR_WEIGHT = 2.0
#: Fixed seconds of a batch before the first observation.
PRIOR_FIXED_S = 0.002


class Throughput:
    """Least-squares line through (tokens, seconds), with exponentially decaying weights."""

    def __init__(self, tokens_per_s: float, batch_tokens: int) -> None:
        rate = max(1.0, tokens_per_s)
        # Two points of the line that the worker measured itself.
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        for tokens in (1, batch_tokens):
            self._add_point(tokens, PRIOR_FIXED_S + tokens / rate, PRIOR_WEIGHT / 2)

    def record_batch(self, tokens: int, seconds: float) -> None:
        """Add the observation that a batch of `tokens` took `seconds`."""
        self._n, self._x, self._y = self._n * DECAY, self._x * DECAY, self._y * DECAY
        self._xx, self._xy = self._xx * DECAY, self._xy * DECAY
        self._add_point(tokens, seconds, 1.0)

    def predict_seconds(self, tokens: int) -> float:
        """Return the expected seconds of a batch."""
        fixed, slope = self._fit_line()
        return fixed + slope * tokens

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second over batches like the recent ones."""
        return self._x / self._y if self._y > 0 else 1.0

    def _fit_line(self) -> tuple[float, float]:
        """Return the line's value at 0 tokens and its slope, neither of them negative."""
        spread = self._n * self._xx - self._x * self._x
        slope = (self._n * self._xy - self._x * self._y) / spread if spread > 1e-9 else -1.0
        fixed = (self._y - slope * self._x) / self._n
        if slope <= 0 or fixed < 0:
            # Batches of one size, or noise: use the line through the origin.
            return 0.0, self._y / self._x
        return fixed, slope

    def _add_point(self, tokens: int, seconds: float, weight: float) -> None:
        self._n += weight
        self._x += weight * tokens
        self._y += weight * seconds
        self._xx += weight * tokens * tokens
        self._xy += weight * tokens * seconds
