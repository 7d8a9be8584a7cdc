"""Temporary folders of supervisors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from frontend.run_folder import LOCK, MAX_SOCKET_BYTES, create_run_folder, remove_left_folders
from tests.harness.processes import ROOT

CREATE = "from frontend.run_folder import create_run_folder as c; print(c('frontends')); input()"


def start_process(folder: Path) -> tuple["subprocess.Popen[str]", Path]:
    """Start a process that creates a folder in a folder; return both."""
    process = subprocess.Popen(
        [sys.executable, "-c", CREATE],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_only_folders_of_ended_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "vecmill-without-lock").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / LOCK).touch()
    process, folder = start_process(tmp_path)
    remove_left_folders(tmp_path)
    assert folder.parent == tmp_path
    assert (folder / LOCK).exists()
    process.kill()
    process.communicate()
    remove_left_folders(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "vecmill-without-lock"]


@pytest.mark.parametrize("runtime", [True, False])
def test_long_path_is_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: bool) -> None:
    long = tmp_path / ("x" * MAX_SOCKET_BYTES)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path) if runtime else str(long))
    folder = create_run_folder("f")
    try:
        assert folder.parent == (tmp_path if runtime else Path("/tmp"))
        assert len(os.fsencode(folder / "f")) <= MAX_SOCKET_BYTES
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        (folder / LOCK).unlink()
        folder.rmdir()


def test_no_usable_folder_is_an_error() -> None:
    with pytest.raises(OSError, match="set TMPDIR to a shorter path"):
        create_run_folder("x" * MAX_SOCKET_BYTES)
