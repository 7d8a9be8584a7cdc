"""`scripts/serve` as a supervisor: how it starts, restarts, refuses to start, and stops."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.harness.processes import ROOT, Program, alive, descendants, free_port, until
from tests.harness.servers import MODEL, Server

Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts servers; all of them are killed after the test."""
    started: list[Server] = []

    def start_server(*flags: str, **environment: str) -> Server:
        started.append(Server(tmp_path, *flags, **environment))
        return started[-1]

    yield start_server
    for server in started:
        server.program.close()


def test_crashed_processes_are_restarted(start: Start) -> None:
    server = start("--workers", "2", "--frontends", "2")
    for role in ("workers", "broker", "frontend"):
        before = set(server.children())
        for pid in before:
            if f"-m\0{role}\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        until(lambda before=before: set(server.children()) - before, what=f"a new {role}")  # type: ignore[misc]
        until(lambda: is_serving(server), 60, f"an answer after the {role} was killed")
    children = server.children()
    server.program.signal(signal.SIGTERM)
    assert server.program.wait(90) == 0
    assert not [pid for pid in children if alive(pid)]


def test_second_start_needs_no_network(start: Start) -> None:
    server = start(PIP_NO_INDEX="1", PIP_INDEX_URL="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9")
    assert is_serving(server)


def is_serving(server: Server) -> bool:
    """Return whether the server answers an embeddings request."""
    with contextlib.suppress(httpx.TransportError):
        return server.embed(["hello"]).status_code == 200
    return False


def test_api_key_variable_is_required_and_shown_unexpanded(start: Start) -> None:
    server = start(API_KEY="vm-secret")
    assert '-H "Authorization: Bearer $API_KEY"' in server.program.output
    assert "vm-secret" not in server.program.output
    assert server.embed(["a"]).status_code == 401
    body = {"model": MODEL, "input": "a"}
    headers = {"Authorization": "Bearer vm-secret"}
    assert httpx.post(f"{server.url}/v1/embeddings", json=body, headers=headers).status_code == 200


def test_killed_supervisor_takes_its_processes_along(start: Start) -> None:
    server = start()
    children = server.children()
    os.kill(server.program.process.pid, signal.SIGKILL)
    until(lambda: not [pid for pid in children if alive(pid)], what="the end of all processes")


def test_folder_without_model_aborts_start(tmp_path: Path) -> None:
    program = Program("serve", [str(ROOT / "scripts/serve"), "--model", str(tmp_path)], tmp_path / "serve.log")
    assert program.wait(60) == 1
    assert program.output.count("\n") == 1
    assert "has no config.json" in program.output


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--device", "NPU"), "device NPU not found; OpenVINO sees CPU"),
        (("--device", "quantum"), "device QUANTUM not found"),
        (("--port", "0"), "choose another with --port"),
        (("--port", "70000"), "choose another with --port"),
        (("--workers", "0"), "--workers"),
    ],
)
def test_impossible_flag_aborts_start(tmp_path: Path, flags: tuple[str, ...], sentence: str) -> None:
    command = [str(ROOT / "scripts/serve"), "--port", str(free_port()), *flags]
    program = Program("serve", command, tmp_path / "serve.log")
    assert program.wait(60) in (1, 2)
    assert sentence in program.output
    assert "Traceback" not in program.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_download_aborts_start(tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = ["env", "PIP_CONFIG_FILE=/dev/null", f"PIP_INDEX_URL={index}", str(ROOT / "scripts/serve")]
        command += ["--port", str(free_port()), "--cache", str(tmp_path / "cache")]
        program = Program("serve", command, tmp_path / "serve.log")
        connection, _ = silent.accept()
        children = descendants(program.process.pid)
        program.signal(number)
        assert program.wait(60) == 130
        connection.close()
    assert program.output.splitlines()[1:] == ["vecmill: stopped before the model was ready"]
    assert children
    assert not [pid for pid in children if alive(pid)]
    assert [path.name for path in (tmp_path / "cache/default").iterdir()] == [".lock"]


def test_second_signal_kills_all_processes(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    server = start(TMPDIR=str(folder))
    children = server.children()
    assert list(folder.glob("vecmill-*"))
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    server.program.signal(signal.SIGINT)
    until(lambda: "stopping frontend" in server.program.output)
    server.program.signal(signal.SIGINT)
    assert server.program.wait(20) == 130
    until(lambda: not [pid for pid in children if alive(pid)], what="the end of all processes")
    assert not list(folder.glob("vecmill-*"))


def test_occupied_port_aborts_start(start: Start, tmp_path: Path) -> None:
    server = start()
    program = Program("serve", [str(ROOT / "scripts/serve"), "--port", str(server.port)], tmp_path / "second.log")
    assert program.wait(60) == 1
    assert program.output.count("\n") == 1
    assert is_serving(server)
