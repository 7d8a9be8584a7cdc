"""Measures the costs of inferences on a device, by which `workers.engine.micro_batches` cuts batches."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from workers.engine.backend import Ids
from workers.engine.micro_batches import Costs

#: Rows and length in tokens of the inputs that are measured, the quick ones first. Long rows show the cost of
#: attention, and many rows that of tokens on a device which runs few of them as fast as one.
SHAPES = ((1, 8), (1, 32), (4, 32), (1, 128), (1, 512), (16, 32), (64, 32), (16, 128), (256, 32))
#: Shape by which stored costs are checked.
CHECKED_SHAPE = (1, 32)
#: Inferences of each shape in each stream, of which the first is not counted because it prepares the shape.
REPEATS = 4
#: Seconds after which no further shape is measured. The first two always are.
BUDGET_S = 1.0
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
        for rows, length in dict.fromkeys((rows, min(length, self._max_tokens)) for rows, length in SHAPES):
            if len(samples) > 1:
                last_rows, last_length, last_ms = samples[-1]
                expected_s = REPEATS * last_ms / 1000 * rows * length / (last_rows * last_length)
                if time.monotonic() - started + expected_s > BUDGET_S:
                    continue
            samples.append((rows, length, self.measure_ms(rows, length)))
        return fit_costs(samples, pads=self._pads)

    def confirm_costs(self, costs: Costs) -> bool:
        """Return whether the device is about as fast as with these costs."""
        rows, length = CHECKED_SHAPE[0], min(CHECKED_SHAPE[1], self._max_tokens)
        expected_ms = costs.predict_ms([length] * rows)
        return expected_ms / FASTER < self.measure_ms(rows, length) < expected_ms * SLOWER

    def measure_ms(self, rows: int, length: int) -> float:
        """Return the milliseconds of an inference while each stream runs the same: the median."""
        ids = [np.full(length, self._token, np.int64)] * rows
        durations: list[float] = []

        def run_stream(number: int) -> None:
            for repeat in range(REPEATS):
                started = time.monotonic()
                self._run(number, ids)
                if repeat:
                    durations.append(1000 * (time.monotonic() - started))

        with ThreadPoolExecutor(self._streams) as pool:
            list(pool.map(run_stream, range(self._streams)))
        return statistics.median(durations)


def fit_costs(samples: Sequence[tuple[int, int, float]], *, pads: bool) -> Costs:
    """Return the costs that fit best: least squares of relative errors, without negative costs. Pure.

    A sample is the number of rows, their common length in tokens, and the milliseconds of an inference.
    """
    measured = np.array([duration for _, _, duration in samples])
    terms = np.array([(1, rows * length, rows * length**2) for rows, length, _ in samples]) / measured[:, None]
    # Without negative costs the best fit leaves some of them out. Every token costs something, so that the costs of a
    # batch grow with its size. As many costs as samples would fit noise.
    best, (inference_ms, token_ms, pair_ms) = np.inf, np.zeros(3)
    for used in ([1], [0, 1], [1, 2], [0, 1, 2]):
        found = np.zeros(3)
        found[used] = np.linalg.lstsq(terms[:, used], np.ones(len(samples)), rcond=None)[0]
        error = float(((terms @ found - 1) ** 2).sum())
        if found.min() >= 0 and found[1] > 0 and error < best and len(used) < max(2, len(samples)):
            best, (inference_ms, token_ms, pair_ms) = error, found
    return Costs(float(inference_ms), float(token_ms), float(pair_ms), pads)
