"""`scripts/bench` from start to end, with a model that costs almost nothing."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.processes import ROOT, until
from tests.unit.workers.test_static import TABLE, write_model2vec

PYTHON = (sys.executable, "scripts/bench.py")


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Return the flags of a run of a few seconds."""
    model = write_model2vec(tmp_path / "tiny", {"embeddings": TABLE})
    flags = ["--workload", "short", "--precision", "f32", "--model", str(model), "--cache", str(tmp_path / "cache")]
    return [*flags, "--texts", str(ROOT / "tests" / "data"), "--results", str(tmp_path / "results.json")]


def find_processes(folder: Path) -> list[int]:
    """Return the ids of all processes with a folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("generator", ["python", *filter(None, [shutil.which("wrk") and "wrk"])])
def test_quick_run_measures_all_rows(tmp_path: Path, flags: list[str], generator: str) -> None:
    command = [*PYTHON, *flags, "--quick", "--client", generator]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for row in ("raw OpenVINO, padded |  |", "Vecmill, f32 | 1 |", "Vecmill, f32 | 64 |"):
        assert row in done.stdout
    (results,) = json.loads((tmp_path / "results.json").read_text())["rounds"]
    served = [cell for cell in results["cells"] if cell.get("memory_mb")]
    assert [cell["clients"] for cell in served] == [1, 64]
    assert all(cell["ratio"] > 0 and set(cell["cpu_s"]) >= {"frontend", "broker", "worker", "load"} for cell in served)
    assert not find_processes(tmp_path)


def test_interrupted_run_leaves_no_process(tmp_path: Path, flags: list[str]) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*PYTHON, *flags, "--rounds", "50", "--seconds", "1"], cwd=ROOT, stdout=output, stderr=output
        )
    until(lambda: "Vecmill, f32, 1 client" in log.read_text(), 60, "the first measurement of the server")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert log.read_text().count("Traceback") == 0
    assert not find_processes(tmp_path)
