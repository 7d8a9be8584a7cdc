"""The stream that runs interactive inputs beside bulk ones."""

import os
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
    engine.open_spare_request()
    opened = list_threads()
    assert {opened[thread] for thread in opened.keys() - compiled.keys()} <= {os.nice(0)}


def test_device_without_spare_stream_has_none(
    tmp_path: Path, prepared: PreparedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Engine(prepared, "CPU", 1, tmp_path / "cache", fixed_shapes=True).open_spare_request() is None
    engine = Engine(prepared, "CPU", 1, tmp_path / "cache")

    def fail(_: object) -> None:
        raise DeviceError("out of memory")

    monkeypatch.setattr(engine, "_compile_spare", fail)
    assert engine.open_spare_request() is None
