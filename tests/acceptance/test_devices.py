"""`scripts/serve --device`: one worker a device, also when one of them cannot serve. Only the CPU is real."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.harness.processes import Program, free_port, until
from tests.harness.servers import MODEL

#: Runs `scripts/serve` with other devices than OpenVINO sees.
CODE = (
    "import sys; sys.path.insert(0, 'scripts'); import supervise; supervise.find_devices = lambda: {}; supervise.main()"
)
Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a server whose OpenVINO seems to see devices."""
    programs = []

    def start_server(devices: list[str], *flags: str) -> Program:
        command = [sys.executable, "-c", CODE.format(devices), "--device", "all", "--metrics-bind", "", *flags]
        programs.append(Program("serve", command, tmp_path / "serve.log"))
        return programs[-1]

    yield start_server
    for program in programs:
        program.close()


def test_other_devices_serve_when_one_fails(start: Start) -> None:
    port = free_port()
    program = start(["CPU", "GPU.1", "NPU"], "--port", str(port))
    until(lambda: "curl" in program.output, 60, "the server")
    assert "no worker on NPU, which computes in float16; for its vectors set --device NPU\n" in program.output
    assert "vecmill worker: device GPU.1 not found; OpenVINO sees CPU\n" in program.output
    assert "worker 2 on GPU.1 cannot serve; the other workers go on\n" in program.output
    assert f"http://127.0.0.1:{port} with only 1 of 2 workers in " in program.output
    body = {"model": MODEL, "input": "a"}
    assert httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", json=body).status_code == 200
    (state,) = httpx.get(f"http://127.0.0.1:{port}/v1/config").json()[MODEL]["model_version_status"]
    assert state["state"] == "AVAILABLE"
    assert "restarting" not in program.output


def test_start_ends_when_all_devices_fail(start: Start) -> None:
    program = start(["GPU.0", "GPU.1"], "--port", str(free_port()))
    assert program.wait(60) == 2
    for device in ("GPU.0", "GPU.1"):
        assert f"vecmill worker: device {device} not found; OpenVINO sees CPU\n" in program.output
    assert "Traceback" not in program.output
