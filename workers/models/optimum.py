"""Export with optimum-cli of optimum-intel, in an environment of its own: it needs torch and older libraries."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from workers.models.cache import lock_folder
from workers.models.json_files import ModelError

#: What pip installs. sentence-transformers is for `--library sentence_transformers`.
PACKAGES = ("optimum-intel[openvino]>=2.2,<3", "sentence-transformers>=5")

Report = Callable[[str], None]


def run_optimum(arguments: Sequence[str], into: Path, cache: Path, report: Report) -> None:
    """Export a model into a folder with more arguments of `optimum-cli export openvino`.

    Installs optimum-intel into the cache at the first call. Raise `ModelError` if the installation or the export fails.
    """
    program = _install(cache / "optimum", report)
    command = [str(program), "export", "openvino", "--task", "feature-extraction", "--disable-convert-tokenizer"]
    command += [*arguments, str(into)]
    report(shlex.join(command))
    _run(command, "optimum-cli could not export the model; correct what it printed above, or choose another model")


def _install(folder: Path, report: Report) -> Path:
    """Return the program optimum-cli, installed if it is not yet."""
    environment, complete = folder / "venv", folder / "complete"
    program = environment / "bin" / "optimum-cli"
    with lock_folder(folder):
        if complete.is_file() and program.is_file():
            return program
        report(f"installing optimum-intel and torch into {environment} (2 GB)")
        complete.unlink(missing_ok=True)
        failure = "optimum-intel could not be installed; check the network or the package index"
        _run([sys.executable, "-m", "venv", "--clear", str(environment)], failure)
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
        _run([*pip, *PACKAGES], failure)
        complete.touch()
    return program


def _run(command: Sequence[str], failure: str) -> None:
    """Run a command, with its output on the standard error. Raise `ModelError` if it fails."""
    try:
        done = subprocess.run(command, stdout=sys.stderr, check=False)
    except OSError as error:
        raise ModelError(f"could not run {command[0]}: {error.strerror}") from None
    if done.returncode:
        raise ModelError(failure)
