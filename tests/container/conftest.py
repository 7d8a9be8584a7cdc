"""A Compose project with a random name and port, which is removed with its volumes after the tests."""

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def run_command(*command: str | Path, text: str | None = None, limit_s: float = 120) -> str:
    """Return a command's output. Raise `AssertionError` with the output if the command fails."""
    # Settings of this machine's user must not change the test.
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("VECMILL_", "COMPOSE_"))}
    # Golden vectors are those in float32.
    environ |= {"VECMILL_PORT": "127.0.0.1:0", "VECMILL_PRECISION": "f32"}
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=limit_s, cwd=ROOT, env=environ, check=False
    )
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


class Stack:
    """One Compose project."""

    def __init__(self, file: Path = ROOT / "compose.yaml") -> None:
        self.project = f"vecmill-test-{secrets.token_hex(4)}"
        self._compose = ("docker", "compose", "-p", self.project, "-f", file, "--project-directory", ROOT)
        self.client: httpx.Client

    def compose(self, *arguments: str, text: str | None = None, limit_s: float = 120) -> str:
        """Run `docker compose` on this project, and return its output."""
        return run_command(*self._compose, "--env-file", "/dev/null", *arguments, text=text, limit_s=limit_s)

    def start(self) -> None:
        """Start the project, and wait until its frontend reports that it is ready."""
        self.compose("up", "--detach", limit_s=300)
        address = self.compose("port", "frontend", "8000").strip()
        self.client = httpx.Client(base_url=f"http://{address}", timeout=60)
        self.wait_until(60, "ready", lambda: self.get_json("/v2/health/ready") == {"ready": True})

    def get_json(self, path: str) -> Any:
        """Return the JSON of a GET with any status, or None if the connection fails."""
        try:
            return self.client.get(path).json()
        except httpx.TransportError:
            return None

    def embed_texts(self, *texts: str) -> list[list[float]]:
        """Return the vectors of texts from the only model."""
        model = self.get_json("/v1/models")["data"][0]["id"]
        answer = self.client.post("/v1/embeddings", json={"model": model, "input": texts})
        assert answer.status_code == 200, answer.text
        return [item["embedding"] for item in answer.json()["data"]]

    def list_containers(self, *services: str) -> list[str]:
        """Return the short ids of the running containers."""
        return [name[:12] for name in self.compose("ps", "--quiet", *services).split()]

    def list_workers(self) -> dict[str, dict[str, Any]]:
        """Return the workers in `/health` by the short id of their container."""
        return {worker["name"].split("/")[0]: worker for worker in self.get_json("/health")["worker_list"]}

    def wait_until(self, limit_s: float, what: str, is_so: Callable[[], bool]) -> None:
        """Wait until a condition holds. Fail the test after the limit, and print the end of the logs."""
        until = time.monotonic() + limit_s
        while not is_so():
            if time.monotonic() > until:
                logs = self.compose("ps", "--all") + self.compose("logs", "--tail", "20")
                pytest.fail(f"not {what} after {limit_s} s\n{logs}")
            time.sleep(0.1)

    def remove(self) -> None:
        """Remove the project with its volumes."""
        if hasattr(self, "client"):
            self.client.close()
        self.compose("down", "--volumes", "--timeout", "5")


@pytest.fixture(scope="session")
def image() -> str:
    """Build the image from the checkout, and return its name."""
    run_command("docker", "compose", "build", limit_s=1500)
    return "vecmill"


@pytest.fixture(scope="module")
def stack(image: str) -> Iterator[Stack]:
    """Start the project of compose.yaml."""
    stack = Stack()
    try:
        stack.start()
        yield stack
    finally:
        stack.remove()
