"""SIGHUP, which asks a process to read its files anew: it ends none, whatever there is to read."""

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

from tests.harness.processes import ROOT, Cluster, alive, descendants, free_port, until
from tests.harness.servers import MODEL, Server
from tests.unit.frontend.test_api_keys import entry


def live(cluster: Cluster) -> bool:
    """Whether a frontend answers; needs no key, so that it does not look at the file of keys."""
    try:
        return httpx.get(f"{cluster.url}/v2/health/live", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("processes", [1, 2])
def test_frontends_read_their_keys_anew(cluster: Cluster, processes: int) -> None:
    path = cluster.folder / "keys.toml"
    path.write_text(entry("one", "secret"))
    frontend = cluster.frontend("--processes", str(processes), "--api-keys", str(path))
    until(lambda: frontend.output.count("Worker ready") == processes)
    children = descendants(frontend.process.pid)

    def hang_up(told: str) -> None:
        before = frontend.output.count(told)
        frontend.signal(signal.SIGHUP)
        until(lambda: frontend.output.count(told) == before + processes or frontend.process.poll() is not None)
        assert frontend.process.poll() is None, frontend.output
        assert descendants(frontend.process.pid) == children

    def ask(key: str) -> int:
        return httpx.get(f"{cluster.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code

    hang_up("SIGHUP: the API keys are the same")
    path.write_text(entry("two", "other"))
    hang_up("SIGHUP: the API keys have changed")
    assert (ask("secret"), ask("other")) == (401, 200)
    path.write_text("[[key]")
    hang_up(f"the API keys are as before: {path} cannot be used: ")
    assert (ask("secret"), ask("other")) == (401, 200)
    frontend.signal(signal.SIGTERM)
    assert frontend.wait() == 0


def test_worker_that_loads_its_model_goes_on(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        worker = cluster.real_worker("--cache", str(cluster.folder / "cache"), environ=index)
        silent.settimeout(60)
        silent.accept()[0].close()
        worker.signal(signal.SIGHUP)
        # It would have ended by the first.
        worker.signal(signal.SIGTERM)
        assert worker.wait() == -signal.SIGTERM


def test_serve_passes_it_on_and_nobody_ends(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(entry("one", "secret"))
    server = Server(tmp_path, "--workers", "2", "--frontends", "2", "--api-keys", str(path))
    try:
        children = server.children()
        path.write_text("[[key]")
        server.program.signal(signal.SIGHUP)
        until(
            lambda: server.program.output.count(f"the API keys are as before: {path}") == 2, what="both frontends' word"
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


def test_terminal_that_is_closed_ends_serve_in_order(tmp_path: Path) -> None:
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
        children = until(lambda: pids if len(pids := descendants(process.pid)) == 3 else [])
        os.close(ours)
        assert process.wait(90) == 0
        assert not [pid for pid in children if alive(pid)]
        assert not list(tmp_path.glob("vecmill-*"))
    finally:
        process.kill()
        process.wait()
