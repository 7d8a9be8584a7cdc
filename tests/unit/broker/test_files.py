"""Files and folders that are complete or absent."""

import os
import stat
from pathlib import Path

import pytest

from broker.shared.files import SCRATCH, make_scratch_folder, move_into_place, remove_scratch_folders


def list_scratch(root: Path) -> list[Path]:
    return list(root.rglob(f"{SCRATCH}*"))


def test_scratch_folder_is_private_and_removed(tmp_path: Path) -> None:
    with make_scratch_folder(tmp_path) as scratch:
        assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
        (scratch / "file").touch()
    assert list_scratch(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failure_removes_the_scratch_folder(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), make_scratch_folder(tmp_path):
        raise error
    assert list_scratch(tmp_path) == []


def test_scratch_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    for parent in (tmp_path, tmp_path / f"{SCRATCH}-1"):
        (parent / f"{SCRATCH}-1").mkdir()
    remove_scratch_folders(tmp_path)
    assert list_scratch(tmp_path) == []


def test_file_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "source").write_text("new")
    move_into_place(tmp_path / "source", tmp_path / "target")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"target": "new"}


def test_folder_replaces_a_folder_with_files(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "inside" / name).touch()
    move_into_place(tmp_path / "source", tmp_path / "target")
    assert os.listdir(tmp_path) == ["target"]
    assert os.listdir(tmp_path / "target" / "inside") == ["source"]


def test_content_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    replace = Path.replace

    def record_sync(descriptor: int) -> None:
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def record_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_rename)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").touch()
    move_into_place(tmp_path / "source", tmp_path / "target")
    assert steps == ["file", "source", "rename", tmp_path.name]
