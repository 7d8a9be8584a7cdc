"""How much of a batch is sent to the broker at once, and which batches wait for others. Pure.

A window of inputs, as in TCP: it doubles while the broker admits everything, and halves when the broker refuses
requests because its queue is too long or the key's quota is used up.
"""

#: First window, in inputs.
FIRST_INPUTS = 64.0
#: Largest window, in inputs; the lines of two parts are the tighter bound in practice.
MAX_INPUTS = 65_536.0
#: Shortest and longest pause after a refusal, in seconds.
MIN_PAUSE_S, MAX_PAUSE_S = 0.25, 30.0
#: Bounds on the lines of a part, and their first number.
MIN_PART_LINES, MAX_PART_LINES, FIRST_PART_LINES = 16, 1024, 128
#: Seconds that a part should take: long enough to pay for its commit, and short because a crash repeats two parts.
MIN_PART_S, MAX_PART_S = 0.5, 3.0
#: First and longest time for which a runner does not claim a batch that waits, in seconds; it doubles each time.
FIRST_DEFERRAL_S, MAX_DEFERRAL_S = 1.0, 30.0
#: Seconds after its deferral for which the length of a deferral is remembered.
_FORGET_S = 300.0


class Pace:
    """Window and pauses of one batch. Times are monotonic, in seconds."""

    def __init__(self) -> None:
        self._window = FIRST_INPUTS
        #: Number of inputs that are with the broker.
        self.sent = 0
        #: Until when no line is sent.
        self.paused_until = 0.0

    def may_send(self, inputs: int, now: float) -> bool:
        """Return whether a line of this many inputs may be sent; a line that is larger than the window runs alone."""
        return now >= self.paused_until and (not self.sent or self.sent + inputs <= self._window)

    def begin(self, inputs: int) -> None:
        """Record that a line was sent."""
        self.sent += inputs

    def end(self, inputs: int, *, answered: bool) -> None:
        """Record that the broker has answered or refused a line."""
        self.sent -= inputs
        if answered:
            self._window = min(MAX_INPUTS, self._window + inputs)

    def refuse(self, wait_s: float, now: float) -> float:
        """Record a refusal with the broker's proposal to wait. Return until when to wait.

        Several refusals at once count as one.
        """
        if now >= self.paused_until:
            self._window = max(1.0, min(self._window, self.sent + 1.0) / 2)
            self.paused_until = now + min(MAX_PAUSE_S, max(MIN_PAUSE_S, wait_s))
        return self.paused_until


class Deferrals:
    """Batches that a runner leaves to other runners for a while, because they wait. Times are monotonic, in seconds."""

    def __init__(self) -> None:
        # Until when each batch is deferred, and for how long.
        self._entries: dict[str, tuple[float, float]] = {}

    def add(self, batch: str, now: float) -> None:
        """Defer a batch, twice as long as the last time."""
        _, last_s = self._entries.get(batch, (0.0, FIRST_DEFERRAL_S / 2))
        duration_s = min(MAX_DEFERRAL_S, 2 * last_s)
        self._entries[batch] = now + duration_s, duration_s

    def remove(self, batch: str) -> None:
        """Forget a batch that does not wait any more."""
        self._entries.pop(batch, None)

    def list_deferred(self, now: float) -> list[str]:
        """Return the batches that are not to be claimed now."""
        # Another runner may have ended a batch.
        self._entries = {batch: entry for batch, entry in self._entries.items() if entry[0] + _FORGET_S > now}
        return [batch for batch, (until, _) in self._entries.items() if until > now]


def adapt_part_lines(lines: int, took_s: float) -> int:
    """Return how many lines the next parts have, if a part of `lines` took this long."""
    if took_s < MIN_PART_S:
        return min(MAX_PART_LINES, lines * 2)
    if took_s > MAX_PART_S:
        return max(MIN_PART_LINES, lines // 2)
    return lines
