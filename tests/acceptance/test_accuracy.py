"""`scripts/accuracy` from start to end, with a model that costs almost nothing, and with a package in MTEB's place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.processes import ROOT
from tests.harness.servers import Server
from tests.unit.test_accuracy import write_collection
from tests.unit.workers.test_static import TABLE, write_model2vec

PYTHON = (sys.executable, "scripts/accuracy.py")
PAIRS = "5\thello world\tworld hello\n0\thello\tabc.\n2\ta\thello a\n"
#: What `accuracy_mteb.py` calls of MTEB. Its encoder gets batches of texts, as from a loader.
MTEB = """
from types import SimpleNamespace as Object

def get_tasks(names):
    if "None" in names:
        raise KeyError("'None' not found")
    metadata = [Object(name=name, main_score="cosines") for name in names]
    return [Object(metadata=each, kind=each.name) for each in metadata]

def evaluate(model, tasks, **options):
    facts = model.mteb_model_meta
    assert (facts["embed_dim"], facts["similarity_fn_name"], options["cache"]) == (8, "cosine", None)
    results = []
    for task in tasks:
        loader = [{"text": ["hello"]}, {"text": ["hello world"]}]
        kind = Object(value="query") if task.kind == "Search" else None
        first, second = model.encode(loader, task_metadata=task, prompt_type=kind)
        results.append(Object(task_name=task.kind, get_score=lambda: float(first @ second)))
    return Object(task_results=results)
"""
META = """
class ScoringFunction:
    COSINE = "cosine"

class ModelMeta:
    create_empty = dict
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with pairs and a collection."""
    write_collection(tmp_path / "data" / "small")
    (tmp_path / "data" / "stsb-tiny.tsv").write_text(PAIRS)
    return tmp_path / "data"


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the root of the repository."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_table_compares_precisions(tmp_path: Path, data: Path) -> None:
    model = write_model2vec(tmp_path / "tiny", {"embeddings": TABLE})
    output = tmp_path / "table.md"
    flags = ["--data", str(data), "--model", str(model), "--precision", "f32", "int8"]
    flags += ["--cache", str(tmp_path / "cache"), "--output", str(output)]
    done = run(*PYTHON, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(output.read_text())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.read_text().splitlines()]
    assert rows[0] == ["data", "measure", "published", "f32", "int8"]
    assert [row[:2] for row in rows[2:]] == [
        ["stsb-tiny", "Spearman"],
        ["stsb-tiny, search", "nDCG@10"],
        ["stsb-tiny, search", "recall@10"],
        ["small", "nDCG@10"],
        ["small", "recall@10"],
        ["texts above", "cosine to f32, mean"],
        ["texts above", "cosine to f32, least"],
    ]
    # Equal words in another order have equal vectors in a static model.
    assert rows[3][3:] == rows[4][3:] == rows[6][3:] == ["100.00", "100.00"]


def test_running_server_is_measured(tmp_path: Path, data: Path) -> None:
    model = write_model2vec(tmp_path / "tiny", {"embeddings": TABLE})
    server = Server(tmp_path, "--model", str(model), "--model-name", "real", "--cache", str(tmp_path / "cache"))
    package = tmp_path / "packages" / "mteb" / "models"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text(MTEB)
    (package / "__init__.py").touch()
    (package / "model_meta.py").write_text(META)
    (package / "abs_encoder.py").write_text("class AbsEncoder: pass\n")
    mteb = [sys.executable, "scripts/accuracy_mteb.py"]
    request = {"url": server.url, "model": "real", "prompt": ""}
    output = tmp_path / "results.json"
    try:
        done = run(*PYTHON, "--data", str(data), "--url", server.url)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("real\n\n| data | measure | published | ")
        done = run(*PYTHON, "--data", str(data), "--url", server.url, "--model-name", "other")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        path = {"PYTHONPATH": str(package.parent.parent)}
        done = run(*mteb, json.dumps({**request, "tasks": ["Pairs", "Search"]}), str(output), **path)
        assert done.returncode == 0, done.stderr
        done = run(*mteb, json.dumps({**request, "tasks": ["None"]}), str(output), **path)
        assert done.returncode == 1
        assert done.stderr == "scripts/accuracy: 'None' not found\n"
    finally:
        server.program.close()
    (pairs, measure, first), (search, _, second) = json.loads(output.read_text())
    assert (pairs, search, measure) == ("Pairs", "Search", "cosines")
    assert first == second
    assert 0 < abs(first) < 100
