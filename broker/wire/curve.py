"""Reading CURVE keys from disk, for all three kinds of process. `broker.keys` makes them.

pyzmq reads these files too, but raises what a damaged file happens to lead to, waits at a FIFO, and takes text that is
no key, which libzmq refuses only later.
"""

import functools
import os
import struct
from pathlib import Path
from typing import Literal, NamedTuple

import zmq
from zmq.utils import z85

from broker.shared.files import explain, read_small_file
from broker.wire.protocol import DEALER_OPTIONS

#: Largest file of a key; `broker.keys` makes files of 300 to 500 bytes.
MAX_BYTES = 64 * 1024


class KeyFileError(ValueError):
    """A file or folder of keys cannot be used. The text is one sentence that names it."""


class Pair(NamedTuple):
    """A public key and the secret key that it belongs to, both in Z85."""

    public: bytes
    secret: bytes


class DealerKeys(NamedTuple):
    """What a frontend or a worker needs to connect: its own keys, and whom it expects to find."""

    own: Pair
    broker: bytes


def read_public_key(path: Path) -> bytes:
    """Return the public key of a file. Raise KeyFileError if it has none."""
    return _find_key(path, _read(path), "public")


def read_pair(path: Path) -> Pair:
    """Return both keys of a file. Raise KeyFileError if one is missing or they do not belong together."""
    text = _read(path)
    pair = Pair(_find_key(path, text, "public"), _find_key(path, text, "secret"))
    if zmq.curve_public(pair.secret) != pair.public:
        raise KeyFileError(f"{path} cannot be used as a key: its public key does not belong to its secret key")
    return pair


def read_allow_list(folder: Path) -> frozenset[bytes]:
    """Return the public keys of all `*.key` files of a folder. Raise KeyFileError if any of them cannot be used."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise KeyFileError(f"the folder of keys {folder} cannot be read: {explain(error)}") from None
    return frozenset(
        read_public_key(folder / name) for name in names if name.endswith(".key") and not name.startswith(".")
    )


# Workers open two sockets, the second one minutes after the first: files that were damaged in between do not matter.
@functools.cache
def read_dealer_keys(folder: Path, role: Literal["frontend", "worker"]) -> DealerKeys:
    """Return the keys of a frontend or a worker; a process reads them once. Raise KeyFileError."""
    return DealerKeys(read_pair(folder / f"{role}.key_secret"), read_public_key(folder / "broker.key"))


def open_dealer(
    context: "zmq.Context[zmq.Socket[bytes]]", keys: str, role: Literal["frontend", "worker"]
) -> "zmq.Socket[bytes]":
    """Return a DEALER with the wire's options, not connected yet. It speaks CURVE if `keys` names a folder.

    Raise KeyFileError when a key file cannot be used.
    """
    socket = context.socket(zmq.DEALER)
    for name, value in DEALER_OPTIONS.items():
        socket.setsockopt(getattr(zmq, name), value)
    if keys:
        found = read_dealer_keys(Path(keys), role)
        socket.curve_publickey, socket.curve_secretkey = found.own
        socket.curve_serverkey = found.broker
    return socket


def _read(path: Path) -> bytes:
    try:
        return read_small_file(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{path} cannot be used as a key: {explain(error)}") from None


def _find_key(path: Path, text: bytes, which: Literal["public", "secret"]) -> bytes:
    fields = [line.partition(b"=") for line in text.splitlines()]
    found = [value.strip(b" \t'\"") for name, _, value in fields if name.strip() == f"{which}-key".encode()]
    if not found:
        raise KeyFileError(f"{path} cannot be used as a key: it has no {which} key")
    if not _is_key(found[0]):
        raise KeyFileError(f"{path} cannot be used as a key: its {which} key is not 40 characters of Z85")
    return found[0]


def _is_key(text: bytes) -> bool:
    try:
        return len(text) == 40 and len(z85.decode(text)) == 32
    except (KeyError, struct.error):
        # A character that Z85 does not have, or five that are more than 32 bits.
        return False
