"""`scripts/setup` with an empty lock file, so that it needs no package index."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.processes import ROOT


@pytest.mark.parametrize("left", ["half of pip", "no python"])
def test_interrupted_setup_is_repeated(tmp_path: Path, left: str) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/requirements.txt").write_text("# no package\n")
    setup = shutil.copy(ROOT / "scripts/setup", tmp_path / "scripts")
    shutil.copy(ROOT / "scripts/usage.sh", tmp_path / "scripts")
    venv = tmp_path / ".venv"
    if left == "half of pip":
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        (packages,) = (venv / "lib").glob("python*/site-packages")
        (packages / "pip").mkdir()
        (packages / "pip/__init__.py").touch()
    else:
        (venv / "bin").mkdir(parents=True)
        (venv / "bin/python").symlink_to("/nowhere/python")
    subprocess.run([setup], check=True)
    subprocess.run([venv / "bin/python", "-m", "pip", "check"], check=True)
    assert (venv / "lock").read_text() == "# no package\n"
    assert subprocess.run([setup], check=True, capture_output=True).stderr == b""
