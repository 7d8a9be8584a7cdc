"""What rows ask of an answer to POST /v1/embeddings."""

import math
import re
from typing import Any

import httpx

from tests.acceptance.contract.row import Row, embed
from tests.harness.fake_worker import vector

LONG = "hello " * 400


def data(answer: httpx.Response) -> list[dict[str, Any]]:
    """The items."""
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def length(answer: httpx.Response, at: int = 0) -> float:
    """Of a vector."""
    return math.sqrt(sum(value * value for value in data(answer)[at]["embedding"]))


def number(answer: httpx.Response) -> int:
    """Of vectors, whose indexes are in order."""
    assert [item["index"] for item in data(answer)] == list(range(len(data(answer))))
    return len(data(answer))


def keys(answer: httpx.Response, at: int = 0) -> tuple[list[str], list[str]]:
    """Of the answer and of an item, in their order."""
    return list(answer.json()), list(data(answer)[at])


def milliseconds(answer: httpx.Response) -> bool:
    """Whether the times are numbers with three decimals at most, and no part is longer than the whole."""
    names = ("x-queue-time", "x-inference-time", "x-total-time")
    assert all(re.fullmatch(r"\d+(\.\d{1,3})?", answer.headers[name]) for name in names)
    queue, inference, total = (float(answer.headers[name]) for name in names)
    return max(queue, inference) <= total


def most_digits(answer: httpx.Response) -> int:
    """Significant digits of the number that has the most, as it is printed: float32 needs 9 at most."""
    numbers = answer.text.partition("[")[2].partition("[")[2].partition("]")[0].split(",")
    return max(len(number.lower().partition("e")[0].lstrip("-").replace(".", "").lstrip("0")) for number in numbers)


def of_text(*texts: str) -> Any:
    """Whether the vectors are those that the fake model has for these texts."""
    return lambda answer: [item["embedding"] for item in data(answer)] == [vector(text).tolist() for text in texts]


def bad(name: str, message: str, param: str | None = "input", **more: Any) -> Row:
    """A 400."""
    return embed(name, 400, message=message, param=param, **more)


def outcome(*codes: str | None) -> Any:
    """Whether each item has a vector ("ok") or an error of this code, in its place."""

    def check(answer: httpx.Response) -> bool:
        found = [item["error"]["code"] if "error" in item else "ok" for item in data(answer)]
        wholes = [(item["embedding"] is None) == ("error" in item) for item in data(answer)]
        return number(answer) == len(codes) and found == list(codes) and all(wholes)

    return check


def rows(sections: dict[str, list[Row]]) -> list[Row]:
    """The rows of sections, whose names tell them."""
    return [
        row._replace(name=f"embeddings, {section}: {row.name}") for section, rows in sections.items() for row in rows
    ]
