"""Readers of the files in `tests/data`."""

import base64
import json
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

DATA = Path(__file__).resolve().parents[1] / "data"


class GoldenRow(TypedDict):
    """A text, its token counts after and before truncation, and its vector by sentence-transformers."""

    text: str
    tokens: int
    untruncated_tokens: int
    vector: npt.NDArray[np.float32]


def read_golden() -> list[GoldenRow]:
    """Return the 40 golden rows of all-MiniLM-L6-v2."""
    rows: list[GoldenRow] = json.loads((DATA / "minilm-golden.json").read_text(), object_hook=decode_vector)["rows"]
    assert len(rows) == 40
    return rows


def decode_vector(values: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object of the golden file with its vector as an array."""
    if encoded := values.pop("vector_f32_base64", ""):
        values["vector"] = np.frombuffer(base64.b64decode(encoded), "<f4")
    return values


def read_texts(name: str, max_tokens: int = 512) -> list[str]:
    """Return the texts of `queries` or `mixed` that have at most `max_tokens` tokens."""
    lines = map(json.loads, (DATA / f"{name}.jsonl").read_text().splitlines())
    return [line["text"] for line in lines if line["tokens"] <= max_tokens]
