"""Cutting a batch into micro-batches by cost."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine import micro_batches as cutting
from workers.engine.micro_batches import LIMIT_MS, MAX_PIECES, Costs, cut_micro_batches

COSTS = st.builds(
    Costs,
    inference_ms=st.floats(0, 5),
    token_ms=st.floats(0.01, 1),
    pair_ms=st.floats(0, 0.01),
    pads=st.booleans(),
)


def predict_each(micro_batches: Sequence[Sequence[int]], lengths: Sequence[int], costs: Costs) -> list[float]:
    """Return the duration of each micro-batch."""
    return [costs.predict_ms([lengths[row] for row in rows]) for rows in micro_batches]


def list_cuts(rows: Sequence[int]) -> Iterator[list[Sequence[int]]]:
    """Yield all ways to cut rows into pieces without a change of their order."""
    for count in range(len(rows)):
        for places in itertools.combinations(range(1, len(rows)), count):
            yield [rows[first:end] for first, end in itertools.pairwise((0, *places, len(rows)))]


def list_partitions(rows: Sequence[int]) -> Iterator[list[list[int]]]:
    """Yield all ways to divide rows into groups."""
    if not rows:
        yield []
        return
    for groups in list_partitions(rows[1:]):
        yield [[rows[0]], *groups]
        for number, group in enumerate(groups):
            yield [*groups[:number], [rows[0], *group], *groups[number + 1 :]]


@given(st.lists(st.integers(1, 300), max_size=300), COSTS, st.integers(1, 4), st.floats(1, 100))
def test_each_row_runs_once_within_the_limit(lengths: list[int], costs: Costs, streams: int, limit_ms: float) -> None:
    micro_batches = cut_micro_batches(lengths, costs, streams, limit_ms)
    assert sorted(itertools.chain(*micro_batches)) == list(range(len(lengths)))
    for rows, duration in zip(micro_batches, predict_each(micro_batches, lengths, costs), strict=True):
        assert duration <= limit_ms * 1.0001 or len(rows) == 1


@given(st.lists(st.integers(1, 300), max_size=300), COSTS)
def test_longest_rows_run_first(lengths: list[int], costs: Costs) -> None:
    order = [lengths[row] for row in itertools.chain(*cut_micro_batches(lengths, costs, 1))]
    assert order == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), COSTS, st.floats(1, 100))
def test_no_other_cut_takes_less_time(lengths: list[int], costs: Costs, limit_ms: float) -> None:
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    totals = []
    for cut in list_cuts(order):
        durations = predict_each(cut, lengths, costs)
        if all(ms <= limit_ms or len(rows) == 1 for rows, ms in zip(cut, durations, strict=True)):
            totals.append(sum(durations))
    found = sum(predict_each(cut_micro_batches(lengths, costs, 1, limit_ms), lengths, costs))
    assert found == pytest.approx(min(totals))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), COSTS)
def test_no_other_grouping_takes_less_time(lengths: list[int], costs: Costs) -> None:
    """Without a limit, rows of similar lengths belong together."""
    totals = [sum(predict_each(groups, lengths, costs)) for groups in list_partitions(range(len(lengths)))]
    assert sum(predict_each(cut_micro_batches(lengths, costs, 1, 1e9), lengths, costs)) == pytest.approx(min(totals))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), COSTS, st.integers(2, 4))
def test_few_rows_end_soonest_on_all_streams(lengths: list[int], costs: Costs, streams: int) -> None:
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    soonest = min(max(predict_each(cut, lengths, costs)) for cut in list_cuts(order) if len(cut) <= streams)
    durations = predict_each(cut_micro_batches(lengths, costs, streams, 1e9), lengths, costs)
    assert max(durations) <= soonest * 1.02 + costs.predict_ms(lengths) * 0.01


@pytest.mark.parametrize(
    ("lengths", "costs", "streams", "expected"),
    [
        ([], Costs(1, 1, 0, pads=False), 2, []),
        ([7], Costs(1, 1, 0, pads=False), 2, [[0]]),
        ([3, 50, 4, 49], Costs(5, 0.1, 0, pads=True), 1, [[1, 3], [2, 0]]),  # padding costs more than an inference
        ([3, 50, 4, 49], Costs(5, 0.1, 0, pads=False), 1, [[1, 3, 2, 0]]),  # nothing is padded
        ([3, 50, 4, 49], Costs(5, 0.1, 0.01, pads=False), 1, [[1], [3], [2, 0]]),  # attention over the limit
        ([10] * 8, Costs(1, 0.1, 0, pads=False), 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ([50, 10, 10, 10, 10], Costs(1, 0.1, 0, pads=False), 2, [[0], [1, 2, 3, 4]]),
        ([500] * 3, Costs(1, 1, 0, pads=False), 1, [[0], [1], [2]]),  # each is longer than the limit
    ],
)
def test_cuts(lengths: list[int], costs: Costs, streams: int, expected: list[list[int]]) -> None:
    assert cut_micro_batches(lengths, costs, streams) == expected


def test_slow_inferences_still_run_several_rows() -> None:
    lengths, costs = [24] * 32, Costs(100, 1, 0, pads=False)
    micro_batches = cut_micro_batches(lengths, costs, 2)
    assert len(micro_batches) <= 4
    assert sum(predict_each(micro_batches, lengths, costs)) < 1300


@pytest.mark.parametrize("lengths", [[24] * 64, [500, *[24] * 63], [24] * 200, [500, *[1] * 200]])
def test_shares_of_streams_are_found_quickly(lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    make_prediction = cutting._make_prediction

    def count_calls(rows: Sequence[int], costs: Costs) -> Callable[[int, int], float]:
        predict_ms = make_prediction(rows, costs)

        def predict(first: int, end: int) -> float:
            nonlocal calls
            calls += 1
            return predict_ms(first, end)

        return predict

    monkeypatch.setattr(cutting, "_make_prediction", count_calls)
    cut_micro_batches(lengths, Costs(1, 0.1, 0, pads=False), 64)
    assert calls < 30 * len(lengths)


@pytest.mark.parametrize("pads", [False, True])
def test_many_rows_are_cut_almost_as_well(pads: bool) -> None:
    lengths, costs = [1 + row % 200 for row in range(2000)], Costs(0.5, 0.01, 0.0001, pads=pads)
    total = sum(predict_each(cut_micro_batches(lengths, costs, 1), lengths, costs))
    # What one could not do without: no padding and full micro-batches.
    tokens_ms = sum(costs.predict_ms([length]) - costs.inference_ms for length in lengths)
    assert total <= tokens_ms + 1.35 * costs.inference_ms * tokens_ms / LIMIT_MS + tokens_ms / MAX_PIECES


def test_speed_counts_full_micro_batches() -> None:
    assert Costs(2, 1, 0, pads=False).compute_speed(10) == pytest.approx(30 / 0.032)
    assert Costs(0, 1, 0, pads=False).compute_speed(100) == pytest.approx(1000)
    assert Costs(100, 1, 0, pads=False).compute_speed(10) == pytest.approx(300 / 0.4)


@pytest.mark.parametrize("costs", [Costs(0, 1e-300, 0, pads=False), Costs(1e12, 5e-324, 0, pads=True)])
def test_absurd_costs_have_a_finite_speed(costs: Costs) -> None:
    assert math.isfinite(costs.compute_speed(32))
