"""A row of the contract."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import httpx

#: The fake model is served by tests/harness/fake_worker.py: its token ids are the characters of a text.
REAL, FAKE = "sentence-transformers/all-MiniLM-L6-v2", "fake"
Check = Callable[[httpx.Response], bool]


class Row(NamedTuple):
    """A request, and what must hold of its answer."""

    name: str
    method: str
    path: str
    status: int
    #: Sent as JSON, unless it is bytes.
    body: Any = None
    headers: Mapping[str, str] = {}
    #: `real` has the default model, `fake` the fake one, `locked` too, and wants keys; `strict` has it with a default
    #: prompt, and allows little; `states` has models that cannot be asked; `empty` knows none.
    server: str = "real"
    #: Part of the error's message; its param and its code.
    message: str = ""
    param: str | None = ""
    code: str | None = ""
    #: Fields that the answer has, compared as they are.
    json: Mapping[str, Any] = {}
    #: Headers that the answer has; a value of ... is any.
    sends: Mapping[str, Any] = {}
    check: Check | None = None
    #: Where OVMS (or OpenAI) does otherwise: the first cell of the row in docs/differences.md.
    differs: str = ""

    def ask(self, url: str) -> httpx.Response:
        """Send it."""
        content = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        return httpx.request(
            self.method, url + self.path, content=b"" if self.body is None else content, headers=headers, timeout=60
        )

    def hold(self, answer: httpx.Response) -> None:
        """AssertionError says what does not."""
        assert answer.status_code == self.status, answer.text[:500]
        assert answer.headers["x-request-id"]
        if self.status >= 400:
            self._hold_error(answer)
        for name, value in self.json.items():
            assert answer.json()[name] == value, name
        for name, value in self.sends.items():
            assert name in answer.headers, name
            assert value in (..., answer.headers[name]), answer.headers[name]
        assert self.check is None or self.check(answer), answer.text[:500]

    def _hold_error(self, answer: httpx.Response) -> None:
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
    """A row of POST /v1/embeddings. What is no field of a row is one of the body; `...` leaves it out."""
    mine = {field: more.pop(field) for field in list(more) if field in Row._fields}
    body = mine.pop("body", None)
    if body is None:
        fields = {"model": model, "input": "hello world", **more}
        body = {field: value for field, value in fields.items() if value is not ...}
    return Row(name, "POST", path, status, body, **mine)


def fake(name: str, status: int = 200, **more: Any) -> Row:
    """As `embed`, of the fake model."""
    return embed(name, status, model=FAKE, server="fake", **more)


def strict(name: str, status: int = 200, **more: Any) -> Row:
    """As `embed`, of the fake model with a default prompt on the server that allows little."""
    return embed(name, status, model=FAKE, server="strict", **more)


def tokenize(name: str, status: int = 200, *, path: str = "/v3/tokenize", **more: Any) -> Row:
    """A row of POST /v3/tokenize."""
    mine = {field: more.pop(field) for field in list(more) if field in Row._fields}
    fields = {"model": REAL, "text": "hello world", **more}
    body = {field: value for field, value in fields.items() if value is not ...}
    return Row(f"tokenize: {name}", "POST", path, status, body, **mine)


def get(path: str, status: int = 200, **more: Any) -> Row:
    """A row of a GET."""
    name = more.pop("name", "")
    return Row(f"GET {path} {name}".rstrip(), "GET", path, status, **more)
