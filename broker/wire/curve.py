"""Reads CURVE keys from disk, for all three programs. `broker.shell.curve_keys` makes them.

pyzmq can read these files too. But it raises various errors for a damaged file, blocks on a FIFO, and accepts text that
is not a key, which libzmq rejects only later.
"""

import codecs
import functools
import os
import struct
from pathlib import Path
from typing import Literal, NamedTuple

import zmq
from zmq.utils import z85

from broker.shared.files import explain, read_small_file

Role = Literal["worker", "frontend"]
#: Size limit of a key file in bytes; `broker.shell.curve_keys` makes files of 300 to 500 bytes.
MAX_BYTES = 64 * 1024


class KeyFileError(ValueError):
    """A file or folder of keys cannot be used. The text is one sentence that names the path."""


class Pair(NamedTuple):
    """A public key and its secret key, both in Z85."""

    public: bytes
    secret: bytes


class DealerKeys(NamedTuple):
    """The keys that a frontend or a worker needs to connect: its own pair, and the broker's public key."""

    own: Pair
    broker: bytes


def read_public_key(path: Path) -> bytes:
    """Return the public key in a file. Raise KeyFileError if the file cannot be used."""
    return _find_key(path, _read_file(path), "public")


def read_pair(path: Path) -> Pair:
    """Return both keys in a file. Raise KeyFileError if one is missing or the two do not match."""
    text = _read_file(path)
    pair = Pair(_find_key(path, text, "public"), _find_key(path, text, "secret"))
    if zmq.curve_public(pair.secret) != pair.public:
        raise KeyFileError(f"{path} cannot be used as a key: its public key does not belong to its secret key")
    return pair


def read_allow_list(folder: Path) -> frozenset[bytes]:
    """Return the public keys in all `*.key` files of a folder. Raise KeyFileError if any of them cannot be used."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise KeyFileError(f"the folder of keys {folder} cannot be read: {explain(error)}") from None
    return frozenset(
        read_public_key(folder / name) for name in names if name.endswith(".key") and not name.startswith(".")
    )


# Cached because a worker opens its second socket minutes after the first; files damaged in between must not matter.
@functools.cache
def read_dealer_keys(folder: Path, role: Role) -> DealerKeys:
    """Return the keys of a frontend or a worker. Raise KeyFileError if a file cannot be used."""
    return DealerKeys(read_pair(folder / f"{role}.key_secret"), read_public_key(folder / "broker.key"))


def _read_file(path: Path) -> bytes:
    try:
        return read_small_file(path, MAX_BYTES).removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{path} cannot be used as a key: {explain(error)}") from None


def _find_key(path: Path, text: bytes, which: Literal["public", "secret"]) -> bytes:
    fields = [line.partition(b"=") for line in text.splitlines()]
    found = [value.strip(b" \t'\"") for name, _, value in fields if name.strip() == f"{which}-key".encode()]
    if not found:
        raise KeyFileError(f"{path} cannot be used as a key: it has no {which} key")
    if not _is_z85_key(found[0]):
        raise KeyFileError(f"{path} cannot be used as a key: its {which} key is not 40 characters of Z85")
    return found[0]


def _is_z85_key(text: bytes) -> bool:
    try:
        return len(text) == 40 and len(z85.decode(text)) == 32
    except (KeyError, struct.error):
        # A character outside of the Z85 alphabet, or five characters that exceed 32 bits.
        return False
