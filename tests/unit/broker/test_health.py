"""Health file: how often it is touched, and errors."""

import logging
from pathlib import Path

import pytest

from broker.shared.health import INTERVAL_S, HealthFile


def test_file_is_touched_once_per_interval(tmp_path: Path) -> None:
    path = tmp_path / "health"
    health = HealthFile(str(path))
    health.touch(100.0)
    path.unlink()
    health.touch(100.0 + INTERVAL_S / 2)
    assert not path.exists()
    health.touch(100.0 + INTERVAL_S)
    assert path.exists()
    HealthFile("").touch(100.0)


def test_changed_content_is_written(tmp_path: Path) -> None:
    path = tmp_path / "health"
    health = HealthFile(str(path))
    for now, content in ((100.0, ""), (200.0, "f32"), (300.0, "f32"), (400.0, "bf16")):
        health.touch(now, content)
        assert path.read_text() == content


def test_failure_is_logged_once_until_it_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "folder"
    health = HealthFile(str(folder / "health"))
    for now in (100.0, 200.0, 300.0):
        health.touch(now)
    folder.mkdir()
    for now in (400.0, 500.0):
        health.touch(now)
    (folder / "health").unlink()
    folder.rmdir()
    for now in (600.0, 700.0):
        health.touch(now)
    failure = f"cannot touch the health file {folder / 'health'}, retrying: No such file or directory"
    assert caplog.messages == [failure, f"can touch the health file {folder / 'health'} again", failure]
