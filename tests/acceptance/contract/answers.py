"""Checks of answers to POST /v1/embeddings."""

import math
import re
from typing import Any

import httpx

from tests.acceptance.contract.row import Row, embed
from tests.harness.fake_worker import vector

LONG = "hello " * 400


def data(answer: httpx.Response) -> list[dict[str, Any]]:
    """Return the items of an answer."""
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def length(answer: httpx.Response) -> float:
    """Return the Euclidean length of the first vector."""
    return math.sqrt(sum(value * value for value in data(answer)[0]["embedding"]))


def count(answer: httpx.Response) -> int:
    """Return the number of items, whose indexes must be in order."""
    assert [item["index"] for item in data(answer)] == list(range(len(data(answer))))
    return len(data(answer))


def keys(answer: httpx.Response) -> tuple[list[str], list[str]]:
    """Return the keys of the answer and of its first item, in their order."""
    return list(answer.json()), list(data(answer)[0])


def has_times(answer: httpx.Response) -> bool:
    """Return whether times have at most three decimals, and no part is longer than the whole."""
    names = ("x-queue-time", "x-inference-time", "x-total-time")
    assert all(re.fullmatch(r"\d+(\.\d{1,3})?", answer.headers[name]) for name in names)
    queue, inference, total = (float(answer.headers[name]) for name in names)
    return max(queue, inference) <= total


def count_digits(answer: httpx.Response) -> int:
    """Return the most significant digits of a printed number: float32 needs at most 9."""
    numbers = answer.text.partition("[")[2].partition("[")[2].partition("]")[0].split(",")
    return max(len(number.lower().partition("e")[0].lstrip("-").replace(".", "").lstrip("0")) for number in numbers)


def has_vectors_of(*texts: str) -> Any:
    """Return a check that the vectors are those of the fake model for these texts."""
    return lambda answer: [item["embedding"] for item in data(answer)] == [vector(text).tolist() for text in texts]


def invalid(name: str, message: str, param: str | None = "input", **more: Any) -> Row:
    """Return a row whose request is answered 400."""
    return embed(name, 400, message=message, param=param, **more)


def has_outcomes(*codes: str | None) -> Any:
    """Return a check that each item has a vector ("ok") or an error with this code."""

    def check(answer: httpx.Response) -> bool:
        found = [item["error"]["code"] if "error" in item else "ok" for item in data(answer)]
        exclusive = [(item["embedding"] is None) == ("error" in item) for item in data(answer)]
        return count(answer) == len(codes) and found == list(codes) and all(exclusive)

    return check


def name_rows(sections: dict[str, list[Row]]) -> list[Row]:
    """Return the rows of all sections, with the section in each name."""
    return [
        row._replace(name=f"embeddings, {section}: {row.name}") for section, rows in sections.items() for row in rows
    ]
