"""`scripts/export_model`: spelling of options, and errors."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.processes import ROOT
from tests.unit.workers.test_model_folder import write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny")


def call_script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "export_model.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("task", ["embeddings_ov", "embeddings"])
def test_script_takes_dashes_and_underscores(folder: Path, task: str) -> None:
    arguments = ["--source-model", "tiny", "--model_repository_path", "models", "--config-file-path=models/config.json"]
    arguments += ["--weight-format", "int8", "--extra_quantization_params", "--sym", "--skip-normalize"]
    done = call_script(task, *arguments, cwd=folder.parent)
    assert (done.returncode, done.stdout) == (0, "models/tiny\n"), done.stderr
    graph = (folder.parent / "models" / "tiny" / "graph.pbtxt").read_text()
    assert "normalize_embeddings: false" in graph
    assert 'element_type="i8"' in (folder.parent / "models" / "tiny" / "openvino_model.xml").read_text()


def test_script_reports_one_sentence(tmp_path: Path) -> None:
    done = call_script("embeddings_ov", "--source_model", "missing", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("vecmill: ")
    assert done.stderr.count("\n") == 1
