"""The golden texts, the request for their vectors, and the API key that all clients send."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tests.harness.data import GoldenRow, read_golden
from tests.harness.servers import MODEL

KEY = "a-key-of-the-clients"
#: The largest difference of a value. Vectors depend on the texts in the same batch by 2e-7.
TOLERANCE = 1e-5
MAX_TOKENS = 256

GOLDEN = [row for row in read_golden() if row["untruncated_tokens"] <= MAX_TOKENS]
#: A text that the server refuses. Its golden vector is that of its first 256 tokens.
(TOO_LONG,) = (row for row in read_golden() if row["untruncated_tokens"] > MAX_TOKENS)
TEXTS = [row["text"] for row in GOLDEN]


def make_body(texts: str | list[str], **fields: object) -> dict[str, Any]:
    """Return the body of a request for vectors."""
    return {"model": MODEL, "input": texts, **fields}


def check_vectors(vectors: npt.ArrayLike, rows: list[GoldenRow] = GOLDEN) -> None:
    """Raise AssertionError unless the vectors are the golden ones."""
    values = np.array(vectors, np.float32)
    wanted = np.stack([row["vector"] for row in rows])
    assert values.shape == wanted.shape
    assert np.abs(values - wanted).max() <= TOLERANCE


def check_answer(answer: dict[str, Any], rows: list[GoldenRow] = GOLDEN) -> None:
    """Raise AssertionError unless the golden vectors are in an answer, in order."""
    assert [item["index"] for item in answer["data"]] == list(range(len(rows))), answer
    check_vectors([item["embedding"] for item in answer["data"]], rows)
