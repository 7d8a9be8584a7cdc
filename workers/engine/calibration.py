"""Measures the costs of inferences on a device, by which `workers.engine.micro_batches` cuts batches."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from workers.engine.backend import Ids
from workers.engine.micro_batches import Costs

#: Rows and length in tokens of the inputs that are measured, the quick ones first. Long rows show the cost of
#: attention, and many rows that of tokens on a device which runs few of them as fast as one.
SHAPES = ((1, 8), (1, 32), (4, 32), (1, 128), (1, 512), (16, 32), (64, 32), (16, 128), (256, 32))
#: Shapes that are measured on a slow device too. Without several rows, the cost of an inference is not seen.
MIN_SHAPES = SHAPES[:3]
#: Shapes by which stored costs are checked.
CHECKED_SHAPES = ((1, 32), (4, 32))
#: Inferences of each shape in each stream, of which the first is not counted because it prepares the shape.
REPEATS = 4
#: The same for a shape with which the measurement would take longer than `BUDGET_S`.
MIN_REPEATS = 2
#: Seconds after which only `MIN_SHAPES` are measured.
BUDGET_S = 1.0
#: The tokens of the largest inference cost at least this part of it, attention included: noise must not make them free.
MIN_TOKENS_PART = 0.25
#: Stored costs are measured again if the device is faster or slower by these factors: it was busy when they were
#: measured, or is another one. The next start corrects costs of a device that is busy now.
FASTER, SLOWER = 1.3, 2.5

#: Runs inputs with the infer request of this number.
Run = Callable[[int, Sequence[Ids]], object]


class Calibration:
    """Measurements of one model on one device, with all streams of the device busy."""

    def __init__(self, run: Run, streams: int, max_tokens: int, token: int, *, pads: bool) -> None:
        """Take what runs an inference; the inputs consist of `token`."""
        self._run = run
        self._streams = streams
        self._max_tokens = max_tokens
        self._token = token
        self._pads = pads

    def measure_costs(self) -> Costs:
        """Return the costs of the device, after about `BUDGET_S`, or more if even small inferences take longer."""
        started = time.monotonic()
        samples: list[tuple[int, int, float]] = []
        needed = self._shorten(MIN_SHAPES)
        for rows, length in self._shorten(SHAPES):
            repeats = REPEATS
            if samples:
                last_rows, last_length, last_ms = samples[-1]
                expected_s = REPEATS * last_ms / 1000 * rows * length / (last_rows * last_length)
                if time.monotonic() - started + expected_s > BUDGET_S:
                    if (rows, length) not in needed:
                        continue
                    repeats = MIN_REPEATS
            samples.append((rows, length, self.measure_ms(rows, length, repeats)))
        return fit_costs(samples, pads=self._pads)

    def confirm_costs(self, costs: Costs) -> bool:
        """Return whether the device is about as fast as with these costs."""
        for rows, length in self._shorten(CHECKED_SHAPES):
            expected_ms = costs.predict_ms([length] * rows)
            repeats = REPEATS if REPEATS * expected_ms < 1000 * BUDGET_S else MIN_REPEATS
            if not expected_ms / FASTER < self.measure_ms(rows, length, repeats) < expected_ms * SLOWER:
                return False
        return True

    def _shorten(self, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return different shapes of inputs that the model accepts."""
        return list(dict.fromkeys((rows, min(length, self._max_tokens)) for rows, length in shapes))

    def measure_ms(self, rows: int, length: int, repeats: int = REPEATS) -> float:
        """Return the milliseconds of an inference while each stream runs the same.

        That is the lower quartile, because other processes can only make an inference slower.
        """
        ids = [np.full(length, self._token, np.int64)] * rows
        durations: list[float] = []

        def run_stream(number: int) -> None:
            for repeat in range(repeats):
                started = time.monotonic()
                self._run(number, ids)
                if repeat:
                    durations.append(1000 * (time.monotonic() - started))

        with ThreadPoolExecutor(self._streams) as pool:
            list(pool.map(run_stream, range(self._streams)))
        return sorted(durations)[len(durations) // 4]


def fit_costs(samples: Sequence[tuple[int, int, float]], *, pads: bool) -> Costs:
    """Return the costs that fit best: least squares of relative errors, without negative costs. Pure.

    A sample is the number of rows, their common length in tokens, and the milliseconds of an inference.
    """
    measured = np.array([duration for _, _, duration in samples])
    terms = np.array([(1, rows * length, rows * length**2) for rows, length, _ in samples]) / measured[:, None]
    # Without negative costs the best fit leaves some of them out, on a slow device perhaps all but that of an
    # inference. As many costs as samples would fit noise.
    best, (inference_ms, token_ms, pair_ms) = np.inf, np.zeros(3)
    for used in ([0], [1], [0, 1], [1, 2], [0, 1, 2]):
        found = np.zeros(3)
        found[used] = np.linalg.lstsq(terms[:, used], np.ones(len(samples)), rcond=None)[0]
        error = float(((terms @ found - 1) ** 2).sum())
        if found.min() >= 0 and (found[1] > 0 or used == [0]) and error < best and len(used) < max(2, len(samples)):
            best, (inference_ms, token_ms, pair_ms) = error, found
    # Of the largest samples, the one with short rows has little attention.
    tokens, rows, duration = max((rows * length, rows, duration) for rows, length, duration in samples)
    token_ms = max(token_ms, MIN_TOKENS_PART * duration / tokens - pair_ms * tokens / rows)
    return Costs(float(inference_ms), float(token_ms), float(pair_ms), pads)
