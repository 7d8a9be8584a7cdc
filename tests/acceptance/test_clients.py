"""Real clients against scripts/serve with the real default model; `tests/clients` has clients that need more."""

import asyncio
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
import tiktoken
from langchain_openai import OpenAIEmbeddings

from tests.harness.processes import ROOT, Cluster, until
from tests.harness.servers import MODEL, Server, rows

TEXTS = ["hello world", "null\0inside", "für jeden", ""]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start one server for all tests."""
    server = Server(tmp_path_factory.mktemp("clients"), "--precision", "f32")
    yield server
    server.program.close()


def bits(vectors: object) -> bytes:
    """Return vectors as the bytes of float32."""
    return np.array(vectors, np.float32).tobytes()


# --- openai ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """Give OpenAI's client, which requests base64 by default."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_openai_client_gets_equal_bits_in_both_formats(client: openai.OpenAI, server: Server) -> None:
    expected = rows(server.embed(TEXTS)).tobytes()
    by_default = client.embeddings.create(model=MODEL, input=TEXTS)
    as_float = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    as_base64 = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="base64")
    assert bits([item.embedding for item in by_default.data]) == expected
    assert bits([item.embedding for item in as_float.data]) == expected
    assert all(isinstance(item.embedding, str) for item in as_base64.data)
    assert (by_default.model, by_default.object) == (MODEL, "list")
    assert [item.index for item in by_default.data] == list(range(4))
    assert by_default.usage.prompt_tokens == by_default.usage.total_tokens == 4 + 5 + 5 + 2


def test_openai_client_with_options_and_extensions(client: openai.OpenAI) -> None:
    cut = client.embeddings.create(model=MODEL, input="hello world", dimensions=16).data[0].embedding
    assert len(cut) == 16
    assert math.sqrt(sum(value * value for value in cut)) == pytest.approx(1, abs=1e-6)
    text = client.embeddings.create(model=MODEL, input="hello world")
    ids = client.embeddings.create(model=MODEL, input=[101, 7592, 2088, 102])
    arrays = client.embeddings.create(model=MODEL, input=[[101, 7592, 2088, 102], [101, 102]])
    assert bits(text.data[0].embedding) == bits(ids.data[0].embedding)
    assert np.allclose(arrays.data[0].embedding, text.data[0].embedding, atol=1e-6)
    more = client.embeddings.with_raw_response.create(
        model=MODEL, input=["a", "hello " * 400], extra_body={"truncate": "end"}, extra_headers={"x-request-id": "id"}
    )
    assert (more.headers["x-truncated-tokens"], more.headers["x-request-id"]) == ("146", "id")
    assert more.parse().data[1].model_extra == {"truncated_tokens": 146}
    mixed = client.embeddings.create(model=MODEL, input=["a", "hello " * 400], extra_body={"error_policy": "per_item"})
    assert mixed.data[1].embedding is None
    assert (mixed.data[1].model_extra or {})["error"]["code"] == "context_length_exceeded"
    assert len(mixed.data[0].embedding) == 384


def test_openai_client_lists_models_and_raises_errors(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "vecmill"
    with pytest.raises(openai.NotFoundError, match="does not exist") as unknown:
        client.embeddings.create(model="other", input="a")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.BadRequestError, match="input array should not be empty"):
        client.embeddings.create(model=MODEL, input=[])
    with pytest.raises(openai.BadRequestError, match="Input length 402 longer than allowed 256") as long:
        client.embeddings.create(model=MODEL, input="hello " * 400)
    assert long.value.type == "invalid_request_error"
    with pytest.raises(openai.InternalServerError) as late:
        client.embeddings.create(model=MODEL, input="a" * 100, extra_headers={"x-vecmill-deadline-ms": "1"})
    assert late.value.status_code in (503, 504)


def test_openai_async_client_with_concurrent_requests(server: Server) -> None:
    async def ask() -> list[bytes]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v3", api_key="unused") as client:
            calls = (client.embeddings.create(model=MODEL, input=f"text {number}") for number in range(50))
            return [bits(answer.data[0].embedding) for answer in await asyncio.gather(*calls)]

    together = asyncio.run(ask())
    alone = rows(server.embed([f"text {number}" for number in range(50)]))
    for one, other in zip(together, alone, strict=True):
        assert np.abs(np.frombuffer(one, np.float32) - other).max() <= 1e-5


def test_openai_client_raises_key_and_server_errors(cluster: Cluster) -> None:
    file = cluster.folder / "keys.toml"
    command = [str(ROOT / "scripts/api-key"), "a", "--file", str(file), "--tokens-per-minute", "100"]
    key = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    cluster.broker()
    cluster.worker()
    cluster.frontend("--api-keys", str(file))
    url = f"{cluster.url}/v1"

    async def wrong() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
            await client.embeddings.create(model="fake", input="a")

    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        until(lambda: is_listed(client), what="the model")
        with pytest.raises(openai.AuthenticationError, match="invalid or missing api-key") as unknown:
            asyncio.run(wrong())
        assert unknown.value.code == "invalid_api_key"
        with pytest.raises(openai.PermissionDeniedError):
            client.post("/config/reload", cast_to=object)
        with pytest.raises(openai.InternalServerError, match="the device failed on this input"):
            client.embeddings.create(model="fake", input="raise")
        # The estimate is below the quota, the true number of tokens above it: the next request must wait.
        assert len(client.embeddings.create(model="fake", input=["x" * 50] * 4).data) == 4
        with pytest.raises(openai.RateLimitError, match="100 tokens a minute") as much:
            client.embeddings.create(model="fake", input="x" * 50)
        assert int(much.value.response.headers["retry-after"]) > 0


def is_listed(client: openai.OpenAI) -> bool:
    """Return whether the server answers and has a model."""
    try:
        return bool(client.models.list().data)
    except openai.APIConnectionError:
        return False


# --- LangChain, LlamaIndex, curl -------------------------------------------------------------------------------------


def langchain(server: Server, **settings: object) -> OpenAIEmbeddings:
    """Return LangChain's client of this server."""
    return OpenAIEmbeddings(model=MODEL, base_url=f"{server.url}/v3", api_key="unused", **settings)  # type: ignore[arg-type]


def test_langchain(server: Server) -> None:
    async def ask() -> list[list[float]]:
        async with httpx.AsyncClient() as http:
            embeddings = langchain(server, check_embedding_ctx_length=False, http_async_client=http)
            return await embeddings.aembed_documents(["one", "two"])

    embeddings = langchain(server, check_embedding_ctx_length=False)
    assert bits(embeddings.embed_query("hello world")) == rows(server.embed(["hello world"])).tobytes()
    many = [f"text {number}" for number in range(1200)]
    vectors = np.array(embeddings.embed_documents(many), np.float32)
    assert vectors.shape == (1200, 384)
    assert np.abs(vectors[1199] - rows(server.embed([many[1199]]))[0]).max() <= 1e-5
    assert len(asyncio.run(ask())) == 2


def test_default_langchain_gets_the_switch_in_the_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the file of cl100k_base, which tiktoken would download, by the ids of three words."""
    ids = {b"hello": 15339, b" world": 1917, b" embeddings": 71647}
    letters = {bytes([number]): number for number in range(256)}
    encoding = tiktoken.Encoding("cl100k_base", pat_str=" ?[a-z]+", mergeable_ranks=letters | ids, special_tokens={})
    monkeypatch.setattr(tiktoken, "get_encoding", {"cl100k_base": encoding}.__getitem__)
    switch = "LangChain sends the ids of OpenAI's models unless check_embedding_ctx_length=False"
    with httpx.Client() as http, pytest.raises(openai.BadRequestError, match=switch):
        langchain(server, http_client=http).embed_query("hello world embeddings")


def test_langchain_with_the_models_tokenizer(server: Server) -> None:
    """Follow OVMS's recipe: LangChain splits texts with Hugging Face's tokenizer, and sends texts."""
    folder = next((ROOT / ".cache/vecmill").glob("default/**/tokenizer.json")).parent
    embeddings = langchain(server, tiktoken_enabled=False, tiktoken_model_name=str(folder), embedding_ctx_length=250)
    assert bits(embeddings.embed_query("hello world")) == rows(server.embed(["hello world"])).tobytes()
    # LangChain returns the mean of the parts' vectors for a text that is longer than the model accepts.
    assert len(embeddings.embed_documents(["hello " * 600])[0]) == 384


def test_llamaindex(server: Server) -> None:
    with warnings.catch_warnings():
        # LlamaIndex's dependencies warn at import.
        warnings.simplefilter("ignore")
        from llama_index.embeddings.openai_like import OpenAILikeEmbedding
    settings = {"model_name": MODEL, "api_base": f"{server.url}/v1", "api_key": "unused"}

    async def ask() -> list[float]:
        async with httpx.AsyncClient() as http:
            embeddings = OpenAILikeEmbedding(dimensions=16, async_http_client=http, **settings)
            vector: list[float] = await embeddings.aget_text_embedding("text")
            return vector

    with httpx.Client() as http:
        embeddings = OpenAILikeEmbedding(embed_batch_size=10, http_client=http, **settings)
        assert bits(embeddings.get_query_embedding("hello world")) == rows(server.embed(["hello world"])).tobytes()
        vectors = embeddings.get_text_embedding_batch([f"text {number}" for number in range(25)])
        assert np.abs(np.array(vectors, np.float32)[24] - rows(server.embed(["text 24"]))[0]).max() <= 1e-5
    assert len(asyncio.run(ask())) == 16


def curl(*arguments: str) -> str:
    """Run curl, and return what it prints."""
    return subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, check=True, timeout=60).stdout


def test_curl_with_and_without_a_content_type(server: Server) -> None:
    url, body = f"{server.url}/v1/embeddings", json.dumps({"model": MODEL, "input": "hello world"})
    plain = json.loads(curl(url, "-d", body))
    typed = json.loads(curl(url, "-H", "Content-Type: application/json", "-d", body))
    chunked = json.loads(curl(url, "-H", "Transfer-Encoding: chunked", "-d", body))
    assert bits(plain["data"][0]["embedding"]) == rows(server.embed(["hello world"])).tobytes()
    assert plain["data"] == typed["data"] == chunked["data"]
    long = curl(url, "-H", "Expect: 100-continue", "-d", json.dumps({"model": MODEL, "input": ["hello"] * 2000}))
    assert len(json.loads(long)["data"]) == 2000
    assert curl("-o", "/dev/null", "-w", "%{http_code}", "-X", "OPTIONS", url) == "204"


# --- docs ------------------------------------------------------------------------------------------------------------


def examples(page: str) -> list[str]:
    """Return the indented blocks of a page that curl or Python can run."""
    blocks = [block.removeprefix("    ") for block in (ROOT / page).read_text().replace("\n    ", "\n").split("\n\n")]
    return [block for block in blocks if block.startswith(("curl ", "from "))]


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_examples_in_docs_run(server: Server, page: str) -> None:
    found = [example.replace("http://127.0.0.1:8000", server.url) for example in examples(page)]
    assert len(found) >= 2
    for example in found:
        if example.startswith("from "):
            subprocess.run([sys.executable, "-c", example], cwd=ROOT, check=True, timeout=60)
            continue
        # The answer may follow the command.
        command, _, wanted = example.partition("\n{")
        answer = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=True, timeout=60).stdout
        assert "error" not in json.loads(answer)
        assert wanted in answer
