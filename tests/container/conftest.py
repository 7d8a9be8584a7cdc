"""One Compose project under a name of its own, on a port that the engine chooses, gone afterwards with its volumes."""

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


def run(*command: str | Path, text: str | None = None, limit_s: float = 120) -> str:
    """A command's output; AssertionError with what it printed when it fails."""
    # Settings of this machine's user must not change what is tested.
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("VECMILL_", "COMPOSE_"))}
    environ |= {"VECMILL_PORT": "127.0.0.1:0"}
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=limit_s, cwd=ROOT, env=environ, check=False
    )
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


class Stack:
    """A Compose project."""

    def __init__(self, file: Path = ROOT / "compose.yaml") -> None:
        self.project = f"vecmill-test-{secrets.token_hex(4)}"
        self._compose = ("docker", "compose", "-p", self.project, "-f", file, "--project-directory", ROOT)
        self.client: httpx.Client

    def compose(self, *arguments: str, text: str | None = None, limit_s: float = 120) -> str:
        """`docker compose` on this project."""
        return run(*self._compose, "--env-file", "/dev/null", *arguments, text=text, limit_s=limit_s)

    def up(self) -> None:
        """Start, and wait for a completed inference as an operator would see it."""
        self.compose("up", "--detach", limit_s=300)
        address = self.compose("port", "frontend", "8000").strip()
        self.client = httpx.Client(base_url=f"http://{address}", timeout=60)
        self.wait(60, "ready", lambda: self.get("/v2/health/ready") == {"ready": True})

    def get(self, path: str) -> Any:
        """What a GET answers, whatever its status; None while nobody listens."""
        try:
            return self.client.get(path).json()
        except httpx.TransportError:
            return None

    def embed(self, *texts: str) -> list[list[float]]:
        """Vectors of the texts by the only model."""
        model = self.get("/v1/models")["data"][0]["id"]
        answer = self.client.post("/v1/embeddings", json={"model": model, "input": texts})
        assert answer.status_code == 200, answer.text
        return [item["embedding"] for item in answer.json()["data"]]

    def containers(self, *services: str) -> list[str]:
        """Short ids of the running containers."""
        return [name[:12] for name in self.compose("ps", "--quiet", *services).split()]

    def workers(self) -> dict[str, dict[str, Any]]:
        """The workers that the broker knows, by their container."""
        return {worker["name"].split("/")[0]: worker for worker in self.get("/health")["worker_list"]}

    def wait(self, limit_s: float, what: str, is_so: Callable[[], bool]) -> None:
        """Until a condition holds; the test fails after the limit, with the end of the logs."""
        until = time.monotonic() + limit_s
        while not is_so():
            if time.monotonic() > until:
                logs = self.compose("ps", "--all") + self.compose("logs", "--tail", "20")
                pytest.fail(f"not {what} after {limit_s} s\n{logs}")
            time.sleep(0.1)

    def remove(self) -> None:
        """Everything of it, volumes too."""
        if hasattr(self, "client"):
            self.client.close()
        self.compose("down", "--volumes", "--timeout", "5")


@pytest.fixture(scope="session")
def image() -> str:
    """The image, built as it stands in the tree."""
    run("docker", "compose", "build", limit_s=1500)
    return "vecmill"


@pytest.fixture(scope="module")
def stack(image: str) -> Iterator[Stack]:
    """The project of compose.yaml, ready."""
    stack = Stack()
    try:
        stack.up()
        yield stack
    finally:
        stack.remove()
