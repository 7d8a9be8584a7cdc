"""Damaged files, at the start and at a reload: they are named in the log, and running processes keep serving."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import zmq

from broker.shell.curve_keys import add_key, make_keys
from broker.wire.curve import read_pair, read_public_key
from tests.harness.api_keys import make_entry
from tests.harness.clients import body, right
from tests.harness.damage import DAMAGE, KEY_DAMAGE, remove
from tests.harness.peers import Peer
from tests.harness.processes import ROOT, Cluster, descendants, free_port, until


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Make the folders of keys of broker, worker and frontend."""
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def accepts_key(keys: Path, peers: list[Peer]) -> Callable[[str, Path], bool]:
    """Return a function that tries to connect to an endpoint with a secret key."""
    server = read_public_key(keys / "worker" / "broker.key")

    def try_key(endpoint: str, secret: Path) -> bool:
        peer = Peer(endpoint).key(*read_pair(secret), server).connect()
        peers.append(peer)
        event = peer.event(zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        return event == zmq.EVENT_HANDSHAKE_SUCCEEDED

    return try_key


def test_damaged_allow_list_keeps_the_old_lists(
    cluster: Cluster, keys: Path, accepts_key: Callable[[str, Path], bool]
) -> None:
    endpoints = {role: f"tcp://127.0.0.1:{free_port()}" for role in ("frontend", "worker")}
    flags = ("--frontend-bind", endpoints["frontend"], "--worker-bind", endpoints["worker"])
    broker = cluster.broker(*flags, "--keys", str(keys / "broker"))
    cluster.worker("--broker", endpoints["worker"], "--keys", str(keys / "worker"))
    cluster.frontend("--broker", endpoints["frontend"], "--keys", str(keys / "frontend"))
    cluster.until_workers(1)
    removed = add_key(keys, "worker", "removed")
    broker.signal(signal.SIGHUP)
    until(lambda: "keys reloaded" in broker.output)
    # Takes effect at the next successful reload.
    added = add_key(keys, "worker", "added")
    (keys / "broker" / "workers" / "removed.key").unlink()

    def reload_keys(line: str) -> None:
        before = broker.output.count(line)
        broker.signal(signal.SIGHUP)
        until(lambda: broker.output.count(line) > before or broker.process.poll() is not None, what=line)
        assert broker.process.poll() is None, broker.output

    for number, (kind, damage) in enumerate(KEY_DAMAGE.items()):
        damaged = keys / "broker" / ("workers", "frontends")[number % 2] / f"{kind}.key"
        damage(damaged)
        reload_keys(f"keeping the old ones: {damaged} cannot be used as a key")
        assert accepts_key(endpoints["worker"], keys / "worker" / "worker.key_secret")
        assert accepts_key(endpoints["frontend"], keys / "frontend" / "frontend.key_secret")
        assert accepts_key(endpoints["worker"], removed.path)
        assert not accepts_key(endpoints["worker"], added.path)
        answer = httpx.post(f"{cluster.url}/v1/embeddings", json=body(kind), timeout=30)
        assert right(answer, (kind,))
        remove(damaged)
    assert "Traceback" not in broker.output
    reload_keys("keys reloaded")
    assert accepts_key(endpoints["worker"], added.path)
    assert not accepts_key(endpoints["worker"], removed.path)
    cluster.worker("--broker", endpoints["worker"], "--keys", str(added.path.parent))
    cluster.until_workers(2)


@pytest.mark.parametrize(
    ("damaged", "kind"),
    [
        ("broker/broker.key_secret", "empty"),
        ("broker/workers/worker.key", "fifo"),
        ("broker/frontends/frontend.key", "binary"),
        ("worker/worker.key_secret", "huge"),
        ("worker/broker.key", "more than 32 bits"),
        ("frontend/frontend.key_secret", "fifo"),
        ("frontend/broker.key", "directory"),
    ],
)
def test_damaged_key_ends_the_start_with_a_sentence(keys: Path, damaged: str, kind: str) -> None:
    KEY_DAMAGE[kind](keys / damaged)
    role = damaged.partition("/")[0]
    module = {"worker": "workers"}.get(role, role)
    flags = ["--port", str(free_port())] if role == "frontend" else []
    flags += ["--log-level", "warning", "--keys", str(keys / role)]
    done = subprocess.run(
        [sys.executable, "-m", module, *flags], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert done.stderr.startswith(f"vecmill {role}: {keys / damaged} cannot be used as a key: ")


def test_damaged_api_keys_keep_the_old_keys(cluster: Cluster) -> None:
    path = cluster.folder / "keys.toml"
    path.write_text(make_entry("one", "secret"))
    frontend = cluster.frontend("--api-keys", str(path), environ={"API_KEY": "operator"})
    until(cluster.health)

    def ask(key: str) -> int:
        return httpx.get(f"{cluster.url}/v1/config", headers={"Authorization": f"Bearer {key}"}).status_code

    def count_errors() -> int:
        return frontend.output.count(f"could not reload API keys, keeping the old ones: {path} cannot be used: ")

    before = count_errors()
    for damage in DAMAGE.values():
        damage(path)
        reload = httpx.post(f"{cluster.url}/v1/config/reload", headers={"Authorization": "Bearer operator"})
        assert reload.status_code == 500
        assert (ask("secret"), ask("operator"), ask("wrong")) == (200, 200, 401)
        assert count_errors() > before
        before = count_errors()
        assert frontend.process.poll() is None
    assert "Traceback" not in frontend.output
    remove(path)
    until(lambda: (ask("secret"), count_errors() - before) == (200, 1))
    path.write_text(make_entry("two", "another"))
    until(lambda: ask("another") == 200)
    assert ask("secret") == 401
    assert count_errors() - before == 1


def test_refused_restart_does_not_end_other_frontends(cluster: Cluster) -> None:
    path = cluster.folder / "keys.toml"
    path.write_text(make_entry("one", "secret"))
    parent = cluster.frontend("--processes", "2", "--api-keys", str(path))

    def live() -> bool:
        try:
            return httpx.get(f"{cluster.url}/v2/health/live", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    until(lambda: parent.output.count("listening on port") == 2)
    until(live)
    children = descendants(parent.process.pid)
    assert len(children) == 2
    path.write_text("[[key]")
    subprocess.run(["kill", "-KILL", str(children[0])], check=True)
    until(lambda: parent.output.count("ended with status 2; restarting") > 1)
    assert f"vecmill frontend: {path} cannot be used: " in parent.output
    assert parent.process.poll() is None
    assert children[1] in descendants(parent.process.pid)
    assert live()
    path.write_text(make_entry("one", "secret"))
    until(lambda: parent.output.count("listening on port") == 3)
    assert live()
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


def test_refused_first_start_ends_all_frontends(cluster: Cluster) -> None:
    for flags in (("--keys", "/nonexistent"), ("--broker", "nonsense")):
        parent = cluster.frontend("--processes", "2", *flags)
        assert parent.wait() == 2
        assert parent.output.count("\n") == 1
