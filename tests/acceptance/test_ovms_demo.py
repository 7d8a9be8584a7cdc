"""OVMS's demo of embeddings, step by step with its own commands: the version of 2024-10, and today's.

A small random model of the same architecture stands for Alibaba-NLP/gte-large-en-v1.5. The seed's two export commands,
convert_tokenizer and optimum-cli, need torch; scripts/export_model writes the same files.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.harness.families import FAMILIES
from tests.harness.ovms_folders import CONFIG_SEED, GRAPH_SEED, SUBCONFIG_SEED, write_files
from tests.harness.processes import ROOT, Program, free_port, until
from tests.unit.workers.test_model_folder import make_tokenizer, write_json

NAME = "Alibaba-NLP/gte-large-en-v1.5"
WORDS = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), "hello", "world"]
#: The demo's client, with the port as argument.
CLIENT = """
import sys
from openai import OpenAI
import numpy as np

client = OpenAI(
  base_url=f"http://localhost:{sys.argv[1]}/v3",
  api_key="unused"
)
model = "Alibaba-NLP/gte-large-en-v1.5"
embedding_responses = client.embeddings.create(
    input=[
        "That is a happy person",
        "That is a happy very person"
    ],
    model=model,
)
embedding_from_string1 = np.array(embedding_responses.data[0].embedding)
embedding_from_string2 = np.array(embedding_responses.data[1].embedding)
cos_sim = np.dot(embedding_from_string1, embedding_from_string2)/(np.linalg.norm(embedding_from_string1)*np.linalg.norm(embedding_from_string2))
print("Similarity score as cos_sim", cos_sim)
"""  # noqa: E501  as in the demo

Serve = Callable[..., str]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `models`, which scripts/export_model has filled, and the model that was exported."""
    root = tmp_path_factory.mktemp("demo")
    source = root / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FAMILIES / "new" / name, source / name)
    write_json(source / "tokenizer.json", make_tokenizer(WORDS))
    write_json(source / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": at, "type": f"sentence_transformers.models.{name}"} for at, name in kinds.items()]
    write_json(source / "modules.json", modules)
    (root / "models").mkdir()
    command = [sys.executable, str(ROOT / "scripts/export_model.py"), "embeddings_ov", "--source_model", str(source)]
    command += ["--model_name", NAME, "--weight-format", "int8", "--target_device", "CPU"]
    command += ["--config_file_path", "models/config.json", "--model_repository_path", "models"]
    subprocess.run(command, cwd=root, check=True)
    return root


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that runs scripts/serve with flags of OVMS, and returns its URL."""
    programs: list[Program] = []

    def start(*flags: str) -> str:
        port = str(free_port())
        command = [str(ROOT / "scripts/serve"), "--rest_port", port, "--metrics-bind", "", "--cache", str(tmp_path)]
        programs.append(Program("serve", [*command, *flags], tmp_path / "serve.log"))
        program = programs[-1]
        until(lambda: "ready after" in program.output or program.process.poll() is not None, 120, "scripts/serve")
        assert program.process.poll() is None, program.output
        return f"http://localhost:{port}"

    yield start
    for program in programs:
        program.close()


def embed(url: str) -> Any:
    """Return the vector of the demo's curl command."""
    body = json.dumps({"model": NAME, "input": "hello world"})
    command = ["curl", "-s", f"{url}/v3/embeddings", "-H", "Content-Type: application/json", "-d", body]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    (item,) = answer["data"]
    assert (answer["object"], item["object"], item["index"]) == ("list", "embedding", 0)
    return np.array(item["embedding"])


def check_client(url: str) -> None:
    """Run the demo's Python client."""
    command = [sys.executable, "-c", CLIENT, url.rpartition(":")[2]]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.startswith("Similarity score as cos_sim ")
    assert 0 < float(output.split()[-1]) <= 1


def list_states(url: str) -> dict[str, str]:
    config = httpx.get(f"{url}/v1/config").json()
    return {name: model["model_version_status"][0]["state"] for name, model in config.items()}


def test_demo_of_2024_10_works_line_by_line(exported: Path, tmp_path: Path, serve: Serve) -> None:
    model, root = exported / "models" / NAME, tmp_path / "demo"
    mediapipe = [{"name": NAME, "base_path": "models"}]
    files = {
        "config.json": CONFIG_SEED | {"mediapipe_config_list": mediapipe},
        "models/graph.pbtxt": GRAPH_SEED,
        "models/subconfig.json": json.loads(json.dumps(SUBCONFIG_SEED).replace("tiny-gte", "gte-large-en-v1.5")),
    }
    write_files(root, files)
    # convert_tokenizer -o models/gte-large-en-v1.5-tokenizer/1, and optimum-cli export openvino
    # models/gte-large-en-v1.5-embeddings/1, from which the demo removes all JSON files.
    for kind, stem in (("embeddings", "openvino_model"), ("tokenizer", "openvino_tokenizer")):
        folder = root / "models" / f"gte-large-en-v1.5-{kind}" / "1"
        folder.mkdir(parents=True)
        for suffix in (".xml", ".bin"):
            shutil.copy(model / f"{stem}{suffix}", folder)
    url = serve("--port", "9000", "--config_path", str(root / "config.json"))
    assert list_states(url) == dict.fromkeys([NAME, "embeddings_model", "tokenizer"], "AVAILABLE")
    vector = embed(url)
    assert len(vector) == 64
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    check_client(url)


def test_demo_of_today_works_line_by_line(exported: Path, serve: Serve) -> None:
    url = serve("--config_path", str(exported / "models" / "config.json"))
    answer = httpx.get(f"{url}/v3/models/{NAME.replace('/', '%2F')}").json()
    assert (answer["id"], answer["object"]) == (NAME, "model")
    assert list_states(url) == {NAME: "AVAILABLE"}
    assert np.linalg.norm(embed(url)) == pytest.approx(1, abs=1e-5)
    check_client(url)


def test_exported_model_has_the_vectors_of_its_source(exported: Path, serve: Serve) -> None:
    vectors = []
    for flags in (("--config_path", "models/config.json"), ("--model_path", "source", "--model_name", NAME)):
        url = serve(flags[0], str(exported / flags[1]), *flags[2:])
        vectors.append(embed(url))
    similarity = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    assert similarity > 0.995


def test_unusable_models_do_not_affect_the_others(exported: Path, tmp_path: Path, serve: Serve) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(exported / "models" / NAME, repository / "good")
    for name in ("truncated", "escaping", "unknown"):
        shutil.copytree(repository / "good", repository / name)
    weights = repository / "truncated" / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    graph = repository / "escaping" / "graph.pbtxt"
    graph.write_text(graph.read_text().replace('"./"', '"../../../.."'))
    graph = repository / "unknown" / "graph.pbtxt"
    graph.write_text(graph.read_text().replace("EmbeddingsCalculatorOV", "HttpLLMCalculator"))
    names = ("truncated", "escaping", "unknown", "good", "missing")
    write_files(repository, {"config.json": {"model_config_list": [{"config": {"name": name}} for name in names]}})
    url = serve("--config_path", str(repository / "config.json"))
    until(lambda: len(list_states(url)) == 5, 30, "the states of all models")
    config = httpx.get(f"{url}/v1/config").json()
    found = {name: model["model_version_status"][0]["status"] for name, model in config.items()}
    assert found.pop("good")["error_code"] == "OK"
    assert {status["error_code"] for status in found.values()} == {"FAILED_PRECONDITION"}
    reasons = {name: status["error_message"] for name, status in found.items()}
    assert "OpenVINO could not read" in reasons["truncated"]
    assert "which leads out of" in reasons["escaping"]
    assert "has HttpLLMCalculator, but Vecmill serves only embeddings" in reasons["unknown"]
    assert "there is no such folder" in reasons["missing"]
    body = {"model": "good", "input": "hello world"}
    assert httpx.post(f"{url}/v1/embeddings", json=body).status_code == 200
