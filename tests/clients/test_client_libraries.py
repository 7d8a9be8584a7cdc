"""Client libraries for Python and Node against the default model: golden vectors, and an error that users can read.

Each runs as a program of its own (`programs/`), as in a user's environment.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.golden import GOLDEN, KEY, MAX_TOKENS, TEXTS, TOO_LONG, check_vectors
from tests.harness.processes import ROOT
from tests.harness.servers import MODEL, Server

PROGRAMS = Path(__file__).parent / "programs"
#: Made by scripts/clients.
INSTALLED = ROOT / ".cache/clients"
#: Without these variables, some clients send requests to servers of their makers.
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "HF_HUB_OFFLINE": "1"}

#: Clients in the lock of the development packages, and those in the lock of tests/clients.
LIGHT_PYTHON = ("openai", "langchain", "llamaindex")
HEAVY_PYTHON = ("langchain-nvidia", *(f"litellm-{name}" for name in ("openai", "nvidia_nim", "voyage", "jina_ai")))
HEAVY_PYTHON += ("litellm-infinity",)
NODE = ("openai", "langchain", "ai-sdk-openai", "ai-sdk-openai-compatible")
CLIENTS = [*(("python", name) for name in LIGHT_PYTHON + HEAVY_PYTHON), *(("node", name) for name in NODE)]


def run_client(language: str, name: str, url: str) -> dict[str, Any]:
    """Return what a client returns to its user."""
    request = {"url": url, "key": KEY, "model": MODEL, "text": TEXTS[0], "texts": TEXTS, "too_long": TOO_LONG["text"]}
    if language == "node":
        # Node looks for packages in the working folder if the program is an argument.
        program = (PROGRAMS / "node_clients.mjs").read_text()
        command = ["node", "--input-type=module", "--eval", program, "--"]
    else:
        python = sys.executable if name in LIGHT_PYTHON else str(INSTALLED / "venv/bin/python")
        command = [python, str(PROGRAMS / "python_clients.py")]
    command += [name, json.dumps(request)]
    done = subprocess.run(command, cwd=INSTALLED, env=os.environ | OFFLINE, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(("language", "name"), CLIENTS)
def test_client_returns_golden_vectors_and_error(server: Server, language: str, name: str) -> None:
    answer = run_client(language, name, f"{server.url}/v1")
    check_vectors([answer.pop("single")], GOLDEN[:1])
    refusal = answer.pop("refusal")
    assert refusal["status"] == 400
    assert str(MAX_TOKENS) in refusal["message"]
    if truncated := answer.pop("truncated", None):
        check_vectors(truncated, [TOO_LONG])
    assert "list" in answer
    # `list` has the client's default encoding; `float` and `base64` are there if the client has the choice.
    for vectors in answer.values():
        check_vectors(vectors)


@pytest.mark.parametrize("location", ["kept", "default"])
@pytest.mark.parametrize(("language", "name"), [("python", "openai"), ("node", "openai")])
def test_client_behind_nginx_with_path_prefix(nginx: str, location: str, language: str, name: str) -> None:
    check_vectors(run_client(language, name, f"{nginx}/{location}/v1")["list"])
