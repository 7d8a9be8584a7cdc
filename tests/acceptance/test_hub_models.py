"""`scripts/serve --model OWNER/NAME` with a hub on this machine."""

import signal
import subprocess
from pathlib import Path

import httpx

from tests.harness.fake_hub import FakeModel, run_fake_hub
from tests.harness.processes import ROOT
from tests.harness.servers import Server
from tests.unit.workers.test_model_folder import write_folder

COMMIT = "c" * 40


def test_model_is_served_under_its_name(tmp_path: Path) -> None:
    with run_fake_hub() as hub:
        hub.models["acme/tiny"] = FakeModel(write_folder(tmp_path / "files"), COMMIT)
        cache = ("--cache", str(tmp_path / "cache"))
        server = Server(tmp_path, "--model", "acme/tiny", *cache, HF_ENDPOINT=hub.url)
    try:
        assert f"fetching acme/tiny at commit {COMMIT}; to keep this commit" in server.program.output
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "acme/tiny", "input": "hello"}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"][0]["embedding"]) == 16
    finally:
        server.program.signal(signal.SIGINT)
        assert server.program.wait(60) == 0, server.program.output


def test_unknown_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with run_fake_hub() as hub:
        hub.models["acme/tiny"] = FakeModel(tmp_path)
        command = ["env", f"HF_ENDPOINT={hub.url}", str(ROOT / "scripts/serve"), "--model", "acme/tinny"]
        done = subprocess.run(
            [*command, "--cache", str(tmp_path), "--port", "9"], capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.endswith("may not read it; did you mean acme/tiny?\n")
    assert "Traceback" not in done.stderr
