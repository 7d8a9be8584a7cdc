"""A row of the contract: a request, and what its answer must be."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import httpx

#: Names of models. tests/harness/fake_worker.py serves the fake model, whose token ids are the characters of a text.
REAL, FAKE = "sentence-transformers/all-MiniLM-L6-v2", "fake"
Check = Callable[[httpx.Response], bool]


class Row(NamedTuple):
    """A request, and what its answer must be."""

    name: str
    method: str
    path: str
    status: int
    #: Bytes, or a value to send as JSON.
    body: Any = None
    headers: Mapping[str, str] = {}
    #: `real` serves the default model and `fake` the fake one; `locked` serves the fake one and requires API keys;
    #: `strict` serves it with a default prompt and low limits; `states` knows models that are not served; `empty` knows
    #: no model; `stored` stores files.
    server: str = "real"
    #: Part of the error's message, its param and its code; empty: any.
    message: str = ""
    param: str | None = ""
    code: str | None = ""
    #: Fields that the answer must have, with their values.
    json: Mapping[str, Any] = {}
    #: Headers that the answer must have, with their values; `...`: any value.
    sends: Mapping[str, Any] = {}
    check: Check | None = None
    #: If OVMS or OpenAI behave differently: the first cell of the row in docs/differences.md.
    differs: str = ""

    def send(self, url: str) -> httpx.Response:
        """Send the request to a server, and return the answer."""
        content = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        return httpx.request(
            self.method, url + self.path, content=b"" if self.body is None else content, headers=headers, timeout=60
        )

    def check_answer(self, answer: httpx.Response) -> None:
        """Raise `AssertionError` if the answer is not as the row demands."""
        assert answer.status_code == self.status, answer.text[:500]
        assert answer.headers["x-request-id"]
        if self.status >= 400:
            self._check_error(answer)
        for name, value in self.json.items():
            assert answer.json()[name] == value, name
        for name, value in self.sends.items():
            assert name in answer.headers, name
            assert value in (..., answer.headers[name]), answer.headers[name]
        assert self.check is None or self.check(answer), answer.text[:500]

    def _check_error(self, answer: httpx.Response) -> None:
        assert answer.headers["content-type"] == "application/json"
        assert list(answer.json()) == ["error"]
        error = answer.json()["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert error["message"]
        assert error["type"] in ("invalid_request_error", "server_error", "rate_limit_error")
        assert self.message in error["message"], error["message"]
        assert self.param in ("", error["param"]), error["param"]
        assert self.code in ("", error["code"]), error["code"]


def embed(name: str, status: int = 200, *, model: Any = REAL, path: str = "/v1/embeddings", **more: Any) -> Row:
    """Return a row of POST /v1/embeddings.

    Arguments that are not fields of `Row` are fields of the body; the value `...` omits a field.
    """
    row_fields = {field: more.pop(field) for field in list(more) if field in Row._fields}
    body = row_fields.pop("body", None)
    if body is None:
        fields = {"model": model, "input": "hello world", **more}
        body = {field: value for field, value in fields.items() if value is not ...}
    return Row(name, "POST", path, status, body, **row_fields)


def fake(name: str, status: int = 200, **more: Any) -> Row:
    """Return a row like `embed`, with the fake model."""
    return embed(name, status, model=FAKE, server="fake", **more)


def strict(name: str, status: int = 200, **more: Any) -> Row:
    """Return a row like `embed`, with the fake model on the server with a default prompt and low limits."""
    return embed(name, status, model=FAKE, server="strict", **more)


def tokenize(name: str, status: int = 200, *, path: str = "/v3/tokenize", **more: Any) -> Row:
    """Return a row of POST /v3/tokenize."""
    row_fields = {field: more.pop(field) for field in list(more) if field in Row._fields}
    fields = {"model": REAL, "text": "hello world", **more}
    body = row_fields.pop("body", {field: value for field, value in fields.items() if value is not ...})
    return Row(f"tokenize: {name}", "POST", path, status, body, **row_fields)


def get(path: str, status: int = 200, **more: Any) -> Row:
    """Return a row of a GET request."""
    name = more.pop("name", "")
    return Row(f"GET {path} {name}".rstrip(), "GET", path, status, **more)
