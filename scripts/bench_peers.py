"""Other servers that `scripts/bench --peers` measures, each in an environment of its own under .cache/bench.

They get the same model, float32, the same requests and the same client. Infinity takes its own defaults otherwise.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench_load import LoadError
from bench_servers import ROOT, Process, find_free_port

HOME = ROOT / ".cache" / "bench"
#: Without GPU libraries, which take gigabytes. Version 2.13.0 is the one that the golden vectors were made with.
TORCH = ("torch==2.13.0+cpu", "--extra-index-url", "https://download.pytorch.org/whl/cpu")
#: Packages of each environment.
PACKAGES = {
    "infinity": (*TORCH, "infinity-emb[server,torch,optimum]==0.0.78"),
    "sentence-transformers": (*TORCH, "sentence-transformers==6.2.0", "fastapi==0.165.0", "uvicorn==0.54.0"),
}
#: No telemetry, and no model hub.
ENVIRON = {
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
NAMES = ("Infinity, torch", "Infinity, ONNX", "sentence-transformers, FastAPI")


class Peer(Process):
    """A running server that is not Vecmill."""

    def __init__(self, name: str, folder: Path) -> None:
        """Install the server if it is not there, and start it. Raise `LoadError` if it cannot be installed."""
        self.port = find_free_port()
        environment = find_environment(name)
        install(HOME / environment, PACKAGES[environment])
        cwd, command = build_command(name, folder, self.port)
        self.path = "/v1/embeddings" if environment == "sentence-transformers" else "/embeddings"
        self.fields: dict[str, object] = {"model": "bench", "encoding_format": "base64"}
        super().__init__(name, command, cwd, ENVIRON)

    def wait(self) -> None:
        """Wait until the server answers. Raise `LoadError` if it ends before."""
        self.wait_ready(f"http://127.0.0.1:{self.port}/health")


def find_environment(name: str) -> str:
    """Return the environment of a peer."""
    return "infinity" if name.startswith("Infinity") else "sentence-transformers"


def build_command(name: str, folder: Path, port: int) -> tuple[Path, Sequence[str]]:
    """Return the working folder and the command of a peer. Infinity finds `model.onnx` only in its own."""
    programs = HOME / find_environment(name) / "bin"
    if name == "sentence-transformers, FastAPI":
        return ROOT, [
            str(programs / "python"),
            str(ROOT / "scripts" / "bench_minimal_server.py"),
            str(folder),
            str(port),
        ]
    common = [str(programs / "infinity_emb"), "v2", "--host", "127.0.0.1", "--port", str(port)]
    common += ["--served-model-name", "bench", "--device", "cpu", "--dtype", "float32", "--log-level", "error"]
    if name == "Infinity, torch":
        return ROOT, [*common, "--engine", "torch", "--model-id", str(folder)]
    return export_onnx(folder), [*common, "--engine", "optimum", "--pooling-method", "mean", "--model-id", "."]


def install(home: Path, packages: Sequence[str]) -> None:
    """Create an environment with packages unless it is complete. Raise `LoadError` if one cannot be installed."""
    wanted = "\n".join(packages)
    marker = home / "installed"
    if marker.exists() and marker.read_text() == wanted:
        return
    print(f"installing {home.name} into {home} …", file=sys.stderr)
    run([sys.executable, "-m", "venv", "--clear", str(home)], f"create {home}")
    command = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*command, *packages], f"install {home.name}")
    marker.write_text(wanted)


def export_onnx(folder: Path) -> Path:
    """Return the folder of a model in ONNX and float32, exported with optimum."""
    target = HOME / "onnx" / folder.name
    if not (target / "model.onnx").exists():
        print(f"exporting {folder.name} to ONNX …", file=sys.stderr)
        shutil.rmtree(target, ignore_errors=True)
        command = [str(HOME / "infinity" / "bin" / "optimum-cli"), "export", "onnx", "--model", str(folder)]
        run([*command, "--task", "feature-extraction", "--library", "transformers", str(target)], "export to ONNX")
    return target


def run(command: Sequence[str], purpose: str) -> None:
    """Run a command. Raise `LoadError` with the last line of its errors if it fails."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise LoadError(f"could not {purpose}: {last}")
