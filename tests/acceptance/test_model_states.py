"""States of models in /v1/config and in KServe's readiness. Real processes."""

import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.harness.processes import Cluster, until


def read_states(cluster: Cluster) -> dict[str, tuple[str, str, str]]:
    """Return the state, error code and message of each model."""
    models = httpx.get(f"{cluster.url}/v1/config").json()
    found = {}
    for name, model in models.items():
        (version,) = model["model_version_status"]
        assert list(version) == ["version", "state", "status"]
        assert version["version"] == "1"
        found[name] = (version["state"], version["status"]["error_code"], version["status"]["error_message"])
    return found


@pytest.fixture
def empty(cluster: Cluster) -> Cluster:
    """Return a cluster without workers."""
    cluster.broker()
    cluster.frontend("--broker-grace-s", "0.2")
    until(cluster.health, what="the frontend")
    return cluster


def test_failed_model_has_reason(empty: Cluster, tmp_path: Path) -> None:
    assert read_states(empty) == {}
    program = empty.real_worker("--model", str(tmp_path / "none"), "--model-name", "broken")
    assert program.wait(60) == 2
    until(lambda: "broken" in read_states(empty), what="the failure")
    state, code, text = read_states(empty)["broken"]
    assert (state, code) == ("LOADING", "FAILED_PRECONDITION")
    assert text.startswith(f"the model folder {tmp_path / 'none'} does not exist")
    answer = httpx.post(f"{empty.url}/v1/embeddings", json={"model": "broken", "input": "a"})
    assert answer.status_code == 503
    reason = f"the model folder {tmp_path / 'none'} does not exist"
    assert f"the model 'broken' could not be loaded by any worker: {reason}" in answer.json()["error"]["message"]
    assert httpx.get(f"{empty.url}/v2/models/broken/ready").status_code == 503
    assert httpx.get(f"{empty.url}/v2/models/other/ready").status_code == 404


def test_loading_model_is_listed_until_process_ends(empty: Cluster, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        program = empty.real_worker("--cache", str(tmp_path / "cache"), environ=index)
        name = "sentence-transformers/all-MiniLM-L6-v2"
        until(lambda: read_states(empty) == {name: ("LOADING", "OK", "OK")}, 30, "the loading model")
        answer = httpx.post(f"{empty.url}/v1/embeddings", json={"model": name, "input": "a"})
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == f"the model {name!r} is still being loaded"
        assert int(answer.headers["retry-after"]) > 0
        assert httpx.get(f"{empty.url}/v1/models").json()["data"] == []
        program.signal(signal.SIGTERM)
        assert program.wait(10) != 0
    until(lambda: read_states(empty) == {}, what="the end of the worker")


def test_draining_model_is_unloading_then_ended(empty: Cluster) -> None:
    program = empty.worker()
    empty.until_workers(1)
    assert read_states(empty) == {"fake": ("AVAILABLE", "OK", "OK")}
    assert httpx.get(f"{empty.url}/v2/models/fake/versions/1/ready").json() == {"name": "fake", "ready": True}
    with httpx.Client() as client:
        # A batch that delays the drain until the file exists.
        stream = {"model": "fake", "input": "wait go"}
        request = client.build_request("POST", f"{empty.url}/v1/embeddings", json=stream, timeout=0.2)
        with pytest.raises(httpx.ReadTimeout):
            client.send(request)
        program.signal(signal.SIGTERM)
        until(lambda: read_states(empty) == {"fake": ("UNLOADING", "OK", "OK")}, what="the drain")
        (empty.folder / "go").touch()
    assert program.wait() == 0
    until(lambda: read_states(empty) == {"fake": ("END", "OK", "OK")}, what="the end")
    assert httpx.get(f"{empty.url}/v2/models/fake").status_code == 200
    assert httpx.get(f"{empty.url}/v2/models/fake/ready").status_code == 503
