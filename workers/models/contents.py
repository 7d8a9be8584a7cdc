"""Files of a model folder: which are present, and which Vecmill must not open. Does not import OpenVINO."""

import os
import stat
from pathlib import Path

from workers.models.json_files import MAX_BYTES, REMEDY, ModelError
from workers.models.weight_files import FILE, INDEX, find_weight_files

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
#: Weights that only `torch.load` reads, which runs code in them.
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
#: Files of OpenVINO, OVMS and ONNX in folders below the one that was given.
_EXPORTS = ("*/graph.pbtxt", "*/*.xml", "*/*.onnx", "*/1/*.xml", "*/*/graph.pbtxt", "*/*/*.xml", "*/*/1/*.xml")
#: First bytes of the file that `git clone` writes instead of a large file if Git LFS is not installed.
_LFS_POINTER = b"version https://git-lfs"


def check_folder(root: Path, folder: Path) -> None:
    """Check the links in `folder`, which is the model folder `root` or in it.

    Raise `ModelError` if a file would be read from outside the model folder, or never ends, such as a device or a pipe.
    The links of the Hugging Face cache, from `snapshots/REVISION` to `blobs`, are allowed.
    """
    for path in (folder, *folder.iterdir()):
        check_file(path, root)


def check_file(path: Path, *roots: Path) -> None:
    """Check one file or folder, as `check_folder` does, which must be in one of the folders `roots`."""
    allowed = [root.resolve() for root in roots]
    allowed += [root.parents[1] / "blobs" for root in allowed if root.parent.name == "snapshots"]
    # `Path.resolve` raises RuntimeError for a link to itself.
    target = Path(os.path.realpath(path))
    if not any(target.is_relative_to(parent) for parent in allowed):
        raise ModelError(f"{path} is a link out of the model folder; replace it by the file itself")
    if path.exists() and not (path.is_dir() or stat.S_ISREG(path.stat().st_mode)):
        raise ModelError(f"{path} is neither a file nor a folder; remove it")


def find_missing(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Return the names of files that a folder lacks. Raise `ModelError` if a file is a pointer of Git LFS."""
    missing = [name for name in names if not (folder / name).is_file()]
    for name in names:
        if name not in missing:
            check_pointer(folder / name)
    return missing


def check_size(path: Path) -> None:
    """Raise `ModelError` if a JSON file is larger than `read_json` reads, before the file is hashed."""
    if path.stat().st_size > MAX_BYTES:
        raise ModelError(f"could not read {path}: it is larger than {MAX_BYTES} bytes; {REMEDY}")


def check_pointer(path: Path) -> None:
    """Raise `ModelError` if a file is a pointer of Git LFS."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ModelError(f"{path} is a pointer of Git LFS; fetch the file itself with: git lfs pull")


def find_weights(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder's weights, empty if there are none.

    Raise `ModelError` if some of several files are missing or not in the folder.
    """
    files = find_weight_files(folder)
    index = [folder / INDEX] if files != [folder / FILE] else []
    if not index and not files[0].is_file():
        return ()
    for path in files:
        check_pointer(path)
    return (*files, *index)


def require_weights(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder's weights. Raise `ModelError` if there are none that Vecmill reads."""
    if not (files := find_weights(folder)):
        refuse_pickles(folder)
        raise ModelError(f"{folder} has no {FILE}; download the model again")
    return files


def refuse_pickles(folder: Path) -> None:
    """Raise `ModelError` if a folder without other weights has weights that can run code."""
    if found := [name for name in _PICKLES if (folder / name).is_file()]:
        raise ModelError(
            f"{folder} has its weights only as {found[0]}, which Vecmill does not read because such a file can run "
            "code; where torch is installed, load the model with sentence_transformers.SentenceTransformer and save it "
            "with save_pretrained, which writes model.safetensors"
        )


def refuse_gguf(path: Path) -> None:
    """Raise `ModelError` if a path is a file of llama.cpp, or a folder with such a file."""
    if found := [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf")):
        raise ModelError(
            f"{found[0]} is a GGUF file, which Vecmill does not read; serve the model from which the file was made, by "
            "its name on the Hugging Face hub: --model OWNER/NAME"
        )


def find_export(folder: Path) -> str:
    """Return the path of a file below a folder that an exporter for OpenVINO, OVMS or ONNX wrote, or ""."""
    return next((str(found.relative_to(folder)) for pattern in _EXPORTS for found in folder.glob(pattern)), "")
