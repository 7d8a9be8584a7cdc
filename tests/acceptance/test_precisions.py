"""Workers of one model with different precisions: floats serve together, int8 and forbidden mixes do not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.acceptance.test_changing_models import make_folder
from tests.harness.processes import Cluster, until
from workers.engine.device import read_floats


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def list_precisions(cluster: Cluster) -> list[str]:
    """Return the precision of each model that has a worker."""
    return [model["precision"] for model in httpx.get(f"{cluster.url}/v1/models").json()["data"]]


def until_workers(cluster: Cluster, number: int) -> None:
    """Wait until the frontend reports this number of workers, which take a while to load."""
    until(lambda: cluster.health().get("workers") == number, 60, f"{number} workers")


def embed(cluster: Cluster, text: str) -> Any:
    answer = httpx.post(f"{cluster.url}/v1/embeddings", json={"model": "m", "input": text})
    return np.array(answer.json()["data"][0]["embedding"])


def test_floats_serve_together_but_not_int8(cluster: Cluster, tmp_path: Path) -> None:
    model = ("--model", str(make_folder(tmp_path / "m", "bert")), "--cache", str(tmp_path / "cache"))
    cluster.broker()
    cluster.frontend()
    exact = cluster.real_worker(*model, "--precision", "f32")
    until_workers(cluster, 1)
    assert list_precisions(cluster) == ["f32"]
    expected = embed(cluster, "abc")
    default = cluster.real_worker(*model)
    until_workers(cluster, 2)
    (floats,) = read_floats("CPU")
    found = {worker["precisions"]["m"] for worker in cluster.workers()}
    # The probe of a model with random weights may fail.
    assert found in ({"f32"}, {"f32", floats.native})
    assert list_precisions(cluster) == ["+".join(sorted(found))]
    metrics = httpx.get(f"http://{cluster.metrics_bind}/metrics").text
    assert all(f'precision="{name}"' in metrics for name in found)
    rounded = cluster.real_worker(*model, "--precision", "int8")
    alone = cluster.real_worker(*model, "--precision", "f32", "--mix-floats", "false")
    for refused in (rounded, alone):
        until(lambda refused=refused: "other workers serve revision" in refused.output, 60, "a refusal")  # type: ignore[misc]
    alone.close()
    assert {worker["precisions"]["m"] for worker in cluster.workers()} == found
    exact.close()
    until_workers(cluster, 1)
    vector = embed(cluster, "abc")
    assert vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected) > 0.999
    # The worker that was refused serves when the others are gone.
    default.close()
    until(lambda: list_precisions(cluster) == ["int8"], 60, "the worker with int8")
    assert "in int8: " in rounded.output
    vector = embed(cluster, "abc")
    assert vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected) > 0.99


def test_unsupported_precision_ends_the_worker(cluster: Cluster, tmp_path: Path) -> None:
    (floats,) = read_floats("CPU")
    missing = sorted({"bf16", "f16"} - floats.supported)
    model = ("--model", str(make_folder(tmp_path / "m", "bert")), "--cache", str(tmp_path / "cache"))
    cluster.broker()
    for precision in missing:
        worker = cluster.real_worker(*model, "--precision", precision)
        assert worker.wait(60) == 2
        assert f"device CPU does not compute in {precision}; set --precision auto or f32" in worker.output
