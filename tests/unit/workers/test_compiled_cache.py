"""Bounds of OpenVINO's cache of compiled models."""

import os
from pathlib import Path

import pytest

from workers.engine import compiled_cache
from workers.engine.compiled_cache import VERSION, open_compiled_cache


def write(path: Path, size: int, at: float) -> Path:
    """Write a compiled model that was read last at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (at, 1))
    return path


def test_files_of_other_versions_are_removed(tmp_path: Path) -> None:
    write(tmp_path / "2020.1.0" / "1.blob", 1, 1)
    write(tmp_path / "2.blob", 1, 1)
    own = write(tmp_path / VERSION / "3.blob", 1, 1)
    assert open_compiled_cache(tmp_path) == own.parent
    assert list(tmp_path.rglob("*.blob")) == [own]


def test_files_read_longest_ago_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_cache, "MAX_BYTES", 100)
    own = tmp_path / VERSION
    for number in range(6):
        write(own / f"{number}.blob", 30, 100 + number)
    open_compiled_cache(tmp_path)
    assert sorted(path.name for path in own.iterdir()) == ["3.blob", "4.blob", "5.blob"]


def test_last_files_stay_whatever_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_cache, "MAX_BYTES", 1)
    for number in range(3):
        write(tmp_path / VERSION / f"{number}.blob", 30, 100 + number)
    open_compiled_cache(tmp_path)
    assert len(list(tmp_path.rglob("*.blob"))) == compiled_cache.MIN_FILES
