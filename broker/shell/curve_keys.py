"""Makes the CURVE keys of all processes: `python -m broker.shell.curve_keys FOLDER`.

Each folder holds only what its owner needs, so that it can be mounted or copied alone. The broker's folder has an
allow-list of public keys for each role:

    broker/      broker.key_secret     workers/*.key  frontends/*.key
    worker/      worker.key_secret     broker.key
    frontend/    frontend.key_secret   broker.key

A secret is put in place complete and never replaced, and a public file that does not match its secret is written again.
So the next run repairs whatever a killed run left.

A worker or frontend that has `broker.key` but is not on the allow-list was removed from the list, and stays removed
until `--add` names it. One without `broker.key` was left by a killed run and is added to the list. If there is no list
at all, no key was removed.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import zmq.auth

from broker.shared.exit import exit_refused
from broker.shared.files import make_scratch_folder, move_into_place, remove_scratch_folders
from broker.shared.flags import FlagParser
from broker.wire.curve import KeyFileError, Role, read_pair, read_public_key

ROLES: tuple[Role, ...] = get_args(Role)
SECRET, PUBLIC = ".key_secret", ".key"


class Key(NamedTuple):
    """A key pair, without its secret."""

    path: Path
    public: str
    #: Whether this run has made the pair.
    made: bool
    #: Whether the broker accepts the key. True for the broker's own.
    listed: bool = True


def make_keys(root: Path) -> list[Key]:
    """Make the missing keys, repair what a killed run left, and return all keys.

    Keys that were removed from an allow-list stay removed. Raise KeyFileError if a secret's file is damaged.
    """
    for folder in (root, *(root / name for name in ("broker", *ROLES))):
        _make_private_folder(folder)
    with _lock_root(root):
        remove_scratch_folders(root)
        broker = _make_pair(root / "broker" / f"broker{SECRET}")
        peers = {root / role / f"{role}{SECRET}" for role in ROLES}
        peers |= {path for role in ROLES for path in root.glob(f"*/{role}{SECRET}")}
        for role in ROLES:
            _restore_list(_get_list(root, role), [path for path in sorted(peers) if path.name == role + SECRET])
        return [broker, *(_repair_peer(root, path, broker) for path in sorted(peers))]


def add_key(root: Path, role: Role, name: str) -> Key:
    """Make a key for one more worker or frontend, or put a removed key back on the allow-list. Return the key.

    `name` becomes the peer's folder in `root` and its entry in the list. Raise ValueError if role or name is invalid.
    """
    if role not in ROLES:
        raise ValueError(f"{role!r} is not a role; choose {' or '.join(ROLES)}")
    if name == "broker" or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        text = f"{name!r} is not a name for a key; use lower-case letters, digits and hyphens, and not 'broker'"
        raise ValueError(text)
    make_keys(root)
    with _lock_root(root):
        broker = _make_pair(root / "broker" / f"broker{SECRET}")
        return _enroll_peer(root, root / name / f"{role}{SECRET}", broker)


def _get_list(root: Path, role: str) -> Path:
    """Return the folder of the public keys that the broker accepts for this role."""
    return root / "broker" / f"{role}s"


def _restore_list(folder: Path, secrets: list[Path]) -> None:
    """Make a missing allow-list of all existing keys. It is put in place complete; see the module's docstring."""
    secrets = [secret for secret in secrets if secret.exists()]
    if folder.exists() or not secrets:
        return
    with make_scratch_folder(folder.parent) as scratch:
        complete = _make_private_folder(scratch / folder.name)
        for secret in secrets:
            _publish_key(_make_pair(secret).public, complete / f"{secret.parent.name}{PUBLIC}")
        move_into_place(complete, folder)


def _repair_peer(root: Path, secret: Path, broker: Key) -> Key:
    """Return a peer's key, made or repaired unless it was removed from the allow-list."""
    role, folder = secret.name.removesuffix(SECRET), secret.parent
    entry = _get_list(root, role) / f"{folder.name}{PUBLIC}"
    if secret.exists() and (folder / f"broker{PUBLIC}").exists() and not entry.exists():
        return _make_pair(secret)._replace(listed=False)
    return _enroll_peer(root, secret, broker)


def _enroll_peer(root: Path, secret: Path, broker: Key) -> Key:
    """Make a peer's key if it is missing. Write it to the allow-list first, and then the broker's to the peer."""
    key = _make_pair(secret)
    role, name = secret.name.removesuffix(SECRET), secret.parent.name
    _publish_key(key.public, _get_list(root, role) / f"{name}{PUBLIC}")
    _publish_key(broker.public, secret.parent / f"broker{PUBLIC}")
    return key


def _make_pair(secret: Path) -> Key:
    """Return the key in a secret's file, which is made if it is missing."""
    missing = not secret.exists()
    if missing:
        with make_scratch_folder(_make_private_folder(secret.parent)) as scratch:
            _, made = zmq.auth.create_certificates(scratch, secret.name.removesuffix(SECRET))
            os.chmod(made, 0o600)
            move_into_place(Path(made), secret)
    secret.chmod(0o600)
    try:
        return Key(secret, read_pair(secret).public.decode(), missing)
    except KeyFileError as error:
        raise KeyFileError(f"{error}; remove it to have another made") from None


def _publish_key(public: str, path: Path) -> None:
    """Write a public key's file unless the file has this key already."""
    _make_private_folder(path.parent)
    with contextlib.suppress(KeyFileError):
        if read_public_key(path).decode() == public:
            return
    with make_scratch_folder(path.parent) as scratch:
        text = f'#   ZeroMQ CURVE public certificate\n\nmetadata\ncurve\n    public-key = "{public}"\n'
        (scratch / path.name).write_text(text)
        move_into_place(scratch / path.name, path)


def _make_private_folder(path: Path) -> Path:
    """Return a folder that only its owner can enter. A mounted folder of another owner keeps its mode."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid == os.geteuid():
        path.chmod(0o700)
    return path


@contextlib.contextmanager
def _lock_root(root: Path) -> Iterator[None]:
    """Exclude other runs. The lock is on broker/, which containers share, unlike the root."""
    descriptor = os.open(root / "broker", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main() -> None:
    """Make keys and print them."""
    parser = FlagParser(prog="python -m broker.shell.curve_keys", description="Make the CURVE keys that are missing.")
    parser.add_argument("folder", type=Path, help="folder of the folders broker, worker and frontend")
    text = "add a key for the worker or frontend NAME, or put it back on the allow-list"
    parser.add_argument("--add", nargs=2, metavar=("ROLE", "NAME"), help=text)
    options = parser.parse_args()
    try:
        keys = [add_key(options.folder, *options.add)] if options.add else make_keys(options.folder)
    except (OSError, ValueError) as error:
        exit_refused("", error)
    if kept := sum(not key.made for key in keys):
        print(f"kept {kept} keys")
    for key in keys:
        if key.made or options.add:
            print(f"{'made' if key.made else 'kept'} {key.path}, public key {key.public}")
        if not key.listed:
            role, name = key.path.name.removesuffix(SECRET), key.path.parent.name
            print(f"{key.path} was removed from the broker's allow-list; to put it back: --add {role} {name}")


if __name__ == "__main__":
    main()
