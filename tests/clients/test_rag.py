"""docs/examples/rag as docs/rag.md describes it, on a few pages: all three stores find the same passages."""

import os
import subprocess
import sys
from pathlib import Path

from tests.clients.golden import KEY
from tests.clients.test_client_libraries import INSTALLED, OFFLINE
from tests.harness.processes import ROOT
from tests.harness.servers import Server

FOLDER = ROOT / "docs/examples/rag"
PYTHON = INSTALLED / "venv/bin/python"
PAGES = ("api.md", "docker.md", "export.md", "scaling.md")
TEMPLATE = ("--template", r"{heading}\n{text}", "--id", "id", "--keep", "heading,text", "--truncate", "end")


def run(*command: object, url: str = "") -> str:
    """Return what a command prints."""
    environ = os.environ | OFFLINE | {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": KEY}
    done = subprocess.run(list(map(str, command)), cwd=FOLDER, env=environ, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_stores_find_the_same_answers(server: Server, tmp_path: Path) -> None:
    passages, vectors = tmp_path / "passages.jsonl", tmp_path / "vectors"
    passages.write_text(run(sys.executable, "passages.py", *(ROOT / "docs" / page for page in PAGES)))
    run(ROOT / "scripts/embed", passages, "-o", vectors, *TEMPLATE, "--url", server.url, "--quiet", url=server.url)
    found = run(PYTHON, "lancedb_search.py", vectors, url=server.url)
    assert found.startswith("recall@5: ")
    right, questions = (int(word) for word in found.split() if word.isdigit())
    assert questions >= 15
    assert right / questions > 0.6
    for program in ("langchain_search.py", "llamaindex_search.py"):
        assert run(PYTHON, program, passages, url=server.url) == found
    answer = run(PYTHON, "lancedb_search.py", vectors, "Which data do I lose if I delete the volumes?", url=server.url)
    assert "docker.md#volumes/0\n| volume | content | after a loss |" in answer
