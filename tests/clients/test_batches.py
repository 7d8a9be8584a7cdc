"""The whole cycle of a batch with OpenAI's client for Node and with LiteLLM, against the default model."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.golden import GOLDEN, KEY, TEXTS, check_vectors
from tests.clients.test_client_libraries import INSTALLED, OFFLINE, PROGRAMS
from tests.harness.servers import MODEL, Server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a file with a request for each golden text."""
    body = {"model": MODEL, "encoding_format": "float"}
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/embeddings", "body": {**body, "input": text}}
        for number, text in enumerate(TEXTS)
    ]
    (tmp_path / "input.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "input.jsonl"


def run(server: Server, path: Path, *command: str) -> dict[str, Any]:
    """Return what a program prints."""
    request = json.dumps({"url": f"{server.url}/v1", "key": KEY, "path": str(path)})
    done = subprocess.run(
        [*command, request], cwd=INSTALLED, env=os.environ | OFFLINE, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def check_output(text: str) -> None:
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["custom_id"] for row in rows] == [str(number) for number in range(len(TEXTS))]
    check_vectors([row["response"]["body"]["data"][0]["embedding"] for row in rows], GOLDEN)


def test_node_client_runs_the_whole_cycle(server: Server, path: Path) -> None:
    program = (PROGRAMS / "node_batches.mjs").read_text()
    answer = run(server, path, "node", "--input-type=module", "--eval", program, "--")
    assert answer["file"]["bytes"] == path.stat().st_size
    assert answer["file"]["status"] == "processed"
    batch = answer["batch"]
    assert batch["status"] == "completed"
    assert batch["metadata"] == {"team": "search"}
    assert batch["request_counts"] == {"total": len(TEXTS), "completed": len(TEXTS), "failed": 0}
    check_output(answer["output"])
    assert answer["cancelled"]["status"] in ("cancelled", "completed")
    assert answer["batches"][:2] == [answer["second"]["id"], batch["id"]]
    assert answer["file"]["id"] in answer["files"]
    assert answer["deleted"] == {"id": answer["file"]["id"], "object": "file", "deleted": True}
    assert answer["refusal"] == {"status": 404}


def test_litellm_hands_a_batch_through(server: Server, path: Path) -> None:
    python = str(INSTALLED / "venv/bin/python")
    answer = run(server, path, python, str(PROGRAMS / "litellm_batches.py"))
    assert (answer["status"], answer["listed"]) == ("completed", True)
    check_output(answer["output"])
