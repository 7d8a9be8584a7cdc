"""The container image and the Compose project. Needs a Docker engine; the tests run in order."""

import json
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from frontend.rest.api_keys import Keys
from tests.harness.data import read_golden

from .conftest import ROOT, Stack, run_command

pytestmark = pytest.mark.timeout(1800)

ROLES = ("broker", "worker", "frontend")

#: Prints how handshakes at the broker's two sockets end without a key, with an unknown key, and with the worker's key.
HANDSHAKES = """
import zmq, zmq.auth
from zmq.utils.monitor import recv_monitor_message
context = zmq.Context()
server, _ = zmq.auth.load_certificate("/keys/worker/broker.key")
own = zmq.auth.load_certificate("/keys/worker/worker.key_secret")
keys = {"none": None, "stranger": zmq.curve_keypair(), "worker": own}
ends = {getattr(zmq, name): name for name in dir(zmq) if name.startswith("EVENT_HANDSHAKE_")}
for port in 7410, 7411:
    for name, pair in keys.items():
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        if pair:
            socket.curve_publickey, socket.curve_secretkey = pair
            socket.curve_serverkey = server
        monitor = socket.get_monitor_socket(sum(ends))
        socket.connect(f"tcp://broker:{port}")
        socket.send(b"let me in")
        assert monitor.poll(10_000), "no handshake in 10 s"
        event = recv_monitor_message(monitor)["event"]
        print(port, name, ends[event].removeprefix("EVENT_HANDSHAKE_"), "answered" if socket.poll(300) else "silent")
"""


class Load:
    """Clients that embed without pause until they are stopped, and count the answers."""

    CLIENTS = 24

    def __init__(self, client: httpx.Client) -> None:
        self.answers: Counter[str] = Counter()
        self._model = client.get("/v1/models").json()["data"][0]["id"]
        self._url = client.base_url
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send_requests, args=(number,)) for number in range(self.CLIENTS)]

    def _send_requests(self, client_number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            number = 0
            while not self._stopping.is_set():
                number += 1
                texts = [
                    f"client {client_number} asks for the {number}th time " + "and again " * size for size in (1, 40)
                ]
                try:
                    answer = client.post("/v1/embeddings", json={"model": self._model, "input": texts})
                    whole = answer.status_code == 200 and len(answer.json()["data"]) == len(texts)
                    outcome = "200" if whole else f"{answer.status_code} {answer.text[:300]}"
                except httpx.HTTPError as error:
                    outcome = repr(error)
                self.answers[outcome] += 1

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """Run the clients inside the block. After it, every request has been answered."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()


def test_image_is_small_and_has_no_tools(image: str) -> None:
    facts = json.loads(run_command("docker", "image", "inspect", image))[0]
    assert facts["Size"] < 800e6
    assert facts["Config"]["User"] not in ("", "0", "root")
    script = (
        "import importlib.util as u, shutil; print(u.find_spec('torch'), shutil.which('gcc'), shutil.which('make'))"
    )
    assert run_command("docker", "run", "--rm", image, "python", "-c", script).split() == ["None"] * 3


def test_frontend_and_runner_share_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"VECMILL_FRONTEND_MAX_INPUTS": "9", "VECMILL_FRONTEND_FILE_STORE": "s3://a/b", "AWS_REGION": "r"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    services = json.loads(run_command("docker", "compose", "config", "--format", "json"))["services"]
    frontend, batches = services["frontend"]["environment"], services["batches"]["environment"]
    assert batches.items() <= frontend.items()
    assert given.items() <= batches.items()


@pytest.mark.parametrize("device", ["gpu", "npu"])
def test_overlay_gives_the_worker_the_device(device: str) -> None:
    text = run_command(
        "docker", "compose", "-f", "compose.yaml", "-f", f"compose.{device}.yaml", "config", "--format", "json"
    )
    worker = json.loads(text)["services"]["worker"]
    assert worker["environment"]["VECMILL_WORKER_DEVICE"] == device.upper()
    assert worker["devices"][0]["source"] == {"gpu": "/dev/dri", "npu": "/dev/accel"}[device]
    assert worker["group_add"]
    assert worker["build"]["target"] == "intel"


def test_vectors_are_the_golden_ones(stack: Stack) -> None:
    rows = [row for row in read_golden() if row["untruncated_tokens"] <= 256]
    assert rows
    vectors = np.array(stack.embed_texts(*(row["text"] for row in rows)), np.float32)
    golden = np.array([row["vector"] for row in rows])
    assert np.abs(vectors - golden).max() <= 1e-4


def test_batch_is_run(stack: Stack) -> None:
    body = {"model": "sentence-transformers/all-MiniLM-L6-v2", "input": "one line"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}
    files = {"file": ("input.jsonl", json.dumps(line))}
    file = stack.client.post("/v1/files", data={"purpose": "batch"}, files=files).json()
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = stack.client.post("/v1/batches", json=wanted).json()
    stack.wait_until(30, "the batch", lambda: stack.get_json(f"/v1/batches/{batch['id']}")["status"] == "completed")
    output = stack.get_json(f"/v1/batches/{batch['id']}")["output_file_id"]
    row = json.loads(stack.client.get(f"/v1/files/{output}/content").content)
    vector = row["response"]["body"]["data"][0]["embedding"]
    assert np.allclose(vector, stack.embed_texts("one line"), atol=1e-6)


def test_log_says_ready_with_url_and_curl(stack: Stack) -> None:
    log = stack.compose("logs", "frontend")
    assert re.search(r" ready: sentence-transformers/all-MiniLM-L6-v2 at http://127.0.0.1:0; .* try: curl ", log)
    stack.compose("up", "--detach")
    assert "kept 3 keys" in stack.compose("logs", "keys")


def test_image_makes_api_keys(stack: Stack, tmp_path: Path) -> None:
    command = ("run", "--rm", "--no-deps", "-T", "-u", str(os.getuid()), "-v", f"{tmp_path}:/new", "frontend")
    key = stack.compose(*command, "python", "-m", "frontend.new_key", "team", "--file", "/new/keys.toml").strip()
    assert Keys(str(tmp_path / "keys.toml"), "").find_key(f"Bearer {key}")


def test_health_checks_pass(stack: Stack) -> None:
    for role in (*ROLES, "batches"):
        (container,) = stack.list_containers(role)

        def is_healthy(container: str = container) -> bool:
            return (
                run_command("docker", "inspect", "--format", "{{.State.Health.Status}}", container).strip() == "healthy"
            )

        stack.wait_until(30, f"{role} healthy", is_healthy)


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"])
def test_image_has_the_api_description(stack: Stack, path: str) -> None:
    assert stack.client.get(path).status_code == 200


@pytest.mark.parametrize("role", ROLES)
def test_role_has_no_rights_and_one_secret(stack: Stack, role: str) -> None:
    assert stack.compose("exec", "-T", role, "id", "-u").strip() == "10001"
    found = stack.compose("exec", "-T", role, "find", "/keys", "-name", "*.key_secret").split()
    assert found == [f"/keys/{role}/{role}.key_secret"]
    status = stack.compose("exec", "-T", role, "cat", "/proc/self/status")
    assert re.search(r"^CapBnd:\s*0+$", status, re.MULTILINE)


def test_broker_accepts_only_the_workers_key(stack: Stack) -> None:
    printed = stack.compose("run", "--rm", "--no-deps", "-T", "worker", "python", "-", text=HANDSHAKES)
    outcomes = {tuple(line.split()[:2]): line.split()[2:] for line in printed.splitlines()}
    assert len(outcomes) == 6
    for (port, key), (end, answer) in outcomes.items():
        if (port, key) == ("7411", "worker"):
            assert end == "SUCCEEDED"
        else:
            assert end.startswith("FAILED")
            assert answer == "silent"


def test_cached_model_needs_no_network(stack: Stack, image: str) -> None:
    mount = f"type=volume,source={stack.project}_cache,target=/cache"
    prepare = ("python", "-m", "workers.models.default", "--cache", "/cache")
    run_command("docker", "run", "--rm", "--network", "none", "--mount", mount, image, *prepare, limit_s=30)


def test_requests_are_answered_while_workers_start_and_crash(stack: Stack) -> None:
    with Load(stack.client).running() as load:

        def is_working(containers: list[str]) -> bool:
            """Return whether exactly these workers are connected, and each has answered jobs."""
            workers = stack.list_workers()
            return sorted(workers) == sorted(containers) and all(worker["answered_jobs"] for worker in workers.values())

        first = set(stack.list_containers())
        stack.compose("up", "--detach", "--scale", "worker=3")
        assert first < set(stack.list_containers()), "what ran should go on running"
        three = stack.list_containers("worker")
        assert len(three) == 3
        stack.wait_until(60, "three workers at work", lambda: is_working(three))

        # A process crashes: the restart policy starts its container again, and the worker gets work again.
        crash = (
            "import os, pathlib; [os.kill(int(p.parent.name), 9) for p in pathlib.Path('/proc').glob('[0-9]*/cmdline')"
        )
        crash += " if b'python\\0-m\\0workers' in p.read_bytes() and int(p.parent.name) > 1]"
        before = stack.get_json("/health")["counters"]["workers_joined"]
        run_command("docker", "exec", three[0], "python", "-c", crash)
        stack.wait_until(60, "a new worker", lambda: stack.get_json("/health")["counters"]["workers_joined"] > before)
        stack.wait_until(60, "three workers at work again", lambda: is_working(three))

        # A killed container is not restarted; the others do its work.
        run_command("docker", "kill", three[1])
        two = [three[0], three[2]]
        stack.wait_until(10, "two workers", lambda: sorted(stack.list_workers()) == sorted(two))
        seen = sum(load.answers.values())
        stack.wait_until(60, "work after the kill", lambda: sum(load.answers.values()) > seen + 10 * Load.CLIENTS)
        assert stack.get_json("/health")["counters"]["jobs_requeued"], "nobody was killed at work"
    assert set(load.answers) == {"200"}, load.answers


def test_own_model_needs_one_volume_line(stack: Stack, image: str, tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    container = stack.list_containers("worker")[0]
    run_command("docker", "cp", f"{container}:/cache/default/all-MiniLM-L6-v2", folder)
    for path in (tmp_path, folder, *folder.rglob("*")):
        path.chmod(0o755)
    commented = "# - ./my-model:/model:ro"
    text = (ROOT / "compose.yaml").read_text()
    assert text.count(commented) == 1
    file = tmp_path / "compose.yaml"
    file.write_text(text.replace(commented, f"- {folder}:/model:ro"))
    own = Stack(file)
    try:
        own.start()
        assert [model["id"] for model in own.get_json("/v1/models")["data"]] == ["model"]
        assert np.allclose(own.embed_texts("one line"), stack.embed_texts("one line"), atol=1e-6)
        assert "fetching" not in own.compose("logs", "model")
    finally:
        own.remove()
        shutil.rmtree(folder)


def test_services_drain_within_the_grace_period(stack: Stack) -> None:
    containers = stack.list_containers("broker", "worker", "frontend", "batches")
    started = time.monotonic()
    stack.compose("stop")
    assert time.monotonic() - started < 70
    states = run_command("docker", "inspect", "--format", "{{.State.ExitCode}}", *containers).split()
    assert states == ["0"] * len(containers)
    stack.compose("down")
    label = f"label=com.docker.compose.project={stack.project}"
    assert not run_command("docker", "ps", "--all", "--quiet", "--filter", label)
    assert not run_command("docker", "network", "ls", "--quiet", "--filter", label)
