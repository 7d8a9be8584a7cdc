"""CURVE keys on disk: who may talk to the broker. `python -m broker.keys FOLDER` makes them.

Each folder holds what its owner may see and nothing else, so that it can be mounted or copied alone:

    broker/      broker.key_secret     workers/*.key  frontends/*.key    whom the broker lets in, by public key
    worker/      worker.key_secret     broker.key
    frontend/    frontend.key_secret   broker.key

Secrets are the truth: one is put in place whole and never replaced, and every public file is written again from the
secret that it belongs to when the two differ. So a run that was killed leaves nothing that the next does not repair.

A worker or frontend that has the broker's public key but is not on the broker's list has been taken off it, and stays
off until `--add` names it. One without that key is what a killed run left, and is put on the list. Where there is no
list at all, nobody has been taken off.
"""

import argparse
import contextlib
import fcntl
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import zmq.auth

from broker.shared.files import make_scratch_folder, move_into_place, remove_scratch_folders
from broker.wire.curve import KeyFileError, read_pair, read_public_key

Role = Literal["worker", "frontend"]
ROLES: tuple[Role, ...] = get_args(Role)

SECRET, PUBLIC = ".key_secret", ".key"


class Key(NamedTuple):
    """A key pair as people may see it."""

    path: Path
    public: str
    made: bool
    #: Whether the broker lets it in, or is the broker's.
    listed: bool = True


def make_keys(root: Path) -> list[Key]:
    """Make the keys that are missing and repair what a killed run left. KeyFileError names a file that is damaged.

    Keys that have been taken off the broker's list stay off.
    """
    for folder in (root, *(root / name for name in ("broker", *ROLES))):
        _folder(folder)
    with _locked(root):
        remove_scratch_folders(root)
        broker = _pair(root / "broker" / f"broker{SECRET}")
        peers = {root / role / f"{role}{SECRET}" for role in ROLES}
        peers |= {path for role in ROLES for path in root.glob(f"*/{role}{SECRET}")}
        for role in ROLES:
            _begin_list(_list(root, role), [path for path in sorted(peers) if path.name == role + SECRET])
        return [broker, *(_keep(root, path, broker) for path in sorted(peers))]


def add_key(root: Path, role: Role, name: str) -> Key:
    """One more worker or frontend: `name` is its folder beside broker/ and its entry in the broker's list.

    One that has been taken off the list is put back.
    """
    if role not in ROLES:
        raise ValueError(f"{role!r} is not a role: {' or '.join(ROLES)}")
    if name == "broker" or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise ValueError(f"{name!r} is not a name for a key: lower-case letters, digits and hyphens, and not 'broker'")
    make_keys(root)
    with _locked(root):
        broker = _pair(root / "broker" / f"broker{SECRET}")
        return _enrol(root, root / name / f"{role}{SECRET}", broker)


def _list(root: Path, role: str) -> Path:
    """Return the folder of the public keys that the broker lets in as this role."""
    return root / "broker" / f"{role}s"


def _begin_list(folder: Path, secrets: list[Path]) -> None:
    """Put everybody who has a key on a list that is missing. It is put in place whole: see the module's docstring."""
    secrets = [secret for secret in secrets if secret.exists()]
    if folder.exists() or not secrets:
        return
    with make_scratch_folder(folder.parent) as making:
        whole = _folder(making / folder.name)
        for secret in secrets:
            _publish(_pair(secret).public, whole / f"{secret.parent.name}{PUBLIC}")
        move_into_place(whole, folder)


def _keep(root: Path, secret: Path, broker: Key) -> Key:
    """Make a peer's key if it is missing, and repair what is there of it, unless it has been taken off the list."""
    role, folder = secret.name.removesuffix(SECRET), secret.parent
    entry = _list(root, role) / f"{folder.name}{PUBLIC}"
    if secret.exists() and (folder / f"broker{PUBLIC}").exists() and not entry.exists():
        return _pair(secret)._replace(listed=False)
    return _enrol(root, secret, broker)


def _enrol(root: Path, secret: Path, broker: Key) -> Key:
    """Make a peer's key if it is missing, tell the broker of it, and then the peer of the broker."""
    key = _pair(secret)
    role, name = secret.name.removesuffix(SECRET), secret.parent.name
    _publish(key.public, _list(root, role) / f"{name}{PUBLIC}")
    _publish(broker.public, secret.parent / f"broker{PUBLIC}")
    return key


def _pair(secret: Path) -> Key:
    """The key of this secret's file, made if there is no file."""
    missing = not secret.exists()
    if missing:
        with make_scratch_folder(_folder(secret.parent)) as making:
            _, made = zmq.auth.create_certificates(making, secret.name.removesuffix(SECRET))
            os.chmod(made, 0o600)
            move_into_place(Path(made), secret)
    secret.chmod(0o600)
    try:
        return Key(secret, read_pair(secret).public.decode(), missing)
    except KeyFileError as error:
        raise KeyFileError(f"{error}; remove it to have another made") from None


def _publish(public: str, path: Path) -> None:
    """Write a public key's file unless it is there and right."""
    _folder(path.parent)
    with contextlib.suppress(KeyFileError):
        if read_public_key(path).decode() == public:
            return
    with make_scratch_folder(path.parent) as making:
        text = f'#   ZeroMQ CURVE public certificate\n\nmetadata\ncurve\n    public-key = "{public}"\n'
        (making / path.name).write_text(text)
        move_into_place(making / path.name, path)


def _folder(path: Path) -> Path:
    """Make a folder that only its owner enters. One that is mounted may belong to somebody else and be right so."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid == os.geteuid():
        path.chmod(0o700)
    return path


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One run at a time. On broker/, which containers share, not on the root, which each has of its own."""
    descriptor = os.open(root / "broker", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main() -> None:
    """Exit status 1 with one sentence when keys cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m broker.keys", description="Make the CURVE keys that are missing.")
    parser.add_argument("folder", type=Path, help="where the folders broker, worker and frontend are or will be")
    parser.add_argument(
        "--add", nargs=2, metavar=("ROLE", "NAME"), help="one more worker or frontend, by its name; or back on the list"
    )
    options = parser.parse_args()
    try:
        keys = [add_key(options.folder, *options.add)] if options.add else make_keys(options.folder)
    except (OSError, ValueError) as error:
        sys.exit(f"vecmill: {error}")
    for key in keys:
        print(f"{'made' if key.made else 'kept'} {key.path}, public key {key.public}")
        if not key.listed:
            role, name = key.path.name.removesuffix(SECRET), key.path.parent.name
            print(f"     it is off the broker's list and stays off; --add {role} {name} would put it back")


if __name__ == "__main__":
    main()
