"""Damaged CURVE key files: named in an error at the start, and without effect at a reload."""

import os
from pathlib import Path

import pytest
import zmq

from broker.shell.curve_auth import ROLES, CurveAuth
from broker.shell.curve_keys import add_key, make_keys
from broker.wire.curve import KeyFileError, Pair, Role, read_dealer_keys, read_pair, read_public_key
from broker.wire.protocol import MAX_FRAME_BYTES
from broker.wire.sockets import open_dealer, open_router
from tests.harness.damage import KEY_DAMAGE, remove
from workers.config import Config
from workers.session.loading_notice import connect_dealer


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Make the folders of keys of broker, worker and frontend."""
    make_keys(tmp_path)
    return tmp_path


@pytest.fixture
def auth(keys: Path) -> CurveAuth:
    """An authenticator that has read its lists; its thread does not run."""
    # The name of the folder is a glob pattern.
    pattern = keys / "[a-b]*"
    (keys / "broker").rename(pattern)
    auth = CurveAuth(zmq.Context.instance(), pattern)
    auth.reload_lists()
    return auth


def public(path: Path) -> str:
    """Return the public key in a file."""
    return read_public_key(path).decode()


def write_key(path: Path, public: str, secret: str = "") -> None:
    """Write a key file."""
    path.write_text(f'curve\n    public-key = "{public}"\n' + (f'    secret-key = "{secret}"\n' if secret else ""))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", KEY_DAMAGE)
def test_damaged_list_file_keeps_all_old_lists(keys: Path, auth: CurveAuth, role: str, kind: str) -> None:
    lists = keys / "[a-b]*"
    old = {one: public(lists / one / f"{one[:-1]}.key") for one in ROLES}
    damaged = lists / role / "new.key"
    KEY_DAMAGE[kind](damaged)
    added = zmq.curve_keypair()[0].decode()
    for one in ROLES:
        write_key(lists / one / "added.key", added)
        (lists / one / f"{one[:-1]}.key").unlink()
    with pytest.raises(KeyFileError) as caught:
        auth.reload_lists()
    assert str(caught.value).startswith(f"{damaged} cannot be used as a key: ")
    assert "\n" not in str(caught.value)
    assert all(auth.is_allowed(one, old[one]) and not auth.is_allowed(one, added) for one in ROLES)
    with pytest.raises(KeyFileError):
        CurveAuth(zmq.Context.instance(), lists).start()
    remove(damaged)
    auth.reload_lists()
    assert not any(auth.is_allowed(one, old[one]) for one in ROLES)
    assert all(auth.is_allowed(one, added) for one in ROLES)


def test_missing_list_keeps_all_old_lists(keys: Path, auth: CurveAuth) -> None:
    lists = keys / "[a-b]*"
    old = public(lists / "workers" / "worker.key")
    remove(lists / "workers")
    for _ in range(2):
        with pytest.raises(KeyFileError, match=r"the folder of keys .*workers cannot be read: No"):
            auth.reload_lists()
        assert auth.is_allowed("workers", old)
        (lists / "workers").write_text("")


def test_unreadable_list_file_keeps_all_old_lists(keys: Path, auth: CurveAuth, monkeypatch: pytest.MonkeyPatch) -> None:
    old = public(keys / "[a-b]*" / "workers" / "worker.key")

    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    # Simulated, because root can read every file.
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(KeyFileError, match=r"frontend\.key cannot be used as a key: Permission denied"):
        auth.reload_lists()
    assert auth.is_allowed("workers", old)


def test_files_with_other_names_are_ignored(keys: Path, auth: CurveAuth) -> None:
    for name in (".new.key", "new.key~", "README", "new.key_secret"):
        (keys / "[a-b]*" / "workers" / name).write_text("")
    auth.reload_lists()


def test_duplicate_keys_and_windows_line_ends_are_accepted(keys: Path, auth: CurveAuth) -> None:
    lists = keys / "[a-b]*" / "workers"
    key = public(lists / "worker.key")
    (lists / "again.key").write_bytes((lists / "worker.key").read_bytes().replace(b"\n", b"\r\n"))
    auth.reload_lists()
    (lists / "worker.key").unlink()
    auth.reload_lists()
    assert auth.is_allowed("workers", key)


def test_byte_order_mark_is_ignored(keys: Path) -> None:
    path = keys / "worker" / "broker.key"
    key = public(path)
    path.write_text(f'\ufeffpublic-key = "{key}"\r\n')
    assert public(path) == key


@pytest.mark.parametrize("kind", [*KEY_DAMAGE, "no secret", "another's secret", "missing"])
def test_damaged_pair_is_named_in_the_error(keys: Path, kind: str) -> None:
    own, other = read_pair(keys / "worker" / "worker.key_secret"), zmq.curve_keypair()[1].decode()
    for path in (keys / "broker" / "broker.key_secret", keys / "worker" / "worker.key_secret"):
        match kind:
            case "missing":
                path.unlink()
            case "no secret":
                write_key(path, own.public.decode())
            case "another's secret":
                write_key(path, own.public.decode(), other)
            case _:
                KEY_DAMAGE[kind](path)
    with pytest.raises(KeyFileError, match=r"broker/broker\.key_secret cannot be used as a key: "):
        CurveAuth(zmq.Context.instance(), keys / "broker")
    with pytest.raises(KeyFileError, match=r"worker/worker\.key_secret cannot be used as a key: "):
        read_dealer_keys(keys / "worker", "worker")
    if kind in ("missing", "loop of links", "dangling link"):
        assert all(key.made for key in make_keys(keys) if key.path.name != "frontend.key_secret")
        return
    with pytest.raises(ValueError, match=r"broker/broker\.key_secret cannot be used as a key: .*; remove it"):
        make_keys(keys)


@pytest.mark.parametrize("role", ["worker", "frontend"])
@pytest.mark.parametrize("kind", KEY_DAMAGE)
def test_damaged_broker_key_is_named_in_the_error(keys: Path, role: Role, kind: str) -> None:
    KEY_DAMAGE[kind](keys / role / "broker.key")
    with pytest.raises(KeyFileError, match=rf"{role}/broker\.key cannot be used as a key: "):
        read_dealer_keys(keys / role, role)


def test_worker_reads_its_keys_once(keys: Path) -> None:
    config = Config(keys=str(keys / "worker"), broker="tcp://127.0.0.1:1")
    for _ in range(2):
        socket = connect_dealer(config)
        socket.close(linger=0)
        socket.context.term()
        for path in (keys / "worker").iterdir():
            KEY_DAMAGE["empty"](path)


def test_made_pair_can_be_read(keys: Path) -> None:
    key = add_key(keys, "worker", "second")
    assert read_pair(key.path).public.decode() == key.public
    assert isinstance(read_pair(key.path), Pair)


def test_router_has_options() -> None:
    with zmq.Context() as context, open_router(context) as router:
        assert router.getsockopt(zmq.MAXMSGSIZE) == MAX_FRAME_BYTES
        assert (router.getsockopt(zmq.LINGER), router.getsockopt(zmq.SNDHWM)) == (0, 0)


def test_dealer_has_options_and_keys(tmp_path: Path) -> None:
    make_keys(tmp_path)
    with zmq.Context() as context:
        with open_dealer(context, "", "worker") as plain:
            assert (plain.getsockopt(zmq.IMMEDIATE), plain.getsockopt(zmq.LINGER)) == (1, 0)
            assert plain.getsockopt(zmq.MECHANISM) == zmq.NULL
        with open_dealer(context, str(tmp_path / "frontend"), "frontend") as secured:
            assert secured.getsockopt(zmq.MECHANISM) == zmq.CURVE
