"""`scripts/serve` as a supervisor: how it starts, restarts, refuses to start, and stops."""

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
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

    def start_server(*flags: str, scheme: str = "http", **environment: str) -> Server:
        started.append(Server(tmp_path, *flags, scheme=scheme, **environment))
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
    assert "vecmill: finishing open requests\n" in server.program.output
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
    assert program.wait(60) == 2
    assert program.output.count("\n") == 1
    assert "has no config.json" in program.output


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--device", "NPU"), "device NPU not found; OpenVINO sees CPU"),
        (("--device", "quantum"), "device QUANTUM not found"),
        (("--host", "no-such-host.invalid"), "choose an address of this machine with --host"),
        (("--host", "192.0.2.1"), "choose an address of this machine with --host"),
        (("--data", "/proc/x"), "the folder /proc/x of --data cannot be used: No such file or directory"),
        (("--api-keys", "/proc/x"), "/proc/x"),
    ],
)
def test_impossible_flag_aborts_start(tmp_path: Path, flags: tuple[str, ...], sentence: str) -> None:
    command = [str(ROOT / "scripts/serve"), "--port", str(free_port()), *flags]
    program = Program("serve", command, tmp_path / "serve.log")
    assert program.wait(60) == 2
    assert sentence in program.output.splitlines()[-1]
    assert program.output.count(sentence) == 1
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
    assert "a second Ctrl-C kills all processes at once" in server.program.output
    server.program.signal(signal.SIGINT)
    assert server.program.wait(20) == 130
    assert "second signal: killing all processes" in server.program.output
    until(lambda: not [pid for pid in children if alive(pid)], what="the end of all processes")
    assert not list(folder.glob("vecmill-*"))


def test_occupied_port_aborts_start(start: Start, tmp_path: Path) -> None:
    server = start()
    program = Program("serve", [str(ROOT / "scripts/serve"), "--port", str(server.port)], tmp_path / "second.log")
    assert program.wait(60) == 2
    assert program.output.count("\n") == 1
    assert "Address already in use; choose another with --port" in program.output
    assert is_serving(server)


# --- what is printed -------------------------------------------------------------------------------------------------


def test_tls_server_reports_ready(start: Start, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    server = start("--tls-cert", str(cert), "--tls-key", str(key), scheme="https")
    assert f"curl -k https://127.0.0.1:{server.port}/v1/embeddings" in server.program.output
    assert f"https://127.0.0.1:{server.port}/docs describes all paths" in server.program.output
    trusted = ssl.create_default_context(cafile=str(cert))
    assert httpx.get(f"{server.url}/v2/health/ready", verify=trusted).status_code == 200


def test_ready_means_that_all_workers_are(start: Start) -> None:
    server = start("--workers", "2")
    assert f"{MODEL} at {server.url} with 2 workers" in server.program.output
    assert httpx.get(f"{server.url}/health").json()["workers"] == 2


def test_variables_of_compose_set_flags(tmp_path: Path) -> None:
    port = free_port()
    environ = {"VECMILL_PORT": f"127.0.0.1:{port}", "VECMILL_MODEL_NAME": "mine", "VECMILL_STREAMS": "1"}
    environ["VECMILL_FRONTEND_TRUNCATE"] = "end"
    command = [str(ROOT / "scripts/serve"), "--metrics-bind", ""]
    program = Program("serve", command, tmp_path / "serve.log", environ)
    try:
        until(lambda: "curl" in program.output, 60, "the server")
        assert re.search(rf"mine at http://127.0.0.1:{port} with 1 worker in b?f(16|32)\n", program.output)
        body = {"model": "mine", "input": "word " * 400}
        assert httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", json=body).json()["truncated_tokens"] > 0
    finally:
        program.close()


def test_variable_of_api_keys_protects_server(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text("key = []\n")
    server = start(VECMILL_FRONTEND_API_KEYS=str(keys))
    assert httpx.get(f"{server.url}/v1/models").status_code == 401


def test_terminal_shows_no_warning_of_sanic(tmp_path: Path) -> None:
    master, slave = os.openpty()
    port = free_port()
    command = [sys.executable, "-m", "frontend", "--broker", f"ipc://{tmp_path}/none", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=slave, stderr=slave) as program:
        try:
            until(lambda: _is_live(port), 30, "the frontend")
        finally:
            program.terminate()
    assert b"PRODUCTION" not in os.read(master, 65536)


def _is_live(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/live").status_code == 200
    except httpx.HTTPError:
        return False


# --- temporary folders -----------------------------------------------------------------------------------------------


def test_next_start_removes_folders_of_killed_server(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "vecmill-of-another").mkdir()
    first = start("--frontends", "2", TMPDIR=str(folder))
    left = {path.name for path in folder.iterdir()} - {"vecmill-of-another"}
    assert len(left) == 2
    second = start(TMPDIR=str(folder))
    assert left < {path.name for path in folder.iterdir()}
    children = first.children()
    first.program.signal(signal.SIGKILL)
    until(lambda: not [pid for pid in children if alive(pid)], what="the end of all processes")
    third = start(TMPDIR=str(folder))
    assert not left & {path.name for path in folder.iterdir()}
    assert is_serving(second)
    for server in (second, third):
        server.program.signal(signal.SIGTERM)
        assert server.program.wait(60) == 0
    assert [path.name for path in folder.iterdir()] == ["vecmill-of-another"]


# --- without an installation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("serve --help", "--tls-cert"),
        ("serve --workers 2 --version", "vecmill "),
        ("setup --help", "Create .venv"),
        ("test --help", "Run the tests"),
        ("test --version", "vecmill "),
        ("mutants --help", "Plant known bugs"),
        ("check --help", "Check format"),
        ("clients --help", "Test the clients"),
        ("keys FOLDER --help", "Create the CURVE keys"),
        ("bench --help", "Compare the server"),
        ("load --help", "Flood and overload"),
        ("fuzz --help", "Send invalid"),
        ("chaos --help", "Kill processes at random"),
        ("api-key name", "vm-"),
    ],
)
def test_command_installs_no_packages(tmp_path: Path, command: str, shown: str) -> None:
    for name in ("scripts", "broker", "frontend", "workers"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    script, *arguments = command.split()
    done = subprocess.run([tmp_path / "scripts" / script, *arguments], capture_output=True, text=True, check=True)
    assert shown in done.stdout
    assert "installing" not in done.stderr
    assert not (tmp_path / ".venv").exists()
