"""Cache of converted models by revision. An entry is complete or absent.

`<cache>/models/<revision>/` holds the IR of the model, the tokenizer, and `model.json`, which lists the SHA-256 of each
file. Reading takes no lock. Writing takes a lock that the kernel releases when the process ends, so the holder of the
lock may remove what killed processes left.
"""

import contextlib
import fcntl
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from broker.shared.files import make_scratch_folder, move_into_place, remove_scratch_folders

MODEL, FACTS = "model.xml", "model.json"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a converted model that its files do not show."""

    #: Values in a vector.
    dimension: int
    #: Token ids are below this number.
    vocabulary_size: int
    pad_id: int
    #: Name of the tokenizer's file.
    tokenizer: str
    #: Versions of the converters. Another version may write other files, or may not read these.
    made_by: str
    #: SHA-256 of each file of the entry, in hexadecimal digits.
    files: dict[str, str] = {}


def get_entry_folder(cache: Path, revision: str) -> Path:
    """Return the folder of a revision, which need not exist."""
    return cache / "models" / revision


def find_entry(cache: Path, revision: str, made_by: str) -> Facts | None:
    """Return an entry's facts, or None if the entry is absent, damaged, or written by another version.

    Hashes every file, because a changed byte does not change a size. This takes as long as hashing the weights for
    their revision: 0.06 s for 90 MB (AMD EPYC).
    """
    folder = get_entry_folder(cache, revision)
    try:
        facts = msgspec.json.decode((folder / FACTS).read_bytes(), type=Facts)
        hashes = {name: hash_file(folder / name) for name in facts.files}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return facts if hashes == facts.files and facts.made_by == made_by else None


def store_entry(cache: Path, revision: str, made_by: str, write: Callable[[Path], Facts]) -> Facts:
    """Create an entry and return its facts; `write` puts the files into the folder that it gets.

    Return the entry of another process if that process was faster. Raise `OSError` if the cache cannot be written.
    """
    folder = get_entry_folder(cache, revision)
    with lock_folder(folder.parent) as scratch:
        if (facts := find_entry(cache, revision, made_by)) is not None:
            return facts
        entry = scratch / revision
        entry.mkdir()
        facts = write(entry)
        hashes = {path.name: hash_file(path) for path in entry.iterdir()}
        facts = msgspec.structs.replace(facts, made_by=made_by, files=hashes)
        (entry / FACTS).write_bytes(msgspec.json.encode(facts))
        move_into_place(entry, folder)
    return facts


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits. Raise `OSError` if the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock_folder(parent: Path) -> Iterator[Path]:
    """Wait for the folder's lock, and yield an empty scratch folder in it.

    The owner of the lock moves what is complete into place with `move_into_place`; the rest is removed at the end.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_scratch_folders(parent)
        with make_scratch_folder(parent) as scratch:
            yield scratch
