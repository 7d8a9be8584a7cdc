"""Models that are added, replaced, removed, unloaded and reloaded while clients send requests. Real processes."""

import json
import random
import shutil
import signal
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.acceptance.test_model_states import read_states
from tests.harness.fake_worker import vector
from tests.harness.families import FAMILIES
from tests.harness.processes import Cluster, until
from tests.unit.workers.test_model_folder import make_tokenizer, write_json

#: Seconds between two looks of the workers at their configuration.
POLL = ("--config-poll-s", "0.1")


class Load:
    """Clients that send requests until `stop`, and check that no request fails or mixes two revisions."""

    def __init__(self, cluster: Cluster, revisions: list[str]) -> None:
        self._url = f"{cluster.url}/v1/embeddings"
        self._revisions = revisions
        self._ended = threading.Event()
        #: Number of answers by revision.
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        self._threads = [threading.Thread(target=self._send_requests, args=(number,)) for number in range(4)]
        for thread in self._threads:
            thread.start()

    def _send_requests(self, number: int) -> None:
        draw = random.Random(number)
        with httpx.Client(timeout=60) as client:
            while not self._ended.is_set():
                texts = [f"text {draw.random()}" for _ in range(draw.choice([1, 3, 40]))]
                self._check_answer(client.post(self._url, json={"model": "fake", "input": texts}), texts)

    def _check_answer(self, answer: httpx.Response, texts: list[str]) -> None:
        if answer.status_code != 200:
            self.faults.append(answer.text)
            return
        rows = [item["embedding"] for item in answer.json()["data"]]
        for revision in self._revisions:
            if rows == [vector(text, revision=revision).tolist() for text in texts]:
                self.answers[revision] += 1
                return
        self.faults.append(f"the rows of {len(texts)} texts are of no single revision")

    def wait_for(self, revision: str) -> None:
        """Wait for ten more answers of a revision."""
        wanted = self.answers[revision] + 10
        until(lambda: self.faults or self.answers[revision] >= wanted, what=f"answers of {revision}")

    def stop(self) -> None:
        """End the clients. Raise AssertionError if there was a fault."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        assert self.faults == []


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Return the file with the models of the fake workers."""
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"fake": "one"}))
    return path


@pytest.fixture
def served(cluster: Cluster, models: Path) -> Cluster:
    """Return a cluster with two workers that read `models`."""
    cluster.broker()
    for _ in range(2):
        cluster.worker(*POLL, models=str(models), us_per_token=50)
    cluster.frontend()
    cluster.until_workers(2)
    return cluster


def write_models(path: Path, **models: str) -> None:
    path.write_text(json.dumps(models))


def embed(cluster: Cluster, model: str = "fake") -> httpx.Response:
    return httpx.post(f"{cluster.url}/v1/embeddings", json={"model": model, "input": "a"}, timeout=30)


def test_models_change_without_failed_requests(served: Cluster, models: Path) -> None:
    load = Load(served, ["one", "two", "three"])
    load.wait_for("one")
    write_models(models, fake="two 0.3", other="one")
    load.wait_for("two")
    until(lambda: embed(served, "other").status_code == 200, what="the added model")
    write_models(models, fake="two 0.3")
    until(lambda: embed(served, "other").status_code == 404, what="the end of the removed model")
    write_models(models, fake="three! 0.3")
    until(lambda: "damaged" in read_states(served)["fake"][2], what="the damaged model")
    assert read_states(served)["fake"] == ("AVAILABLE", "OK", "the model fake is damaged")
    write_models(models, fake="three 0.3")
    load.wait_for("three")
    load.stop()
    assert read_states(served)["fake"] == ("AVAILABLE", "OK", "OK")
    assert served.health()["models"]["fake"] == {"workers": 2, "revision": "three"}  # type: ignore[index]


def test_worker_dies_while_models_change(served: Cluster, models: Path) -> None:
    """The restarted worker reads the new configuration, and the other one loads it at its own time."""
    load = Load(served, ["one", "two"])
    load.wait_for("one")
    for turn in range(3):
        write_models(models, fake=f"{('two', 'one')[turn % 2]} {0.2 + 0.2 * turn}")
        victim = [program for program in served.programs if "fake_worker" in program.name][-1]
        victim.signal(signal.SIGKILL)
        served.worker(*POLL, models=str(models), us_per_token=50)
        load.wait_for(("two", "one")[turn % 2])
        served.until_workers(2)
    load.stop()


def test_reload_reports_change_and_damage(served: Cluster, models: Path) -> None:
    def reload() -> httpx.Response:
        return httpx.post(f"{served.url}/v1/config/reload", timeout=60)

    assert reload().status_code == 200
    models.write_text("{")
    answer = reload()
    assert answer.status_code == 500
    assert answer.json()["error"]["message"].startswith("Reloading config file failed. ")
    assert "is not valid JSON" in answer.json()["error"]["message"]
    assert embed(served).status_code == 200
    write_models(models, fake="two! 0", other="one")
    assert "the model fake is damaged" in reload().json()["error"]["message"]
    assert [embed(served, name).status_code for name in ("fake", "other")] == [200, 200]
    write_models(models, fake="two 0.3")
    assert reload().status_code in (200, 201)
    assert embed(served).json()["data"][0]["embedding"] == vector("a", revision="two").tolist()


def test_idle_model_is_unloaded_and_loaded_on_demand(cluster: Cluster, models: Path) -> None:
    cluster.broker()
    write_models(models, fake="one 0.3")
    worker = cluster.worker(*POLL, "--unload-idle-s", "0.5", models=str(models))
    cluster.frontend()
    cluster.until_workers(1)

    def is_loaded() -> bool:
        lines = httpx.get(f"http://{cluster.metrics_bind}/metrics").text.splitlines()
        (line,) = [line for line in lines if line.startswith("vecmill_worker_model_loaded{")]
        return bool(float(line.rpartition(" ")[2]))

    for turn in (1, 2):
        until(lambda: worker.output.count("freed fake") == turn, what="the release")  # noqa: B023
        until(lambda: not is_loaded(), what="the metric")
        assert read_states(cluster)["fake"] == ("AVAILABLE", "OK", "OK")
        assert embed(cluster).json()["data"][0]["embedding"] == vector("a", revision="one").tolist()
        assert worker.output.count("serving fake revision one") == turn


def write_config(path: Path, **folders: Path) -> None:
    """Write OVMS's configuration of models by name and folder."""
    models = [{"config": {"name": name, "base_path": str(folder)}} for name, folder in folders.items()]
    path.write_text(json.dumps({"model_config_list": models}))


def make_folder(folder: Path, family: str) -> Path:
    """Return a folder with a small model and a tokenizer of words of one letter."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FAMILIES / family / name, folder / name)
    write_json(folder / "tokenizer.json", make_tokenizer([*"abcdefghijklmnopqrstuvwxyz"]))
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": at, "type": f"sentence_transformers.models.{name}"} for at, name in kinds.items()]
    write_json(folder / "modules.json", modules)
    return folder


def test_real_worker_follows_its_configuration(cluster: Cluster, tmp_path: Path) -> None:
    config, damaged = tmp_path / "config.json", tmp_path / "damaged"
    bert, other = make_folder(tmp_path / "bert", "bert"), make_folder(tmp_path / "other", "bert-relu")
    shutil.copytree(bert, damaged)
    (damaged / "model.safetensors").write_bytes(b"damaged")
    write_config(config, damaged=damaged, one=bert, two=other)
    cluster.broker()
    flags = ("--config-path", str(config), "--aliases", "ada=two", *POLL)
    cluster.real_worker(*flags, "--cache", str(tmp_path / "cache"))
    cluster.frontend()
    until(cluster.health, what="the frontend")
    until(lambda: embed(cluster, "ada").status_code == 200, 60, "both models")
    first = {name: embed(cluster, name).json()["data"][0]["embedding"] for name in ("one", "two")}
    assert first["one"] != first["two"]
    states = read_states(cluster)
    assert states["damaged"][:2] == ("LOADING", "FAILED_PRECONDITION")
    assert "model.safetensors is damaged" in states["damaged"][2]
    # `one` gets the weights of `two`, and `two` is removed.
    write_config(config, one=other)
    assert httpx.post(f"{cluster.url}/v1/config/reload", timeout=60).status_code in (200, 201)
    until(lambda: embed(cluster, "one").json()["data"][0]["embedding"] == first["two"], 60, "the replacement")
    assert [embed(cluster, name).status_code for name in ("two", "ada", "damaged")] == [404, 404, 404]
    assert httpx.post(f"{cluster.url}/v1/config/reload", timeout=60).status_code == 200
    write_config(config, one=tmp_path / "nowhere")
    answer = httpx.post(f"{cluster.url}/v1/config/reload", timeout=60)
    assert answer.status_code == 500
    assert "nowhere" in answer.json()["error"]["message"]
    assert embed(cluster, "one").status_code == 200


def test_aliases_and_names_with_prompts_are_served(cluster: Cluster) -> None:
    cluster.broker()
    cluster.worker(aliases="text-embedding-3-small,ada")
    cluster.frontend()
    cluster.until_workers(1)
    for name, text in {"ada": "a", "fake:query": "query: a", "ada:passage": "passage: a"}.items():
        answer = embed(cluster, name).json()
        assert answer["model"] == name
        assert answer["data"][0]["embedding"] == vector(text).tolist()
        assert httpx.get(f"{cluster.url}/v1/models/{name}").json()["id"] == name
        assert httpx.get(f"{cluster.url}/v2/models/{name}/ready").status_code == 200
    listed = httpx.get(f"{cluster.url}/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["fake", "ada", "text-embedding-3-small"]
    assert embed(cluster, "fake:other").status_code == 404
