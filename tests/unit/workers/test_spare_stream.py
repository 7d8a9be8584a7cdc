"""The streams that run interactive inputs: one during bulk work, one on all CPUs while no other inference runs."""

import contextlib
import locale
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.unit.workers.test_model_folder import write_folder
from workers.engine.cpus import NICE
from workers.engine.device import DeviceError
from workers.engine.engine import Engine
from workers.models.prepare import PreparedModel, prepare_model


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedModel:
    """Return a tiny model."""
    return prepare_model(write_folder(tmp_path / "tiny"), tmp_path / "cache", print)


def list_threads() -> dict[str, int]:
    """Return the nice value of each thread of this process."""
    tasks = Path("/proc/self/task").iterdir()
    return {task.name: int((task / "stat").read_text().rpartition(")")[2].split()[16]) for task in tasks}


def test_spare_stream_gives_the_same_vectors(tmp_path: Path, prepared: PreparedModel) -> None:
    engine = Engine(prepared, "CPU", 1, tmp_path / "cache")
    ids = engine.tokenize_texts(["hello world", "hello"])
    expected = engine.run_inference(0, ids).copy()
    spare = engine.open_spare_request()
    assert spare == engine.requests
    np.testing.assert_allclose(engine.run_inference(spare, ids), expected, atol=1e-6)


def test_threads_of_other_streams_yield_to_it(tmp_path: Path, prepared: PreparedModel) -> None:
    before = list_threads()
    engine = Engine(prepared, "CPU", 1, tmp_path / "cache")
    compiled = list_threads()
    # The tokenizer has threads of its own.
    assert min(19, os.nice(0) + NICE) in {compiled[thread] for thread in compiled.keys() - before.keys()}
    spare = engine.open_spare_request()
    assert spare
    opened = list_threads()
    # The compilation takes no CPU time from inferences that run, and those of the spare stream run in this thread.
    assert {opened[thread] for thread in opened.keys() - compiled.keys()} <= {min(19, os.nice(0) + NICE)}
    ids = engine.tokenize_texts(["hello world"])
    process, thread = time.process_time(), time.thread_time()
    for _ in range(200):
        engine.run_inference(spare, ids)
    assert time.thread_time() - thread > (time.process_time() - process) / 2


def test_device_without_spare_stream_has_none(tmp_path: Path, prepared: PreparedModel) -> None:
    assert Engine(prepared, "CPU", 1, tmp_path / "cache", fixed_shapes=True).open_spare_request() is None


@pytest.mark.parametrize("gain", [2.0, 1.1])
def test_stream_on_all_cpus_is_kept_if_faster(
    gain: float, tmp_path: Path, prepared: PreparedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(prepared, "CPU", 2, tmp_path / "cache")
    compared: list[tuple[int, int]] = []

    def compare_requests(first: int, second: int) -> float:
        compared.append((first, second))
        expected = engine.run_inference(first, ids).copy()
        np.testing.assert_allclose(engine.run_inference(second, ids), expected, atol=1e-6)
        return gain

    ids = engine.tokenize_texts(["hello world", "hello"])
    monkeypatch.setattr(engine, "_compare_requests", compare_requests)
    wide = engine.open_wide_request(lambda: contextlib.nullcontext([1, 0]))
    assert compared == [(1, 3)]
    assert wide == (3 if gain == 2 else None)
    assert len(engine._requests) == 2 + (gain == 2)


def test_comparison_returns_how_much_faster(
    tmp_path: Path, prepared: PreparedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is the number of inferences, of which request 1 counts two."""
    engine = Engine(prepared, "CPU", 2, tmp_path / "cache")
    now = 0

    def run_inference(request: int, _: object) -> None:
        nonlocal now
        now += 1 + request

    monkeypatch.setattr(engine, "run_inference", run_inference)
    monkeypatch.setattr("workers.engine.engine.time.monotonic", lambda: now)
    assert engine._compare_requests(1, 0) == 2


def test_single_stream_has_all_cpus_already(tmp_path: Path, prepared: PreparedModel) -> None:
    engine = Engine(prepared, "CPU", 1, tmp_path / "cache")
    assert engine.open_wide_request(lambda: contextlib.nullcontext([0])) is None


def test_stream_on_all_cpus_is_closed_if_it_cannot_be_compared(tmp_path: Path, prepared: PreparedModel) -> None:
    engine = Engine(prepared, "CPU", 2, tmp_path / "cache")
    assert engine.open_wide_request(lambda: contextlib.nullcontext([])) is None
    assert len(engine._requests) == 2


class BrokenModel:
    """Compiled model whose infer requests fail."""

    def create_infer_request(self) -> "BrokenModel":
        return self

    def infer(self, *_: object, **__: object) -> None:
        raise RuntimeError("the inference fails")


@pytest.mark.parametrize("failure", [DeviceError("out of memory"), OSError("disk full"), None])
def test_spare_stream_that_fails_is_not_used(
    failure: Exception | None,
    tmp_path: Path,
    prepared: PreparedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def compile_model(_: object) -> BrokenModel:
        if failure:
            raise failure
        return BrokenModel()

    engine = Engine(prepared, "CPU", 1, tmp_path / "cache")
    monkeypatch.setattr(engine, "_compile_stream", compile_model)
    assert engine.open_spare_request() is None
    assert str(failure or "the inference fails") in caplog.text
    assert len(engine._requests) == engine.requests


def test_compilations_at_once_keep_the_locale(tmp_path: Path, prepared: PreparedModel) -> None:
    before = locale.getencoding()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: Engine(prepared, "CPU", 1, tmp_path / f"cache{number % 2}"), range(24)))
    assert locale.getencoding() == before
