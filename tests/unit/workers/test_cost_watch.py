"""Costs that were measured on a busy host are corrected while a worker serves."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.workers.test_model_folder import write_folder
from workers.engine.cost_watch import INFERENCES, TOO_HIGH, CostWatch
from workers.engine.engine import Engine
from workers.engine.micro_batches import Costs
from workers.engine.stored_costs import load_costs
from workers.models.prepare import prepare_model


def record(watch: CostWatch, parts: list[float]) -> list[float]:
    """Return the corrections after inferences that took these parts of their predictions."""
    found = [watch.record_inference(10.0, 10.0 * part) for part in parts]
    return [factor for factor in found if factor is not None]


def test_fitting_costs_are_kept() -> None:
    assert record(CostWatch(), [TOO_HIGH, 1.0, 1.4] * INFERENCES) == []


def test_slow_inferences_change_no_costs() -> None:
    assert record(CostWatch(), [9.0] * 3 * INFERENCES) == []


def test_costs_that_are_too_high_are_corrected_once() -> None:
    watch = CostWatch()
    # The other half ran while another program was busy.
    parts = [0.5, 2.0] * (INFERENCES // 2)
    assert record(watch, parts[:-1]) == []
    assert record(watch, parts[-1:]) == [0.5]
    assert record(watch, [1.0] * INFERENCES) == []


@pytest.mark.parametrize("streams", [1, 2])
def test_running_worker_corrects_its_costs(
    tmp_path: Path, streams: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    engine = Engine(prepare_model(write_folder(tmp_path / "tiny"), tmp_path / "cache", print), "CPU", streams, tmp_path)
    engine.warm_up()
    engine.costs = high = Costs(10_000.0, 10.0, 1.0, pads=engine.costs.pads)
    ids = engine.tokenize_texts(["hello world"])
    if engine.streams > 1:
        for _ in range(2 * INFERENCES):
            engine.run_inference(0, ids)
        # One stream alone is faster than all of them together.
        assert engine.costs == high

    def run(request: int) -> None:
        until = time.monotonic() + 10
        while engine.costs == high and time.monotonic() < until:
            engine.run_inference(request, ids)

    with ThreadPoolExecutor(engine.streams) as pool:
        list(pool.map(run, range(engine.streams)))
    assert engine.costs.inference_ms < TOO_HIGH * high.inference_ms
    assert engine.costs.inference_ms / engine.costs.token_ms == pytest.approx(1000)
    assert load_costs(engine._costs_path) == engine.costs
    assert "the host was busy when their costs were measured" in caplog.text
