"""scripts/serve with the real default model: what it answers, against what the same weights give elsewhere."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from tests.harness.processes import ROOT, Program, alive, descendants, free_port, until
from tests.harness.servers import MODEL, Server, rows

#: Spearman of cosine on the STS-B dev set with sentence-transformers 6.2.0 and torch 2.13.0 on CPU in float32 from the
#: same weights: util.cos_sim of model.encode(...) against the scores, scipy.stats.spearmanr. (test set: 0.8203)
STSB_DEV_SPEARMAN = 0.86716


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests that only ask it."""
    server = Server(tmp_path_factory.mktemp("serve"))
    yield server
    children = server.children()
    server.program.signal(signal.SIGINT)
    assert server.program.wait(60) == 0, server.program.output
    assert len(children) >= 3
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def golden(shared: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((shared / "data/minilm-golden.json").read_text())["rows"]
    assert len(found) == 40
    return found


# --- right vectors ---------------------------------------------------------------------------------------------------


def test_golden_rows(server: Server, shared: Path) -> None:
    checked = 0
    for row in golden(shared):
        answer = server.embed([str(row["text"])])
        if int(str(row["untruncated_tokens"])) > 256:
            message = answer.json()["error"]["message"]
            assert answer.status_code == 400
            assert message.startswith(f"Input length {row['untruncated_tokens']} longer than allowed 256")
            continue
        vector, wanted = rows(answer)[0], np.frombuffer(base64.b64decode(str(row["vector_f32_base64"])), "<f4")
        assert vector @ wanted / np.linalg.norm(vector) / np.linalg.norm(wanted) >= 0.99999
        assert np.abs(vector - wanted).max() <= 1e-4
        assert answer.json()["usage"] == {"prompt_tokens": row["tokens"], "total_tokens": row["tokens"]}
        checked += 1
    assert checked == 39


def mixed_texts(shared: Path, number: int) -> list[str]:
    """Texts of 5 to 256 tokens."""
    lines = map(json.loads, (shared / "data/load/mixed.jsonl").read_text().splitlines())
    return [line["text"] for line in lines if line["tokens"] <= 250][:number]


def test_text_alone_and_among_64_others_has_the_same_vector(server: Server, shared: Path) -> None:
    others = mixed_texts(shared, 64)
    for row in golden(shared)[:10]:
        alone = rows(server.embed([str(row["text"])]))[0]
        among = rows(server.embed([*others[:32], str(row["text"]), *others[32:]]))[32]
        assert np.abs(alone - among).max() <= 1e-5


def test_order_of_a_large_request_is_kept(server: Server, shared: Path) -> None:
    texts = mixed_texts(shared, 200)
    together = rows(server.embed(texts))
    backwards = rows(server.embed(texts[::-1]))[::-1]
    assert np.abs(together - backwards).max() <= 1e-5


def ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks, the mean of them for equal values."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return (ends - (count - 1) / 2)[place]


def test_stsb_dev_is_as_good_as_in_sentence_transformers(server: Server, shared: Path) -> None:
    pairs = [line.split("\t") for line in (shared / "data/stsb-en-dev.tsv").read_text().splitlines()]
    assert len(pairs) == 1500
    sides = [
        np.concatenate(
            [rows(server.embed([pair[side] for pair in pairs[at : at + 250]])) for at in range(0, 1500, 250)]
        )
        for side in (1, 2)
    ]
    cosines = (sides[0] * sides[1]).sum(1).astype(np.float64)
    scores = np.array([float(pair[0]) for pair in pairs])
    spearman = float(np.corrcoef(ranks(cosines), ranks(scores))[0, 1])
    assert spearman == pytest.approx(STSB_DEV_SPEARMAN, abs=0.002)


# --- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["v1", "v3"])
def test_float_and_base64_are_the_same_float32(server: Server, path: str) -> None:
    body = {"model": MODEL, "input": "hello world"}
    answer = httpx.post(f"{server.url}/{path}/embeddings", json=body).json()
    assert list(answer) == ["object", "data", "model", "usage"]
    floats = np.array(answer["data"][0]["embedding"]).astype(np.float32)
    assert floats.tobytes() == rows(server.embed(["hello world"]))[0].tobytes()


def test_text_and_its_own_token_ids_have_the_same_vector(server: Server) -> None:
    ids = httpx.post(f"{server.url}/v1/embeddings", json={"model": MODEL, "input": [101, 7592, 2088, 102]}).json()
    text = httpx.post(f"{server.url}/v1/embeddings", json={"model": MODEL, "input": "hello world"}).json()
    assert ids == text


# --- operations ------------------------------------------------------------------------------------------------------


def test_models_and_health(server: Server) -> None:
    for path in ("v1", "v3"):
        (model,) = httpx.get(f"{server.url}/{path}/models").json()["data"]
        assert (model["id"], model["object"], model["dimension"], model["max_tokens"]) == (MODEL, "model", 384, 256)
        assert httpx.get(f"{server.url}/{path}/models/{MODEL}").json() == model
        assert httpx.get(f"{server.url}/{path}/models/{MODEL.replace('/', '%2F')}").json() == model
        assert httpx.get(f"{server.url}/{path}/models/other").status_code == 404
    assert httpx.get(f"{server.url}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{server.url}/v2/health/ready").json() == {"ready": True}
    assert httpx.get(f"{server.url}/health").json()["status"] == "ready"


def test_batches_form_across_64_clients(server: Server) -> None:
    before = httpx.get(f"{server.url}/health").json()["counters"]

    async def one(number: int) -> bytes:
        body = json.dumps({"model": MODEL, "input": f"text number {number}"})
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write((head + body).encode())
        answer = await reader.read()
        writer.close()
        return answer

    async def ask() -> list[bytes]:
        return await asyncio.gather(*map(one, range(64)))

    assert all(answer.startswith(b"HTTP/1.1 200") for answer in asyncio.run(ask()))
    after = httpx.get(f"{server.url}/health").json()["counters"]
    jobs, batches = (after[name] - before[name] for name in ("jobs_dispatched", "batches_dispatched"))
    assert jobs == 64
    assert batches <= 32


# --- bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "broken JSON": (b'{"model": ', 400),
    "no JSON": (b"hello", 400),
    "no body": (b"", 400),
    "not an object": (b"[1, 2]", 400),
    "not UTF-8": (b'{"model": "m", "input": "\xff\xfe"}', 400),
    "lone surrogate": (b'{"model": "m", "input": "\\udc00"}', 400),
    "deep": (b"[" * 100_000 + b"]" * 100_000, 400),
    "no model": (b'{"input": "a"}', 400),
    "unknown model": (b'{"model": "m", "input": "a"}', 404),
    "model of a wrong type": (b'{"model": 7, "input": "a"}', 400),
    "no input": (json.dumps({"model": MODEL}).encode(), 400),
    "empty list": (json.dumps({"model": MODEL, "input": []}).encode(), 400),
    "list of null": (json.dumps({"model": MODEL, "input": [None]}).encode(), 400),
    "mixed list": (json.dumps({"model": MODEL, "input": ["a", 1]}).encode(), 400),
    "number": (json.dumps({"model": MODEL, "input": 1.5}).encode(), 400),
    "unknown encoding": (json.dumps({"model": MODEL, "input": "a", "encoding_format": "hex"}).encode(), 400),
    "too many inputs": (json.dumps({"model": MODEL, "input": ["a"] * 2049}).encode(), 400),
    "token outside the vocabulary": (json.dumps({"model": MODEL, "input": [30522]}).encode(), 400),
    "fewer dimensions": (json.dumps({"model": MODEL, "input": "a", "dimensions": 100}).encode(), 200),
    "more dimensions": (json.dumps({"model": MODEL, "input": "a", "dimensions": 385}).encode(), 400),
    "its own dimensions": (json.dumps({"model": MODEL, "input": "a", "dimensions": 384}).encode(), 200),
    "10 MB body": (json.dumps({"model": MODEL, "input": "word " * 2_000_000}).encode(), 413),
    "7 MB text": (json.dumps({"model": MODEL, "input": "word " * 1_400_000}).encode(), 400),
    "too long among good": (json.dumps({"model": MODEL, "input": ["a", "word " * 400, "b"]}).encode(), 400),
    "NUL inside": (json.dumps({"model": MODEL, "input": "null\0inside"}).encode(), 200),
    "empty text": (json.dumps({"model": MODEL, "input": ""}).encode(), 200),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_clear_answer_and_harms_no_neighbour(server: Server, name: str) -> None:
    body, status = BAD[name]
    alone = rows(server.embed(["a neighbour"]))

    async def ask() -> tuple[httpx.Response, list[httpx.Response]]:
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"{server.url}/v1/embeddings"
            good = {"model": MODEL, "input": ["a neighbour"], "encoding_format": "base64"}
            neighbours = [asyncio.create_task(client.post(url, json=good)) for _ in range(8)]
            return await client.post(url, content=body), await asyncio.gather(*neighbours)

    answer, neighbours = asyncio.run(ask())
    assert answer.status_code == status, answer.text
    if status != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    for neighbour in neighbours:
        assert np.abs(rows(neighbour) - alone).max() <= 1e-5


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/embeddings", 405), ("POST", "/v1/nothing", 404), ("GET", "/", 404), ("DELETE", "/v1/models", 405)],
)
def test_wrong_paths_and_methods_get_error_objects(server: Server, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, server.url + path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /v1/models/%ff%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["binary", "length", "negative length", "chunk", "long header", "path"],
)
def test_broken_http_gets_a_4xx_and_no_hang(server: Server, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    assert answer.split()[1].startswith(b"4"), answer
    assert server.embed(["still there"]).status_code == 200


# --- the supervisor --------------------------------------------------------------------------------------------------


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers of a test's own, of which nothing is left afterwards."""
    started: list[Server] = []

    def one(*flags: str, **environment: str) -> Server:
        started.append(Server(tmp_path, *flags, **environment))
        return started[-1]

    yield one
    for server in started:
        server.program.close()


def test_crashed_children_are_started_again(start: Start) -> None:
    server = start("--workers", "2", "--frontends", "2")
    for role in ("workers", "broker", "frontend"):
        before = set(server.children())
        for pid in before:
            if f"-m\0{role}\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        until(lambda before=before: set(server.children()) - before, what=f"a new {role}")  # type: ignore[misc]
        until(lambda: serves(server), 60, f"an answer after the {role} was killed")
    children = server.children()
    server.program.signal(signal.SIGTERM)
    assert server.program.wait(90) == 0
    assert not [pid for pid in children if alive(pid)]


def test_second_start_needs_no_network(start: Start) -> None:
    server = start(PIP_NO_INDEX="1", PIP_INDEX_URL="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9")
    assert serves(server)


def serves(server: Server) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return server.embed(["hello"]).status_code == 200
    return False


def test_key_of_the_environment_is_wanted_and_told_in_the_curl(start: Start) -> None:
    server = start(API_KEY="vm-secret")
    assert '-H "Authorization: Bearer $API_KEY"' in server.program.output
    assert "vm-secret" not in server.program.output
    assert server.embed(["a"]).status_code == 401
    body = {"model": MODEL, "input": "a"}
    headers = {"Authorization": "Bearer vm-secret"}
    assert httpx.post(f"{server.url}/v1/embeddings", json=body, headers=headers).status_code == 200


def test_children_die_with_a_killed_supervisor(start: Start) -> None:
    server = start()
    children = server.children()
    os.kill(server.program.process.pid, signal.SIGKILL)
    until(lambda: not [pid for pid in children if alive(pid)], what="the children's end")


def test_model_folder_that_is_none_is_refused_in_one_sentence(tmp_path: Path) -> None:
    program = Program("serve", [str(ROOT / "scripts/serve"), "--model", str(tmp_path)], tmp_path / "serve.log")
    assert program.wait(60) == 1
    assert program.output.count("\n") == 1
    assert "has no config.json" in program.output


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--device", "NPU"), "device NPU not found; OpenVINO sees CPU"),
        (("--device", "quantum"), "device QUANTUM not found"),
        (("--port", "0"), "choose another with --port"),
        (("--port", "70000"), "choose another with --port"),
        (("--workers", "0"), "--workers"),
    ],
)
def test_what_cannot_be_served_ends_the_start(tmp_path: Path, flags: tuple[str, ...], sentence: str) -> None:
    command = [str(ROOT / "scripts/serve"), "--port", str(free_port()), *flags]
    program = Program("serve", command, tmp_path / "serve.log")
    assert program.wait(60) in (1, 2)
    assert sentence in program.output
    assert "Traceback" not in program.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_the_fetch_ends_it_in_one_sentence(tmp_path: Path, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = ["env", "PIP_CONFIG_FILE=/dev/null", f"PIP_INDEX_URL={index}", str(ROOT / "scripts/serve")]
        command += ["--port", str(free_port()), "--cache", str(tmp_path / "cache")]
        program = Program("serve", command, tmp_path / "serve.log")
        connection, _ = silent.accept()
        children = descendants(program.process.pid)
        program.signal(number)
        assert program.wait(60) == 130
        connection.close()
    assert program.output.splitlines()[1:] == ["vecmill: stopped before the model was there"]
    assert children
    assert not [pid for pid in children if alive(pid)]
    assert [path.name for path in (tmp_path / "cache/default").iterdir()] == [".lock"]


def test_second_signal_ends_everything_at_once(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    server = start(TMPDIR=str(folder))
    children = server.children()
    assert list(folder.glob("vecmill-*"))
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    server.program.signal(signal.SIGINT)
    until(lambda: "stopping frontend" in server.program.output)
    server.program.signal(signal.SIGINT)
    assert server.program.wait(20) == 130
    until(lambda: not [pid for pid in children if alive(pid)], what="the children's end")
    assert not list(folder.glob("vecmill-*"))


def test_port_that_is_taken_ends_the_start(server: Server, tmp_path: Path) -> None:
    program = Program("serve", [str(ROOT / "scripts/serve"), "--port", str(server.port)], tmp_path / "serve.log")
    assert program.wait(60) == 1
    assert program.output.count("\n") == 1
    assert server.embed(["still there"]).status_code == 200
