"""SIGHUP, with which processes reload their files. It ends no process."""

import fcntl
import os
import pty
import signal
import socket
import subprocess
import termios
from pathlib import Path

import httpx
import pytest

from tests.harness.api_keys import make_entry
from tests.harness.processes import ROOT, Cluster, alive, descendants, free_port, until
from tests.harness.servers import MODEL, Server


@pytest.mark.parametrize("processes", [1, 2])
def test_frontends_reload_their_keys(cluster: Cluster, processes: int) -> None:
    path = cluster.folder / "keys.toml"
    path.write_text(make_entry("one", "secret"))
    frontend = cluster.frontend("--processes", str(processes), "--api-keys", str(path))
    until(lambda: frontend.output.count("listening on port") == processes)
    children = descendants(frontend.process.pid)

    def hang_up(message: str) -> None:
        before = frontend.output.count(message)
        frontend.signal(signal.SIGHUP)
        until(lambda: frontend.output.count(message) == before + processes or frontend.process.poll() is not None)
        assert frontend.process.poll() is None, frontend.output
        assert descendants(frontend.process.pid) == children

    def ask(key: str) -> int:
        return httpx.get(f"{cluster.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code

    hang_up("reloaded API keys: unchanged")
    path.write_text(make_entry("two", "other"))
    hang_up("reloaded API keys: changed")
    assert (ask("secret"), ask("other")) == (401, 200)
    path.write_text("[[key]")
    hang_up(f"could not reload API keys, keeping the old ones: {path} cannot be used: ")
    assert (ask("secret"), ask("other")) == (401, 200)
    frontend.signal(signal.SIGTERM)
    assert frontend.wait() == 0


def test_sighup_does_not_end_loading_worker(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        worker = cluster.real_worker("--cache", str(cluster.folder / "cache"), environ=index)
        silent.settimeout(60)
        silent.accept()[0].close()
        worker.signal(signal.SIGHUP)
        # SIGHUP would have ended the worker first.
        worker.signal(signal.SIGTERM)
        assert worker.wait() == -signal.SIGTERM


def test_serve_forwards_sighup_to_all(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(make_entry("one", "secret"))
    server = Server(tmp_path, "--workers", "2", "--frontends", "2", "--api-keys", str(path))
    try:
        children = server.children()
        path.write_text("[[key]")
        server.program.signal(signal.SIGHUP)
        until(
            lambda: server.program.output.count(f"could not reload API keys, keeping the old ones: {path}") == 2,
            what="the errors of both frontends",
        )
        for pid in children:
            os.kill(pid, signal.SIGHUP)
        body = {"model": MODEL, "input": ["a"] * 100}
        answer = httpx.post(f"{server.url}/v1/embeddings", json=body, headers={"Authorization": "Bearer secret"})
        assert answer.status_code == 200
        assert server.children() == children
        server.program.signal(signal.SIGTERM)
        assert server.program.wait(90) == 0
    finally:
        server.program.close()


def test_closed_terminal_ends_serve(tmp_path: Path) -> None:
    ours, terminal = pty.openpty()
    command = [str(ROOT / "scripts/serve"), "--port", str(free_port())]
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        os.close(terminal)
        until(lambda: len(list(tmp_path.glob("vecmill-*/*"))) >= 2, 60, "the sockets of the broker")
        children = until(lambda: pids if len(pids := descendants(process.pid)) == 4 else [])
        os.close(ours)
        assert process.wait(90) == 0
        assert not [pid for pid in children if alive(pid)]
        assert not list(tmp_path.glob("vecmill-*"))
    finally:
        process.kill()
        process.wait()
