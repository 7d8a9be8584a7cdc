"""Embed texts with one Python client: `python_clients.py NAME REQUEST`.

REQUEST is a JSON object with `url`, `key`, `model`, `text`, `texts` and `too_long`, a text that the server refuses. The
program prints vectors and the refusal, as the client returns them to its user, as JSON.
"""

import json
import re
import sys
import warnings
from base64 import b64decode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from struct import unpack
from typing import Any

Vectors = Sequence[Sequence[float]]
Embed = Callable[[list[str]], Vectors]


@dataclass(slots=True)
class Client:
    """Ways to embed texts with a client."""

    single: Callable[[str], Sequence[float]]
    many: Embed
    #: Other ways by their names in the output: `float`, `base64`, and `truncated` for texts that are too long.
    others: dict[str, Embed] = field(default_factory=dict)


def decode(vectors: Iterable[str]) -> Vectors:
    """Return the values of base64 vectors."""
    decoded = map(b64decode, vectors)
    return [unpack(f"<{len(data) // 4}f", data) for data in decoded]


def use_openai(url: str, key: str, model: str) -> Client:
    """Return OpenAI's client, whose default is base64."""
    import openai

    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)

    def embed(texts: str | list[str], **options: Any) -> list[Any]:
        return [item.embedding for item in client.embeddings.create(model=model, input=texts, **options).data]

    others: dict[str, Embed] = {
        "float": lambda texts: embed(texts, encoding_format="float"),
        "base64": lambda texts: decode(embed(texts, encoding_format="base64")),
        "truncated": lambda texts: embed(texts, extra_body={"truncate": "end"}),
    }
    return Client(lambda text: embed(text)[0], embed, others)


def use_langchain(url: str, key: str, model: str) -> Client:
    """Return LangChain's client of OpenAI's API."""
    from langchain_openai import OpenAIEmbeddings
    from pydantic import SecretStr

    def create(**options: Any) -> OpenAIEmbeddings:
        settings = {"check_embedding_ctx_length": False, "max_retries": 0, **options}
        return OpenAIEmbeddings(model=model, base_url=url, api_key=SecretStr(key), **settings)

    client = create()
    others: dict[str, Embed] = {
        "float": create(model_kwargs={"encoding_format": "float"}).embed_documents,
        "truncated": create(model_kwargs={"extra_body": {"truncate": "end"}}).embed_documents,
    }
    return Client(client.embed_query, client.embed_documents, others)


def use_nvidia(url: str, key: str, model: str) -> Client:
    """Return LangChain's client of NVIDIA's NIM, which sends `truncate` in capitals with each request."""
    from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings

    def create(**options: Any) -> Any:
        return NVIDIAEmbeddings(model=model, base_url=url, api_key=key, usage_telemetry_enabled=False, **options)

    client = create()
    return Client(client.embed_query, client.embed_documents, {"truncated": create(truncate="END").embed_documents})


def use_llamaindex(url: str, key: str, model: str) -> Client:
    """Return LlamaIndex's client of servers with OpenAI's API."""
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    def create(**options: Any) -> Any:
        return OpenAILikeEmbedding(model_name=model, api_base=url, api_key=key, max_retries=0, **options)

    client, cutting = create(), create(additional_kwargs={"extra_body": {"truncate": "end"}})
    others = {"truncated": cutting.get_text_embedding_batch}
    return Client(client.get_query_embedding, client.get_text_embedding_batch, others)


def use_litellm(provider: str, formats: Sequence[str], truncate: str = "") -> Callable[[str, str, str], Client]:
    """Return a function that returns LiteLLM with one of its providers."""

    def create(url: str, key: str, model: str) -> Client:
        import litellm

        # Otherwise LiteLLM prints advice before each error.
        litellm.suppress_debug_info = True

        def embed(texts: str | list[str], **options: Any) -> list[Any]:
            answer = litellm.embedding(f"{provider}/{model}", input=texts, api_base=url, api_key=key, **options)
            return [item["embedding"] for item in answer.data]

        others: dict[str, Embed] = {}
        if "float" in formats:
            others["float"] = lambda texts: embed(texts, encoding_format="float")
        if "base64" in formats:
            others["base64"] = lambda texts: decode(embed(texts, encoding_format="base64"))
        if truncate:
            others["truncated"] = lambda texts: embed(texts, truncate=truncate)
        return Client(lambda text: embed(text)[0], embed, others)

    return create


CLIENTS: dict[str, Callable[[str, str, str], Client]] = {
    "openai": use_openai,
    "langchain": use_langchain,
    "llamaindex": use_llamaindex,
    "langchain-nvidia": use_nvidia,
    "litellm-openai": use_litellm("openai", ("float", "base64")),
    "litellm-nvidia_nim": use_litellm("nvidia_nim", ("float", "base64"), truncate="END"),
    "litellm-voyage": use_litellm("voyage", ("float", "base64")),
    "litellm-jina_ai": use_litellm("jina_ai", ()),
    "litellm-infinity": use_litellm("infinity", ("float", "base64")),
}


def find_refusal(client: Client, text: str) -> dict[str, object]:
    """Return the status and message of the error that a client raises."""
    try:
        client.single(text)
    except Exception as error:  # each client raises its own classes
        message = str(error)
        # NVIDIAEmbeddings raises a plain `Exception("[400] Bad Request …")`.
        status = getattr(error, "status_code", None) or next(map(int, re.findall(r"^\[(\d+)\]", message)), None)
        return {"status": status, "message": message}
    return {}


def main() -> None:
    """Print what the client of argument 1 returns for the request of argument 2."""
    # Some clients warn at import.
    warnings.simplefilter("ignore")
    request = json.loads(sys.argv[2])
    client = CLIENTS[sys.argv[1]](request["url"], request["key"], request["model"])
    answer: dict[str, object] = {"single": client.single(request["text"]), "list": client.many(request["texts"])}
    for name, embed in client.others.items():
        answer[name] = embed([request["too_long"]] if name == "truncated" else request["texts"])
    print(json.dumps({**answer, "refusal": find_refusal(client, request["too_long"])}))


if __name__ == "__main__":
    main()
