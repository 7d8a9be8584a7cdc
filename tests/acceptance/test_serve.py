"""`scripts/serve` with the default model: vectors, formats, bad requests."""

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.harness.data import read_golden, read_texts
from tests.harness.servers import MODEL, Server, rows


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start one server for all tests of this module; check afterwards that its processes have ended."""
    server = Server(tmp_path_factory.mktemp("serve"), "--precision", "f32")
    yield server
    children = server.children()
    server.program.signal(signal.SIGINT)
    assert server.program.wait(60) == 0, server.program.output
    assert len(children) >= 3
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_golden_vectors_are_served(server: Server) -> None:
    accepted = 0
    for row in read_golden():
        answer = server.embed([row["text"]])
        if row["untruncated_tokens"] > 256:
            message = answer.json()["error"]["message"]
            assert answer.status_code == 400
            assert message.startswith(f"Input length {row['untruncated_tokens']} longer than allowed 256")
            continue
        vector, expected = rows(answer)[0], row["vector"]
        assert vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected) >= 0.99999
        assert np.abs(vector - expected).max() <= 1e-4
        assert answer.json()["usage"] == {"prompt_tokens": row["tokens"], "total_tokens": row["tokens"]}
        accepted += 1
    assert accepted == 39


def test_vector_does_not_depend_on_other_inputs(server: Server) -> None:
    others = read_texts("mixed", 250)[:64]
    for row in read_golden()[:10]:
        alone = rows(server.embed([row["text"]]))[0]
        among_others = rows(server.embed([*others[:32], row["text"], *others[32:]]))[32]
        assert np.abs(alone - among_others).max() <= 1e-5


def test_large_request_keeps_its_order(server: Server) -> None:
    texts = read_texts("mixed", 250)[:200]
    assert len(texts) == 200
    together = rows(server.embed(texts))
    backwards = rows(server.embed(texts[::-1]))[::-1]
    assert np.abs(together - backwards).max() <= 1e-5


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["v1", "v3"])
def test_float_and_base64_are_equal(server: Server, path: str) -> None:
    body = {"model": MODEL, "input": "hello world"}
    answer = httpx.post(f"{server.url}/{path}/embeddings", json=body).json()
    assert list(answer) == ["object", "data", "model", "usage"]
    floats = np.array(answer["data"][0]["embedding"]).astype(np.float32)
    assert floats.tobytes() == rows(server.embed(["hello world"]))[0].tobytes()


def test_text_and_its_token_ids_are_equal(server: Server) -> None:
    ids = httpx.post(f"{server.url}/v1/embeddings", json={"model": MODEL, "input": [101, 7592, 2088, 102]}).json()
    text = httpx.post(f"{server.url}/v1/embeddings", json={"model": MODEL, "input": "hello world"}).json()
    assert ids == text


# --- operations ------------------------------------------------------------------------------------------------------


def test_models_and_health_list_the_default_model(server: Server) -> None:
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

    async def post_alone(number: int) -> bytes:
        body = json.dumps({"model": MODEL, "input": f"text number {number}"})
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write((head + body).encode())
        answer = await reader.read()
        writer.close()
        return answer

    async def post_all() -> list[bytes]:
        return await asyncio.gather(*map(post_alone, range(64)))

    assert all(answer.startswith(b"HTTP/1.1 200") for answer in asyncio.run(post_all()))
    after = httpx.get(f"{server.url}/health").json()["counters"]
    jobs, batches = (after[name] - before[name] for name in ("jobs_dispatched", "batches_dispatched"))
    assert jobs == 64
    assert batches <= 32


# --- bad requests ----------------------------------------------------------------------------------------------------

BAD = {
    "broken JSON": (b'{"model": ', 400),
    "not JSON": (b"hello", 400),
    "no body": (b"", 400),
    "not an object": (b"[1, 2]", 400),
    "not UTF-8": (b'{"model": "m", "input": "\xff\xfe"}', 400),
    "broken escape": (b'{"model": "m", "input": "\\udc0"}', 400),
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
    "all dimensions": (json.dumps({"model": MODEL, "input": "a", "dimensions": 384}).encode(), 200),
    "10 MB body": (json.dumps({"model": MODEL, "input": "word " * 2_000_000}).encode(), 413),
    "7 MB text": (json.dumps({"model": MODEL, "input": "word " * 1_400_000}).encode(), 400),
    "too long among good": (json.dumps({"model": MODEL, "input": ["a", "word " * 400, "b"]}).encode(), 400),
    "NUL inside": (json.dumps({"model": MODEL, "input": "null\0inside"}).encode(), 200),
    "empty text": (json.dumps({"model": MODEL, "input": ""}).encode(), 200),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_body_fails_alone(server: Server, name: str) -> None:
    body, status = BAD[name]
    alone = rows(server.embed(["a neighbour"]))

    async def post_among_neighbours() -> tuple[httpx.Response, list[httpx.Response]]:
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"{server.url}/v1/embeddings"
            good = {"model": MODEL, "input": ["a neighbour"], "encoding_format": "base64"}
            neighbours = [asyncio.create_task(client.post(url, json=good)) for _ in range(8)]
            return await client.post(url, content=body), await asyncio.gather(*neighbours)

    answer, neighbours = asyncio.run(post_among_neighbours())
    assert answer.status_code == status, answer.text
    if status != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    for neighbour in neighbours:
        assert np.abs(rows(neighbour) - alone).max() <= 1e-5


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/embeddings", 405), ("POST", "/v1/nothing", 404), ("GET", "/v1", 404), ("DELETE", "/v1/models", 405)],
)
def test_wrong_path_or_method_gets_error_object(server: Server, method: str, path: str, status: int) -> None:
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
def test_broken_http_gets_4xx(server: Server, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    assert answer.split()[1].startswith(b"4"), answer
    assert server.embed(["still there"]).status_code == 200
