"""Cache of converted models by revision. An entry is complete or absent.

`<cache>/models/<revision>/` holds the IR of the model, the tokenizer, and `model.json`, which lists the SHA-256 of each
file. Reading waits for no lock. Writing takes a lock that the kernel releases when the process ends, so the holder of
the lock may remove what killed processes left, and entries that no process has used for long.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from broker.shared.files import make_scratch_folder, move_into_place, remove_scratch_folders

MODEL, FACTS = "model.xml", "model.json"
#: Entries that were not used for this many seconds are removed, and older ones beyond this many bytes.
MAX_UNUSED_S, MAX_BYTES = 30 * 86400.0, 32 << 30
#: Entries that are kept whatever their size and age: those that were used last.
MIN_ENTRIES = 2


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


class EntryUse:
    """Lock that keeps an entry in the cache as long as this object exists. All uses are equal."""

    def __init__(self, folder: Path) -> None:
        """Lock the entry, and record its use. Raise `OSError` if there is none, or if it is being removed."""
        self._file = os.open(folder / FACTS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            # This file system has no locks.
            pass
        with contextlib.suppress(OSError):
            os.utime(folder / FACTS)

    def __del__(self) -> None:
        if "_file" in vars(self):
            os.close(self._file)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EntryUse)

    __hash__ = object.__hash__


class Entry(NamedTuple):
    """An entry of the cache that is in use."""

    facts: Facts
    use: EntryUse


def get_entry_folder(cache: Path, revision: str) -> Path:
    """Return the folder of a revision, which need not exist."""
    return cache / "models" / revision


def find_entry(cache: Path, revision: str, made_by: str) -> Entry | None:
    """Return an entry, or None if the entry is absent, damaged, or written by another version.

    Hashes every file, because a changed byte does not change a size. This takes as long as hashing the weights for
    their revision: 0.06 s for 90 MB (AMD EPYC).
    """
    folder = get_entry_folder(cache, revision)
    try:
        use = EntryUse(folder)
        facts = msgspec.json.decode((folder / FACTS).read_bytes(), type=Facts)
        hashes = {name: hash_file(folder / name) for name in facts.files}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return Entry(facts, use) if hashes == facts.files and facts.made_by == made_by else None


def store_entry(cache: Path, revision: str, made_by: str, write: Callable[[Path], Facts]) -> Entry:
    """Create and return an entry, and remove unused ones; `write` puts the files into the folder that it gets.

    Return the entry of another process if that process was faster. Raise `OSError` if the cache cannot be written.
    """
    folder = get_entry_folder(cache, revision)
    with lock_folder(folder.parent) as scratch:
        if (found := find_entry(cache, revision, made_by)) is not None:
            return found
        entry = scratch / revision
        entry.mkdir()
        facts = write(entry)
        hashes = {path.name: hash_file(path) for path in entry.iterdir()}
        facts = msgspec.structs.replace(facts, made_by=made_by, files=hashes)
        (entry / FACTS).write_bytes(msgspec.json.encode(facts))
        move_into_place(entry, folder)
        use = EntryUse(folder)
        _remove_unused_entries(folder.parent, scratch)
    return Entry(facts, use)


def _remove_unused_entries(parent: Path, scratch: Path) -> None:
    """Move the entries that no process uses and that are too old or too large to a folder that is removed."""
    found = []
    for folder in parent.iterdir():
        with contextlib.suppress(OSError):
            used_at = (folder / FACTS).stat().st_mtime
            found.append((used_at, folder, sum(path.stat().st_size for path in folder.iterdir())))
    total = 0
    for number, (used_at, folder, size) in enumerate(sorted(found, reverse=True)):
        total += size
        if number >= MIN_ENTRIES and (total > MAX_BYTES or time.time() > used_at + MAX_UNUSED_S):
            with contextlib.suppress(OSError), (folder / FACTS).open() as facts:
                fcntl.flock(facts, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder.rename(scratch / folder.name)


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
