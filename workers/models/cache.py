"""Things made once and kept on disk: a converted model by its revision. An entry is there whole or not at all.

`<cache>/models/<revision>/` holds the model's and the tokenizer's IR and `model.json`, which lists the size of each
file. An entry is made in a folder beside its place and renamed. BatchInputs takes no lock; making takes one that the
kernel releases when its process ends, so whoever holds it may remove what killed processes left.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

MODEL, TOKENIZER, FACTS = "model.xml", "tokenizer.xml", "model.json"
_MAKING = ".making-"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a converted model beside its files."""

    dimension: int
    vocabulary_size: int
    pad_id: int
    #: What converted it: another version's files may not be readable, or not be what it would make.
    made_by: str
    #: Bytes of each file of the entry.
    files: dict[str, int] = {}


def folder(cache: Path, revision: str) -> Path:
    """Where the entry of a revision is."""
    return cache / "models" / revision


def find(cache: Path, revision: str, made_by: str) -> Facts | None:
    """The entry's facts; None when there is no entry, or a damaged one, or one that something else made."""
    entry = folder(cache, revision)
    try:
        facts = msgspec.json.decode((entry / FACTS).read_bytes(), type=Facts)
        sizes = {name: (entry / name).stat().st_size for name in facts.files}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return facts if sizes == facts.files and facts.made_by == made_by else None


def store(cache: Path, revision: str, made_by: str, write: Callable[[Path], Facts]) -> Facts:
    """Make an entry: `write` puts its files into the folder it is given. When another process makes it first, that
    one is taken. OSError when the cache cannot be written."""
    entry = folder(cache, revision)
    with making(entry.parent) as made:
        if (found := find(cache, revision, made_by)) is not None:
            return found
        facts = write(made)
        sizes = {path.name: path.stat().st_size for path in made.iterdir()}
        facts = msgspec.structs.replace(facts, made_by=made_by, files=sizes)
        (made / FACTS).write_bytes(msgspec.json.encode(facts))
        place(made, entry)
    return facts


@contextlib.contextmanager
def making(parent: Path) -> Iterator[Path]:
    """An empty folder in `parent` to make something in, gone at the end unless it was placed. Waits for whoever else
    makes something there."""
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in parent.glob(_MAKING + "*"):
            shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=_MAKING, dir=parent))
        try:
            made.chmod(0o755)
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


def place(made: Path, final: Path) -> None:
    """Rename a folder made under `making` into place, on the disk before it is seen; what is there makes way."""
    for path in (*made.rglob("*"), made):
        _sync(path)
    if final.exists():
        replaced = Path(tempfile.mkdtemp(prefix=_MAKING, dir=final.parent))
        os.rename(final, replaced / final.name)
        shutil.rmtree(replaced, ignore_errors=True)
    os.rename(made, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
