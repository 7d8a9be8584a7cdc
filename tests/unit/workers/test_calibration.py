"""Measured costs of a device, and their file."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.unit.workers.test_model_folder import write_folder
from workers.engine import stored_costs
from workers.engine.backend import Ids
from workers.engine.calibration import Calibration, fit_costs
from workers.engine.engine import Engine
from workers.engine.micro_batches import Costs
from workers.engine.stored_costs import load_costs, store_costs
from workers.models.prepare import prepare_model

TRUE = Costs(0.5, 0.2, 0.0005, pads=False)
SHAPES = [(1, 8), (1, 32), (4, 32), (1, 128), (1, 512), (16, 32)]


def make_samples(costs: Costs, noise: Sequence[float] = (1,) * len(SHAPES)) -> list[tuple[int, int, float]]:
    """Return exact measurements of a device, multiplied by noise."""
    return [
        (rows, length, costs.predict_ms([length] * rows) * factor)
        for (rows, length), factor in zip(SHAPES, noise, strict=True)
    ]


def test_fit_finds_the_costs() -> None:
    found = fit_costs(make_samples(TRUE), pads=False)
    assert np.allclose([found.inference_ms, found.token_ms, found.pair_ms], [0.5, 0.2, 0.0005])


@pytest.mark.parametrize("seed", range(50))
def test_noise_gives_no_negative_costs(seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(0.3, 3, len(SHAPES))
    found = fit_costs(make_samples(TRUE, noise.tolist()), pads=True)
    assert min(found.inference_ms, found.pair_ms) >= 0
    assert found.token_ms > 0
    assert found.pads


def test_two_samples_are_enough() -> None:
    found = fit_costs([(1, 8, 30.0), (1, 32, 130.0)], pads=False)
    assert found.token_ms == pytest.approx(4, rel=0.1)


def test_noise_does_not_make_tokens_free() -> None:
    # Small inferences ran while the machine was busy.
    samples = make_samples(TRUE, [20, 8, 2, 2, 0.5, 0.5])
    found = fit_costs(samples, pads=False)
    assert found.predict_ms([32] * 16) - found.inference_ms >= samples[-1][2] * 0.249


def test_rows_that_cost_nothing_show_the_inference() -> None:
    found = fit_costs([(1, 8, 30.0), (1, 32, 30.0), (4, 32, 29.0)], pads=False)
    assert found.inference_ms > 25
    assert found.token_ms > 0


class FakeDevice:
    """Device without work, with a clock that inferences move on."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self.now = 0.0
        #: Added to every second inference.
        self.delay_s = 0.0
        self.shapes: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def monotonic(self) -> float:
        return self.now

    def run_inference(self, request: int, ids: Sequence[Ids]) -> None:
        with self._lock:
            self.now += self.costs.predict_ms([len(row) for row in ids]) / 1000
            self.now += self.delay_s * (len(self.shapes) % 2)
            self.shapes.append((len(ids), len(ids[0])))


def make_calibration(device: FakeDevice, monkeypatch: pytest.MonkeyPatch, max_tokens: int = 512) -> Calibration:
    """Return the calibration of a device of one stream."""
    monkeypatch.setattr("time.monotonic", device.monotonic)
    return Calibration(device.run_inference, 1, max_tokens, 0, pads=False)


@pytest.mark.parametrize("max_tokens", [512, 128, 8])
def test_calibration_finds_the_costs(max_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = make_calibration(FakeDevice(TRUE), monkeypatch, max_tokens)
    expected = [TRUE.predict_ms([length] * 2) for length in (8, max_tokens)]
    found = calibration.measure_costs()
    assert [found.predict_ms([length] * 2) for length in (8, max_tokens)] == pytest.approx(expected)


@pytest.mark.parametrize("costs", [Costs(100, 1, 0, pads=False), Costs(500, 3, 0, pads=False)])
def test_slow_device_shows_the_cost_of_inferences(costs: Costs, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make_calibration(FakeDevice(costs), monkeypatch).measure_costs()
    assert (found.inference_ms, found.token_ms) == pytest.approx((costs.inference_ms, costs.token_ms))


@pytest.mark.parametrize(("token_ms", "limit_s"), [(0.001, 1.2), (0.25, 1.2), (7, 2.5)])
def test_calibration_takes_about_a_second(token_ms: float, limit_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(Costs(0, token_ms, 0, pads=False))
    make_calibration(device, monkeypatch).measure_costs()
    assert device.now < limit_s
    assert len(set(device.shapes)) >= 2


def test_stored_costs_are_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = make_calibration(FakeDevice(TRUE), monkeypatch)
    assert calibration.confirm_costs(TRUE)
    assert not calibration.confirm_costs(Costs(1.5, 0.6, 0.0015, pads=False))
    assert not calibration.confirm_costs(Costs(0.1, 0.05, 0.0001, pads=False))
    # As fast for one input, but not for several.
    assert not calibration.confirm_costs(Costs(TRUE.predict_ms([32]), 1e-5, 0, pads=False))


def test_busy_moments_do_not_change_the_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(TRUE)
    calibration = make_calibration(device, monkeypatch)
    device.delay_s = 0.05
    assert calibration.measure_ms(1, 32) == pytest.approx(TRUE.predict_ms([32]))


def test_failed_inference_fails_the_calibration() -> None:
    def run(request: int, ids: Sequence[Ids]) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Calibration(run, 2, 512, 0, pads=False).measure_costs()


def test_costs_are_stored(tmp_path: Path) -> None:
    store_costs(tmp_path / "1.costs.json", TRUE)
    assert load_costs(tmp_path / "1.costs.json") == TRUE


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"inference_ms": 1}',
        b'{"inference_ms": -1, "token_ms": 1, "pair_ms": 1, "pads": true}',
        b'{"inference_ms": 1, "token_ms": 0, "pair_ms": 1, "pads": true}',
        b'{"inference_ms": 1, "token_ms": 1, "pair_ms": 1e999, "pads": true}',
        b'{"inference_ms": 1e9, "token_ms": 1, "pair_ms": 1, "pads": true}',
        b'{"inference_ms": 1, "token_ms": 1e-300, "pair_ms": 1, "pads": true}',
        b" " * 2000,
    ],
)
def test_damaged_costs_are_ignored(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "1.costs.json"
    path.write_bytes(content)
    assert load_costs(path) is None


def test_old_costs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_costs, "MAX_FILES", 2)
    for number in range(4):
        path = tmp_path / f"{number}.costs.json"
        store_costs(path, TRUE)
        os.utime(path, (number, number))
    assert len(list(tmp_path.iterdir())) == 2
    assert load_costs(tmp_path / "3.costs.json") == TRUE


def test_folder_without_permission_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store_costs(tmp_path / "missing" / "1.costs.json", TRUE)
    assert "the next start measures again" in caplog.text


def test_next_start_uses_stored_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_model(write_folder(tmp_path / "tiny"), tmp_path / "cache", print)
    first = Engine(prepared, "CPU", 1, tmp_path / "cache")
    first.warm_up()
    monkeypatch.setattr(Calibration, "confirm_costs", lambda *_: True)
    monkeypatch.delattr(Calibration, "measure_costs")
    again = Engine(prepared, "CPU", 1, tmp_path / "cache")
    again.warm_up()
    assert again.costs == first.costs
    # Two streams share the memory of the device, and have costs of their own.
    with pytest.raises(AttributeError):
        Engine(prepared, "CPU", 2, tmp_path / "cache").warm_up()
