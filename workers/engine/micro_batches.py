"""Micro-batches: which inputs of a batch run in one inference, by measured cost. Pure."""

import itertools
from collections.abc import Callable, Sequence

import msgspec

#: Longest micro-batch of several rows, in milliseconds, unless the caller has another limit. An interactive input may
#: have to wait for one to end.
LIMIT_MS = 32.0
#: The limit is this many times the cost of an inference if that is longer: a slow device must run several rows too.
LIMIT_INFERENCES = 4
#: Most rows of a micro-batch by which the speed of a device is stated; a batch has no more of them.
MAX_ROWS = 2048
#: A batch is cut between any two of this many pieces of equal cost, and between any two rows if there are fewer rows.
#: One of 4,096 rows then takes as long as one of 64 rows.
MAX_PIECES = 64
#: Pieces of a micro-batch of the longest duration, at least.
MIN_PIECES = 4


class Costs(msgspec.Struct, frozen=True):
    """Milliseconds that inferences take while all streams of the device are busy."""

    #: Of an inference, however small.
    inference_ms: float
    #: Of a token, padding included if the backend pads.
    token_ms: float
    #: Of a query and a key in attention, of which each row has as many as the square of the longest row.
    pair_ms: float
    #: Whether an inference pads all inputs to the longest.
    pads: bool

    @property
    def limit_ms(self) -> float:
        """Longest micro-batch of several rows."""
        return max(LIMIT_MS, LIMIT_INFERENCES * self.inference_ms)

    def predict_ms(self, lengths: Sequence[int]) -> float:
        """Return the duration of one inference of inputs of these lengths in tokens."""
        return _make_prediction(sorted(lengths, reverse=True), self)(0, len(lengths))

    def scale(self, factor: float) -> "Costs":
        """Return the costs of a device on which everything takes this many times as long."""
        return Costs(factor * self.inference_ms, factor * self.token_ms, factor * self.pair_ms, self.pads)

    def compute_row_ms(self, length: int) -> float:
        """Return what a row of this length in tokens adds to an inference whose longest row it is."""
        return self.token_ms * length + self.pair_ms * length * length

    def compute_speed(self, length: int) -> float:
        """Return the tokens per second of a stream with micro-batches of inputs of one length, of `limit_ms` each."""
        rows = max(1, int(min(MAX_ROWS, (self.limit_ms - self.inference_ms) / self.compute_row_ms(length))))
        return 1000 * rows * length / self.predict_ms([length] * rows)


def cut_micro_batches(
    lengths: Sequence[int], costs: Costs, streams: int, limit_ms: float | None = None
) -> list[list[int]]:
    """Return micro-batches as lists of row numbers, with similar lengths together and the longest rows first.

    No other cut of the sorted rows takes less time in total while each micro-batch takes at most `limit_ms`, by default
    that of the costs, or is a single row. If there are few rows, each stream gets some, because two half batches on two
    streams end sooner than a whole batch on one. The longest rows run first so that the last micro-batches, when
    streams run out of work, are short.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    if len(order) < 2:
        return [order] if order else []
    rows = [lengths[row] for row in order]
    predict_ms = _make_prediction(rows, costs)
    limit_ms = costs.limit_ms if limit_ms is None else limit_ms
    if streams > 1 and predict_ms(0, len(rows)) < limit_ms * streams:
        limit_ms = min(limit_ms, _find_share_ms(len(rows), predict_ms, streams))
    ends = _choose_ends(_list_places(rows, costs, limit_ms), predict_ms, limit_ms)
    return [order[first:end] for first, end in itertools.pairwise([0, *ends])]


def _make_prediction(rows: Sequence[int], costs: Costs) -> Callable[[int, int], float]:
    """Return a function that returns the duration of rows from the first to, but without, the second number.

    `rows` are lengths in tokens, the longest first.
    """
    sums = [0, *itertools.accumulate(rows)]
    inference_ms, token_ms, pair_ms, pads = costs.inference_ms, costs.token_ms, costs.pair_ms, costs.pads

    def predict_ms(first: int, end: int) -> float:
        longest, count = rows[first], end - first
        tokens = count * longest if pads else sums[end] - sums[first]
        return inference_ms + token_ms * tokens + pair_ms * count * longest * longest

    return predict_ms


def _find_share_ms(count: int, predict_ms: Callable[[int, int], float], streams: int) -> float:
    """Return the shortest limit, but for 1 %, with which all rows are in one micro-batch a stream."""
    # Row 0 is the longest. No limit below its duration makes the batch end sooner.
    low, high = predict_ms(0, 1), predict_ms(0, count)
    if count <= streams:
        return low
    while high - low > high / 100:
        middle = (low + high) / 2
        first = parts = 0
        for end in range(1, count + 1):
            if end == count or predict_ms(first, end + 1) > middle:
                first, parts = end, parts + 1
        low, high = (low, middle) if parts <= streams else (middle, high)
    return high


def _list_places(rows: Sequence[int], costs: Costs, limit_ms: float) -> list[int]:
    """Return numbers of rows between which a batch may be cut: 0, others, and the number of all rows."""
    if len(rows) <= MAX_PIECES:
        return list(range(len(rows) + 1))
    durations = [costs.compute_row_ms(length) for length in rows]
    piece_ms = min(sum(durations) / MAX_PIECES, limit_ms / MIN_PIECES)
    places, sum_ms = [0], 0.0
    for row, duration in enumerate(durations):
        if sum_ms and sum_ms + duration > piece_ms:
            places.append(row)
            sum_ms = 0.0
        sum_ms += duration
    return [*places, len(rows)]


def _choose_ends(places: Sequence[int], predict_ms: Callable[[int, int], float], limit_ms: float) -> list[int]:
    """Return the places where micro-batches end, such that their sum is shortest, by dynamic programming."""
    best = [0.0] + [float("inf")] * (len(places) - 1)
    before = [0] * len(places)
    for first, start in enumerate(places[:-1]):
        for last in range(first + 1, len(places)):
            duration = predict_ms(start, places[last])
            if duration > limit_ms and last > first + 1:
                break
            if best[first] + duration < best[last]:
                best[last], before[last] = best[first] + duration, first
    ends, last = [], len(places) - 1
    while last:
        ends.append(places[last])
        last = before[last]
    return ends[::-1]
