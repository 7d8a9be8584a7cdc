"""A Hugging Face hub on this machine, for huggingface_hub with HF_ENDPOINT: models, downloads with ranges, errors."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class FakeModel:
    """A model on the hub: files by branch, and what is wrong with the model."""

    folder: Path
    commit: str = "a" * 40
    gated: bool = False
    private: bool = False


@dataclass
class FakeHub:
    """The models of a hub, and what clients asked for."""

    url: str
    models: dict[str, FakeModel] = field(default_factory=dict)
    #: Method, path and Range header of each request.
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    #: Token that private and gated models require.
    token: str = "hf_secret"
    #: Bytes after which downloads break off; 0: never.
    breaks_after: int = 0
    #: Status of every answer, if not 0.
    status: int = 0

    def list_downloads(self) -> list[str]:
        """Return the files that were downloaded, in the order of their names."""
        return sorted(
            {path.partition("/resolve/")[2][41:] for method, path, _ in self.requests if method == "GET"} - {""}
        )


@contextlib.contextmanager
def run_fake_hub() -> Iterator[FakeHub]:
    """Serve a hub without models."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def _answer(self) -> None:
        self.hub.requests.append((self.command, unquote(self.path), self.headers.get("Range", "")))
        if self.hub.status:
            return self._send(self.hub.status, b"")
        path = urlsplit(self.path)
        parts = [unquote(part) for part in path.path.split("/")[1:]]
        if parts == ["api", "models"]:
            return self._send_list(parse_qs(path.query))
        is_api = parts[:2] == ["api", "models"]
        owner, title, kind, revision, *rest = [*(parts[2:] if is_api else parts), "", ""]
        name, inside = f"{owner}/{title}", "/".join(rest).rstrip("/")
        model = self.hub.models.get(name)
        has_token = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if model is None or (model.private and not has_token):
            return self._send_error(401 if model is None else 404, "RepoNotFound")
        if revision not in ("main", model.commit):
            return self._send_error(404, "RevisionNotFound")
        if kind == "revision":
            files = [{"rfilename": file} for file in _list_files(model.folder)]
            return self._send_json({"id": name, "sha": model.commit, "siblings": files, "gated": model.gated})
        if model.gated and not has_token:
            return self._send_error(403, "GatedRepo")
        if kind == "tree":
            return self._send_json([_describe_file(model.folder, file) for file in _list_files(model.folder)])
        return self._send_file(model, inside)

    def _send_list(self, query: dict[str, list[str]]) -> None:
        names = [
            name
            for name in self.hub.models
            if name.startswith(f"{query.get('author', [''])[0]}") and query.get("search", [""])[0] in name
        ]
        self._send_json([{"id": name, "modelId": name} for name in names])

    def _send_file(self, model: FakeModel, file: str) -> None:
        content = (model.folder / file).read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": model.commit}
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if wanted else 200, content[start:], headers)

    def _send_error(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if 0 < self.hub.breaks_after < len(body):
            self.wfile.write(body[: self.hub.breaks_after])
            self.close_connection = True
        else:
            self.wfile.write(body)


def _list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _describe_file(folder: Path, file: str) -> dict[str, Any]:
    content = (folder / file).read_bytes()
    return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
