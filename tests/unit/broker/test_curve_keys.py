"""CURVE key folders: their content, their modes, and that public keys match after a killed run."""

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq
import zmq.auth
import zmq.auth.thread

from broker.shared.files import SCRATCH
from broker.shell import curve_keys

FILES = {
    "broker/broker.key_secret",
    "broker/workers/worker.key",
    "broker/frontends/frontend.key",
    "worker/worker.key_secret",
    "worker/broker.key",
    "frontend/frontend.key_secret",
    "frontend/broker.key",
}


class Killed(BaseException):
    """Ends a run like a kill, because no code catches it."""


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def public(path: Path) -> bytes:
    return zmq.auth.load_certificate(path)[0]


def check_public_files(root: Path) -> None:
    """Assert that every public file matches its secret."""
    for role in curve_keys.ROLES:
        pairs = [
            (root / "broker" / f"{role}s" / f"{role}.key", root / role / f"{role}.key_secret"),
            (root / role / "broker.key", root / "broker" / "broker.key_secret"),
        ]
        for copy, secret in pairs:
            if copy.exists():
                assert public(copy) == public(secret)


def test_each_folder_holds_only_its_roles_files(tmp_path: Path) -> None:
    curve_keys.make_keys(tmp_path)
    assert set(files(tmp_path)) == FILES
    check_public_files(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        elif path.suffix == ".key_secret":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        else:
            assert b"secret" not in path.read_bytes()


def test_existing_keys_are_kept(tmp_path: Path) -> None:
    assert all(key.made for key in curve_keys.make_keys(tmp_path))
    before = files(tmp_path)
    assert not any(key.made for key in curve_keys.make_keys(tmp_path))
    assert files(tmp_path) == before


def test_only_new_keys_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["keys", str(tmp_path)])
    curve_keys.main()
    assert capsys.readouterr().out.count("made ") == 3
    curve_keys.main()
    assert capsys.readouterr().out == "kept 3 keys\n"


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("fatal", range(1, len(FILES) + 1))
def test_killed_run_is_repaired_by_the_next(
    fatal: int, renamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renames = iter(range(1, 100))

    def replace_or_die(self: Path, target: Path) -> None:
        dies = next(renames) == fatal
        if renamed or not dies:
            os.replace(self, target)
        if dies:
            raise Killed

    monkeypatch.setattr(Path, "replace", replace_or_die)
    with pytest.raises(Killed):
        curve_keys.make_keys(tmp_path)
    check_public_files(tmp_path)
    left = {name: text for name, text in files(tmp_path).items() if SCRATCH not in name}
    assert len(left) == fatal - (not renamed)
    curve_keys.make_keys(tmp_path)
    check_public_files(tmp_path)
    assert set(files(tmp_path)) == FILES
    assert left.items() <= files(tmp_path).items()


def test_lost_secret_is_replaced_everywhere(tmp_path: Path) -> None:
    curve_keys.make_keys(tmp_path)
    for name in ("broker/broker.key_secret", "worker/worker.key_secret"):
        (tmp_path / name).unlink()
    assert [key.made for key in curve_keys.make_keys(tmp_path)] == [True, False, True]
    check_public_files(tmp_path)


def test_damaged_public_file_is_repaired(tmp_path: Path) -> None:
    curve_keys.make_keys(tmp_path)
    (tmp_path / "worker/broker.key").write_bytes(b"")
    curve_keys.make_keys(tmp_path)
    check_public_files(tmp_path)
    (tmp_path / "worker/worker.key_secret").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"worker\.key_secret cannot be used as a key: it has no public key; remove it"
    ):
        curve_keys.make_keys(tmp_path)


def test_parallel_runs_make_one_set(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = [future.result() for future in [pool.submit(curve_keys.make_keys, tmp_path) for _ in range(8)]]
    assert sum(key.made for result in results for key in result) == 3
    assert set(files(tmp_path)) == FILES
    check_public_files(tmp_path)


def test_added_key_gets_its_own_folder(tmp_path: Path) -> None:
    key = curve_keys.add_key(tmp_path, "worker", "garage")
    assert key.made
    assert set(files(tmp_path)) - FILES == {
        "garage/worker.key_secret",
        "garage/broker.key",
        "broker/workers/garage.key",
    }
    assert public(tmp_path / "broker/workers/garage.key").decode() == key.public
    (tmp_path / "broker/broker.key_secret").unlink()
    curve_keys.make_keys(tmp_path)
    assert public(tmp_path / "garage/broker.key") == public(tmp_path / "broker/broker.key_secret")


def listed(root: Path) -> set[str]:
    """Return the names on the broker's allow-lists."""
    return {path.stem for role in curve_keys.ROLES for path in (root / "broker" / f"{role}s").iterdir()}


def test_removed_key_returns_only_by_name(tmp_path: Path) -> None:
    curve_keys.add_key(tmp_path, "worker", "garage")
    for name in ("workers/garage.key", "workers/worker.key", "frontends/frontend.key"):
        (tmp_path / "broker" / name).unlink()
    again = curve_keys.make_keys(tmp_path)
    assert [key.listed for key in again] == [True, False, False, False]
    assert not any(key.made for key in again)
    curve_keys.add_key(tmp_path, "frontend", "second")
    assert listed(tmp_path) == {"second"}
    # Also after the broker got another key, which removed peers do not have.
    (tmp_path / "broker/broker.key_secret").unlink()
    for _ in range(2):
        curve_keys.make_keys(tmp_path)
        assert listed(tmp_path) == {"second"}
    back = curve_keys.add_key(tmp_path, "worker", "garage")
    assert (back.made, back.listed) == (False, True)
    assert listed(tmp_path) == {"second", "garage"}
    assert public(tmp_path / "garage/broker.key") == public(tmp_path / "broker/broker.key_secret")
    assert public(tmp_path / "broker/workers/garage.key") == public(tmp_path / "garage/worker.key_secret")


@pytest.mark.parametrize("fatal", range(1, 12))
def test_lost_broker_folder_is_rebuilt_with_all_keys(
    fatal: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """See "volumes" in docs/docker.md. Also if the run that rebuilds the folder is killed."""
    for name in ("garage", "kitchen"):
        curve_keys.add_key(tmp_path, "worker", name)
    everybody = listed(tmp_path)
    shutil.rmtree(tmp_path / "broker")
    renames = iter(range(1, 100))

    def replace_or_die(self: Path, target: Path) -> None:
        if next(renames) == fatal:
            raise Killed
        os.replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_or_die)
    with pytest.raises(Killed):
        curve_keys.make_keys(tmp_path)
    curve_keys.make_keys(tmp_path)
    assert listed(tmp_path) == everybody
    check_public_files(tmp_path)


@pytest.mark.parametrize("name", ["broker", "", "..", "a/b", "A", "-a"])
def test_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        curve_keys.add_key(tmp_path, "worker", name)


def test_pyzmq_accepts_only_the_listed_key(tmp_path: Path) -> None:
    curve_keys.make_keys(tmp_path)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    authenticator = zmq.auth.thread.ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve(domain="workers", location=tmp_path / "broker/workers")
    server, client = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    server.curve_publickey, server.curve_secretkey = zmq.auth.load_certificate(tmp_path / "broker/broker.key_secret")
    server.curve_server = True
    server.setsockopt_string(zmq.ZAP_DOMAIN, "workers")
    monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    try:
        port = server.bind_to_random_port("tcp://127.0.0.1")
        for role, event in (("frontend", zmq.EVENT_HANDSHAKE_FAILED_AUTH), ("worker", zmq.EVENT_HANDSHAKE_SUCCEEDED)):
            secret = zmq.auth.load_certificate(tmp_path / role / f"{role}.key_secret")
            client.curve_publickey, client.curve_secretkey = secret
            client.curve_serverkey = public(tmp_path / role / "broker.key")
            client.connect(f"tcp://127.0.0.1:{port}")
            assert monitor.poll(5000)
            assert int.from_bytes(monitor.recv_multipart()[0][:2], "little") == event
            client.disconnect(f"tcp://127.0.0.1:{port}")
    finally:
        client.disable_monitor()
        for socket in (monitor, client, server):
            socket.close(0)
        authenticator.stop()
        context.term()


def test_command_prints_no_secret(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "broker.shell.curve_keys", tmp_path / "keys"], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("made ") == 3
    secret = zmq.auth.load_certificate(tmp_path / "keys/worker/worker.key_secret")[1]
    assert secret is not None
    assert secret.decode() not in done.stdout + done.stderr


def test_command_reports_removed_keys(tmp_path: Path) -> None:
    curve_keys.add_key(tmp_path, "worker", "garage")
    (tmp_path / "broker/workers/garage.key").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "broker.shell.curve_keys", tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("removed from the broker's allow-list") == 1
    assert "to put it back: --add worker garage" in done.stdout


def test_unknown_role_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a role; choose worker or frontend"):
        curve_keys.add_key(tmp_path, "wrker", "x")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
