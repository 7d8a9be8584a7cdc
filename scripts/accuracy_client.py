"""Client of `scripts/accuracy`: the vectors of texts from a running server. Needs only numpy, also in MTEB's venv."""

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

#: Texts in a request.
BATCH = 32
#: Requests at a time.
IN_FLIGHT = 4
#: Seconds until an answer must be there; a server's own limit is 60 s.
TIMEOUT_S = 90.0
#: Attempts of a request that the server answers with 429 or 503, and the longest pause between them in seconds.
ATTEMPTS = 10
LONGEST_PAUSE_S = 30.0

Array = npt.NDArray[np.float32]


class ServerError(Exception):
    """The server has no vectors for these texts; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Client:
    """Client of one model of a server."""

    #: With scheme, without `/v1`.
    url: str
    model: str
    #: API key, or "" if the server needs none.
    key: str = ""

    def embed(self, texts: Sequence[str], **fields: object) -> Array:
        """Return the vectors of texts, scaled to length 1, shape [texts, dimension]. Texts that are too long are cut.

        `fields` are fields of the request, such as `prompt_name`. Raise `ServerError` if a request fails.
        """
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            starts = range(0, len(texts), BATCH)
            parts = list(pool.map(lambda start: self._embed_batch(texts[start : start + BATCH], fields), starts))
        return np.concatenate(parts)

    def read_model(self) -> dict[str, Any]:
        """Return the model's entry in GET /v1/models. Raise `ServerError` if there is none."""
        models = self._send("/v1/models")["data"]
        names = [model["id"] for model in models]
        if self.model not in names:
            raise ServerError(f"{self.url} does not serve the model {self.model!r}; choose from {', '.join(names)}")
        return dict(models[names.index(self.model)])

    def list_models(self) -> list[str]:
        """Return the names of all models. Raise `ServerError` if the server does not answer."""
        return [model["id"] for model in self._send("/v1/models")["data"]]

    def _embed_batch(self, texts: Sequence[str], fields: dict[str, object]) -> Array:
        body = {"model": self.model, "input": list(texts), "encoding_format": "base64", "truncate": "end"}
        answer = self._send("/v1/embeddings", {**body, "normalize": True, **fields})
        rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer["data"]]
        return np.stack(rows)

    def _send(self, path: str, body: dict[str, object] | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "x-vecmill-lane": "bulk"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                    return dict(json.load(answer))
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503) or attempt == ATTEMPTS:
                    raise ServerError(f"{request.full_url} answered {error.code}: {_read_message(error)}") from None
                time.sleep(min(float(error.headers.get("Retry-After") or 1), LONGEST_PAUSE_S))
            except (OSError, ValueError) as error:
                raise ServerError(f"{request.full_url} did not answer: {error}; is a server running there?") from None
        raise AssertionError


def _read_message(error: urllib.error.HTTPError) -> str:
    content = error.read().decode(errors="replace")
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return content[:200]
