"""`scripts/serve` with the default model, and its vectors."""

import base64
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt

from tests.harness.processes import ROOT, Program, descendants, free_port, until

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
Array = npt.NDArray[np.float32]


class Server:
    """Running `scripts/serve` on a free port."""

    def __init__(self, folder: Path, *flags: str, scheme: str = "http", **environment: str) -> None:
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        command = ["env", *(f"{name}={value}" for name, value in environment.items()), str(ROOT / "scripts/serve")]
        # The default address of the broker's metrics would collide with servers of other test runs.
        command += ["--port", str(self.port), "--metrics-bind", f"127.0.0.1:{free_port()}"]
        command += ["--data", str(folder / "data")]
        self.program = Program("serve", [*command, *flags], folder / "serve.log")
        until(lambda: f"{self.url}/v1/embeddings" in self.program.output or self._ended(), 120, "scripts/serve")

    def _ended(self) -> bool:
        assert self.program.process.poll() is None, self.program.output
        return False

    def children(self) -> list[int]:
        """Return the ids of all processes of the server."""
        return descendants(self.program.process.pid)

    def embed(self, texts: Sequence[str], **fields: object) -> httpx.Response:
        """Return the answer of POST /v1/embeddings, with base64 vectors unless `fields` changes that."""
        body = {"model": MODEL, "input": list(texts), "encoding_format": "base64", **fields}
        return httpx.post(f"{self.url}/v1/embeddings", json=body, timeout=60)


def rows(answer: httpx.Response) -> Array:
    """Return the vectors of an answer, shape [inputs, dimension]."""
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    vectors = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in data]
    return np.stack(vectors)
