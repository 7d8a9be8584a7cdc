"""Files of a model folder: which are present, and which Vecmill must not open. Does not import OpenVINO."""

import os
import reprlib
import stat
from pathlib import Path

from workers.models.json_files import REMEDY, ModelError, is_present, read_object

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
#: Lists the files of weights that are split, and the tensors in each.
_INDEX = "model.safetensors.index.json"
#: Weights that only `torch.load` reads, which runs code in them.
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
#: Files of OpenVINO, OVMS and ONNX, whose folders Vecmill cannot load.
_EXPORTS = ("*.xml", "*.onnx", "graph.pbtxt", "subconfig.json", "*/*.xml", "*/*.onnx", "*/1/*.xml", "*/*/1/*.xml")
#: First bytes of the file that `git clone` writes instead of a large file if Git LFS is not installed.
_LFS_POINTER = b"version https://git-lfs"


def check_folder(root: Path, folder: Path) -> None:
    """Check the links in `folder`, which is the model folder `root` or in it.

    Raise `ModelError` if a file would be read from outside the model folder, or never ends, such as a device or a pipe.
    The links of the Hugging Face cache, from `snapshots/REVISION` to `blobs`, are allowed.
    """
    allowed = [root.resolve()]
    if allowed[0].parent.name == "snapshots":
        allowed.append(allowed[0].parents[1] / "blobs")
    for path in (folder, *folder.iterdir()):
        if path.is_symlink() and not any(path.resolve().is_relative_to(parent) for parent in allowed):
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


def check_pointer(path: Path) -> None:
    """Raise `ModelError` if a file is a pointer of Git LFS."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ModelError(f"{path} is a pointer of Git LFS; fetch the file itself with: git lfs pull")


def find_weights(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder's weights, or nothing if there are none.

    Raise `ModelError` if some of several files are missing or not in the folder.
    """
    if (folder / WEIGHTS).is_file():
        check_pointer(folder / WEIGHTS)
        return (folder / WEIGHTS,)
    return _read_index(folder / _INDEX) if is_present(folder / _INDEX) else ()


def refuse_pickles(folder: Path) -> None:
    """Raise `ModelError` if a folder without other weights has weights that can run code."""
    if found := [name for name in _PICKLES if (folder / name).is_file()]:
        raise ModelError(
            f"{folder} has its weights only as {found[0]}, which Vecmill does not read because such a file can run "
            "code; where torch is installed, load the model with sentence_transformers.SentenceTransformer and save it "
            "with save_pretrained, which writes model.safetensors"
        )


def _read_index(path: Path) -> tuple[Path, ...]:
    names = read_object(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{path}: weight_map is not an object with a file for each tensor; {REMEDY}")
    files = tuple(sorted(set(names.values())))
    for name in files:
        if name in ("", ".", "..") or os.sep in name or "\0" in name:
            raise ModelError(f"{path}: weight_map has {reprlib.repr(name)}, which is no file in its folder; {REMEDY}")
    if missing := find_missing(path.parent, files):
        raise ModelError(f"{path.parent} has no {missing[0]}, which {path.name} lists; download the model again")
    return (*(path.parent / name for name in files), path)


def find_export(folder: Path) -> str:
    """Return the name of a file that an exporter for OpenVINO, OVMS or ONNX wrote, or ""."""
    return next((found.name for pattern in _EXPORTS for found in folder.glob(pattern)), "")
