"""Converted models on disk, by revision. An entry is there whole or not at all.

`<cache>/models/<revision>/` holds the model's and the tokenizer's IR and `model.json`, which is written last and lists
the size of each file. An entry is made in a folder beside it and renamed into place.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

MODEL, TOKENIZER, FACTS = "model.xml", "tokenizer.xml", "model.json"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a converted model beside its files."""

    dimension: int
    vocabulary_size: int
    pad_id: int
    #: Bytes of each file of the entry.
    files: dict[str, int]


def find(cache: Path, revision: str) -> Facts | None:
    """The entry's facts; None when there is no entry, or a damaged one."""
    entry = folder(cache, revision)
    try:
        facts = msgspec.json.decode((entry / FACTS).read_bytes(), type=Facts)
        sizes = {name: (entry / name).stat().st_size for name in facts.files}
    except (OSError, msgspec.MsgspecError):
        return None
    return facts if sizes == facts.files else None


def store(cache: Path, revision: str, write: Callable[[Path], Facts]) -> None:
    """Make an entry: `write` puts its files into the folder it is given. Two makers at once are both right."""
    entry = folder(cache, revision)
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{revision}-", dir=entry.parent) as name:
        making = Path(name)
        making.chmod(0o755)
        facts = write(making)
        sizes = {path.name: path.stat().st_size for path in making.iterdir()}
        (making / FACTS).write_bytes(msgspec.json.encode(msgspec.structs.replace(facts, files=sizes)))
        for path in making.iterdir():
            _sync(path)
        _replace(making, entry, lambda: find(cache, revision) is not None)
        _sync(entry.parent)


def folder(cache: Path, revision: str) -> Path:
    """Where the entry of a revision is."""
    return cache / "models" / revision


def _replace(making: Path, entry: Path, is_whole: Callable[[], bool]) -> None:
    """Rename into place. A whole entry that is there already is as good; a damaged one is moved out of the way."""
    if entry.exists() and not is_whole():
        damaged = Path(tempfile.mkdtemp(prefix=".damaged-", dir=entry.parent))
        os.rename(entry, damaged / "entry")
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        # The folder itself stays, empty, for TemporaryDirectory to remove.
        finished = making / "finished"
        finished.mkdir()
        for path in list(making.iterdir()):
            if path != finished:
                os.rename(path, finished / path.name)
        os.rename(finished, entry)
    except OSError:
        if not is_whole():
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
