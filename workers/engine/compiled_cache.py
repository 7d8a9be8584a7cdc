"""OpenVINO's cache of compiled models: one folder for each version of OpenVINO, bounded in size.

OpenVINO names a file by a hash of the model, the device, the settings and its version, and removes none.
"""

import contextlib
import shutil
from pathlib import Path

import openvino as ov

#: Version of OpenVINO without its build.
VERSION = str(ov.__version__).partition("-")[0]
#: Bytes of compiled models that are kept; all-MiniLM-L6-v2 takes 90 MB on the CPU.
MAX_BYTES = 4 << 30
#: Files that are kept whatever their size: those of the last models.
MIN_FILES = 2


def get_version_folder(folder: Path) -> Path:
    """Return the folder of this version of OpenVINO, which need not exist."""
    return folder / VERSION


def open_compiled_cache(folder: Path) -> Path:
    """Return the folder of this version. Remove what other versions left, and what was not read for longest.

    A process that reads a file meanwhile keeps it; one that wants to read it later compiles its model again.
    """
    own = get_version_folder(folder)
    own.mkdir(parents=True, exist_ok=True)
    for other in folder.iterdir():
        if other.is_dir() and other != own:
            shutil.rmtree(other, ignore_errors=True)
    for path in folder.glob("*.blob"):
        path.unlink(missing_ok=True)
    files = []
    for path in own.glob("*.blob"):
        # Another worker may have removed it.
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            files.append((max(found.st_atime, found.st_mtime), path, found.st_size))
    size = 0
    for number, (_, path, file_bytes) in enumerate(sorted(files, reverse=True)):
        size += file_bytes
        if size > MAX_BYTES and number >= MIN_FILES:
            path.unlink(missing_ok=True)
    return own
