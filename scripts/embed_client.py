"""HTTP client of `scripts/embed`: models, and vectors of texts."""

import asyncio
import ipaddress
import os
import re
import ssl
import sys
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Self

import aiohttp
import msgspec
from embed_errors import AwayError, RefusedError
from embed_plan import Answer, RowError

#: Longest time of a request in seconds. The server's longest deadline is 60 s by default.
TIMEOUT_S = 120.0
#: Longest time of GET /v1/models in seconds.
MODELS_TIMEOUT_S = 5.0
#: Seconds between two attempts to reach a server at the start.
POLL_S = 0.5


class Model(msgspec.Struct):
    """A model as GET /v1/models describes it."""

    id: str
    dimension: int
    revision: str
    max_tokens: int = 0


class _Models(msgspec.Struct):
    data: list[Model]


class Fault(msgspec.Struct):
    """OpenAI's error object."""

    message: str = ""
    code: str | None = None
    param: str | None = None


class _FaultAnswer(msgspec.Struct):
    error: Fault


class _Item(msgspec.Struct):
    index: int
    embedding: bytes | None
    truncated_tokens: int = 0
    error: Fault | None = None


class _Usage(msgspec.Struct):
    total_tokens: int = 0


class _Embeddings(msgspec.Struct):
    data: list[_Item]
    usage: _Usage


class RequestError(Exception):
    """Answer other than 200; a status of 0: no answer."""

    def __init__(self, status: int, fault: Fault, retry_after_s: float = 0.0) -> None:
        super().__init__(fault.message)
        self.status = status
        self.code, self.param = fault.code or "", fault.param or ""
        self.retry_after_s = retry_after_s


class Client:
    """Client of one server."""

    def __init__(self, url: str, api_key: str, request_fields: Mapping[str, str | int]) -> None:
        self.url = url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._fields = request_fields
        self._decoder = msgspec.json.Decoder(_Embeddings)
        #: Results that the server had in its cache.
        self.cache_hits = 0
        self._warnings: set[str] = set()

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        # A proxy of the environment cannot reach this machine's loopback interface.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=self._headers,
            timeout=timeout,
            trust_env=not _is_loopback(self.url),
            read_bufsize=1 << 20,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def list_models(self) -> list[Model]:
        """Return the models that the server has. Raise `RequestError` if it does not answer 200."""
        try:
            timeout = aiohttp.ClientTimeout(total=MODELS_TIMEOUT_S)
            async with self._session.get(f"{self.url}/v1/models", timeout=timeout) as answer:
                body = await answer.read()
                _raise_failure(answer, body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._explain(error) from None
        try:
            return msgspec.json.decode(body, type=_Models).data
        except msgspec.MsgspecError as error:
            raise RefusedError(
                f"{self.url} is not a Vecmill server: GET /v1/models has no revisions ({error})"
            ) from None

    async def find_model(self, name: str, patience_s: float) -> Model:
        """Return the model of a name, or the only one for an empty name; wait for the server and the model.

        Raise `RefusedError` if the server has no such model or refuses the key, and `AwayError` if it is away for too
        long.
        """
        until = time.monotonic() + patience_s
        while True:
            try:
                models = await self.list_models()
                if models:
                    return _choose_model(models, name, self.url)
                reason = "it has no model yet"
            except RequestError as failure:
                if 400 <= failure.status < 500 and failure.status not in (408, 429):
                    raise RefusedError(f"{self.url} refuses the request: {failure}") from None
                reason = str(failure)
            if time.monotonic() >= until:
                raise AwayError(
                    f"{self.url} has not served for {patience_s:g} s: {reason}; start it and run this again"
                )
            await asyncio.sleep(POLL_S)

    async def embed(self, model: Model, rows: Sequence[int], texts: Sequence[str], values: int) -> Answer:
        """Return the vectors of texts, of `values` values. Raise `RequestError` if the answer is not 200."""
        fields = {"model": model.id, "input": texts, "encoding_format": "base64", "error_policy": "per_item"}
        body = msgspec.json.encode(fields | dict(self._fields))
        headers = {"Content-Type": "application/json", "x-vecmill-lane": "bulk"}
        try:
            async with self._session.post(f"{self.url}/v1/embeddings", data=body, headers=headers) as answer:
                content = await answer.read()
                _raise_failure(answer, content)
                self._warn(answer.headers.get("x-vecmill-warning", ""))
                self.cache_hits += _read_hits(answer.headers.get("x-vecmill-cache", ""))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._explain(error) from None
        try:
            found = self._decoder.decode(content)
        except msgspec.MsgspecError as error:
            raise RequestError(502, Fault(f"the answer is damaged: {error}")) from None
        return _read_answer(found, rows, values)

    def _explain(self, error: Exception) -> Exception:
        """Return what to raise for an exception of aiohttp: an error of TLS stays, but others can go away."""
        cause = getattr(error, "os_error", None)
        # A server that ends can break off a handshake.
        if isinstance(error, aiohttp.ClientSSLError) and not isinstance(cause, ssl.SSLEOFError):
            reason = getattr(error, "certificate_error", cause)
            reason = getattr(reason, "verify_message", "") or getattr(reason, "reason", "") or reason
            return RefusedError(
                f"TLS with {self.url} fails: {reason}; give the server's certificate authority in SSL_CERT_FILE, or "
                "use http:// if the server has no certificate"
            )
        if isinstance(error, aiohttp.InvalidURL):
            return RefusedError(f"{self.url} is not a URL; it needs a host and perhaps a port")
        if isinstance(error, aiohttp.ClientConnectorError):
            number = error.os_error.errno or 0
            reason = os.strerror(number) if number > 0 else error.os_error.strerror or "it failed"
            text = f"no connection to {urllib.parse.urlsplit(self.url).netloc}: {reason}"
        elif isinstance(error, aiohttp.ServerDisconnectedError):
            text = "the server has closed the connection without an answer"
        elif isinstance(error, TimeoutError):
            text = "no answer in time"
        else:
            text = str(error) or type(error).__name__
        return RequestError(0, Fault(text))

    def _warn(self, text: str) -> None:
        """Print a warning of the server, unless it has been printed with the same or other numbers."""
        kind = re.sub(r"\d+", "", text)
        if text and kind not in self._warnings:
            self._warnings.add(kind)
            print(f"vecmill embed: warning: {text}", file=sys.stderr)


def _read_answer(found: _Embeddings, rows: Sequence[int], values: int) -> Answer:
    if [item.index for item in found.data] != list(range(len(rows))):
        raise RequestError(502, Fault(f"the answer has {len(found.data)} items, but the request has {len(rows)} texts"))
    zeros = bytes(4 * values)
    errors: dict[int, RowError] = {}
    vectors: list[bytes] = []
    for row, item in zip(rows, found.data, strict=True):
        if item.embedding is None:
            fault = item.error or Fault("the server gave no reason")
            errors[row] = RowError(fault.code or "", fault.message)
        elif len(item.embedding) != 4 * values:
            given = len(item.embedding) // 4
            raise RefusedError(f"the server answers with vectors of {given} values, but the output has {values}")
        vectors.append(item.embedding or zeros)
    truncated = sum(item.truncated_tokens > 0 for item in found.data)
    return Answer(list(rows), b"".join(vectors), found.usage.total_tokens, truncated, errors)


def _choose_model(models: Sequence[Model], name: str, url: str) -> Model:
    names = ", ".join(model.id for model in models)
    if name:
        if found := next((model for model in models if model.id == name), None):
            return found
        raise RefusedError(f"{url} has no model {name}; it has {names}")
    if len({model.revision for model in models}) > 1:
        raise RefusedError(f"{url} has several models; choose one with --model: {names}")
    return models[0]


def _raise_failure(answer: aiohttp.ClientResponse, body: bytes) -> None:
    if answer.status == 200:
        return
    try:
        fault = msgspec.json.decode(body, type=_FaultAnswer).error
    except msgspec.MsgspecError:
        fault = Fault(f"status {answer.status} {answer.reason}")
    retry_after = answer.headers.get("Retry-After", "")
    raise RequestError(answer.status, fault, float(retry_after) if retry_after.isdigit() else 0.0)


def _read_hits(header: str) -> int:
    """Return the number of hits in `hit=12, computed=20`."""
    fields = dict(field.strip().partition("=")[::2] for field in header.split(","))
    hits = fields.get("hit", "")
    return int(hits) if hits.isdigit() else 0


def _is_loopback(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
