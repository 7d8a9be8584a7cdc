"""How long a worker takes for a batch: a + b·tokens seconds, learned from its answers. Pure."""

#: How much an observation counts against the one after it.
FORGETTING = 0.95
#: What the worker's own measurement at warm-up counts, in observations.
PRIOR_WEIGHT = 2.0
#: Fixed seconds of a batch until there is an observation.
PRIOR_FIXED_S = 0.002


class Speed:
    """An exponentially weighted straight line through (tokens, seconds)."""

    def __init__(self, tokens_per_s: float, batch_tokens: int) -> None:
        rate = max(1.0, tokens_per_s)
        # Two points of the line that the worker itself has measured.
        self._n = self._x = self._y = self._xx = self._xy = 0.0
        for tokens in (1, batch_tokens):
            self._add(tokens, PRIOR_FIXED_S + tokens / rate, PRIOR_WEIGHT / 2)

    def learn(self, tokens: int, seconds: float) -> None:
        """A batch of `tokens` took so long."""
        self._n, self._x, self._y = self._n * FORGETTING, self._x * FORGETTING, self._y * FORGETTING
        self._xx, self._xy = self._xx * FORGETTING, self._xy * FORGETTING
        self._add(tokens, seconds, 1.0)

    def predict(self, tokens: int) -> float:
        """Seconds that a batch will take."""
        a, b = self._line()
        return a + b * tokens

    @property
    def tokens_per_s(self) -> float:
        """What it does with batches like those it had."""
        return self._x / self._y if self._y > 0 else 1.0

    def _line(self) -> tuple[float, float]:
        spread = self._n * self._xx - self._x * self._x
        slope = (self._n * self._xy - self._x * self._y) / spread if spread > 1e-9 else -1.0
        fixed = (self._y - slope * self._x) / self._n
        if slope <= 0 or fixed < 0:
            # Batches of one size, or noise: the line through the origin.
            return 0.0, self._y / self._x
        return fixed, slope

    def _add(self, tokens: int, seconds: float, weight: float) -> None:
        self._n += weight
        self._x += weight * tokens
        self._y += weight * seconds
        self._xx += weight * tokens * tokens
        self._xy += weight * tokens * seconds
