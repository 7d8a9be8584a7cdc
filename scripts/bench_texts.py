"""Texts and requests of `scripts/bench`: the same for all servers in every run.

No text repeats in a run, because a cache would answer the repetition. Where the collection has too few texts, halves of
its texts are combined to new ones of the same lengths.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Lengths of a chunk in tokens: what splitters of documents cut, and what models of 256 tokens accept.
CHUNK_TOKENS = (160, 250)
#: Tokens that BERT's tokenizers add to each text.
SPECIAL_TOKENS = 2
#: What the files of texts are.
FORMAT = (
    'each line must be a JSON object with a field "text"; --texts needs a folder with queries.jsonl (short texts) and '
    "mixed.jsonl (texts of any length)"
)

CountTokens = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of requests."""

    name: str
    #: Texts in a request.
    per_request: int
    #: Collection of texts: `queries` or `mixed`.
    collection: str
    #: What the texts are, for the table.
    meaning: str

    @property
    def max_clients(self) -> int:
        """Default number of clients of the largest measurement. 4 clients of bulk requests have more texts open."""
        return 64 if self.per_request == 1 else 4

    @property
    def window(self) -> int:
        """Texts that these clients have open at once."""
        return self.max_clients * self.per_request


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("short", 1, "queries", "one query per request"),
        Workload("mixed", 1, "mixed", "one text of any length per request"),
        Workload("chunk", 1, "mixed", f"one chunk of {CHUNK_TOKENS[0]} to {CHUNK_TOKENS[1]} tokens per request"),
        Workload("bulk", 32, "mixed", "32 texts of any length per request"),
    )
}


def read_collections(folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the collections of a folder by name. Raise `ValueError` if one cannot be read."""
    return {name: read_collection(folder / f"{name}.jsonl") for name in names}


def read_collection(path: Path) -> list[str]:
    """Return the field `text` of each line of JSON. Raise `ValueError` if the file cannot be read."""
    try:
        texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"could not read {path}: {reason}; {FORMAT}") from None
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"a text in {path} is empty or no string; {FORMAT}")
    return texts


def make_texts(workload: Workload, collection: Sequence[str], max_tokens: int, count_tokens: CountTokens) -> list[str]:
    """Return the different texts of a workload that a model of `max_tokens` accepts."""
    texts = list(dict.fromkeys(collection))
    lengths = count_tokens(texts)
    if workload.name == "chunk":
        return join_chunks(texts, lengths)
    return [text for text, tokens in zip(texts, lengths, strict=True) if tokens <= max_tokens]


def join_chunks(texts: Sequence[str], lengths: Sequence[int]) -> list[str]:
    """Return chunks of `CHUNK_TOKENS`, of texts that follow each other."""
    least, most = CHUNK_TOKENS
    chunks: list[str] = []
    parts: list[str] = []
    total = SPECIAL_TOKENS
    for text, tokens in zip(texts, lengths, strict=True):
        inner = tokens - SPECIAL_TOKENS
        if total + inner > most:
            chunks += [" ".join(parts)] if total >= least else []
            parts, total = [], SPECIAL_TOKENS
        if total + inner <= most:
            parts, total = [*parts, text], total + inner
    return chunks


def generate_texts(texts: Sequence[str], seed: int) -> Iterator[str]:
    """Yield different texts: those of the collection in a random order, then combinations of their halves.

    A half is combined with one of a text of about the same length, so that the lengths stay those of the collection.
    """
    if len(texts) < 2:
        raise ValueError(
            f"the workload has {len(texts)} texts, and needs at least 2; give a folder with more with --texts"
        )
    order = random.Random(seed)
    halves = [split_text(text) for text in sorted(texts, key=len)]
    seen: set[str] = set()
    # At distance 0, both halves are those of the same text.
    for distance in range(len(halves)):
        made = [first + second for (first, _), (_, second) in zip(halves, halves[distance:], strict=False)]
        new = [text for text in dict.fromkeys(made) if text not in seen]
        seen.update(new)
        order.shuffle(new)
        yield from new


def split_text(text: str) -> tuple[str, str]:
    """Return the halves of a text, cut at the space next to its middle if there is one."""
    middle = len(text) // 2
    spaces = [place for place in (text.rfind(" ", 0, middle), text.find(" ", middle)) if place >= 0]
    cut = min(spaces, key=lambda place: abs(place - middle), default=middle)
    return text[:cut], text[cut:]


def take_texts(source: Iterator[str], number: int, max_tokens: int, count_tokens: CountTokens) -> list[str]:
    """Return the next texts that the model accepts. Raise `ValueError` if there are too few."""
    taken: list[str] = []
    while len(taken) < number:
        candidates = list(itertools.islice(source, number - len(taken)))
        if not candidates:
            raise ValueError(
                f"the collection gives only {len(taken)} different texts, and {number} are needed; give "
                "a folder of larger ones with --texts, or lower --seconds"
            )
        lengths = count_tokens(candidates)
        taken += [text for text, tokens in zip(candidates, lengths, strict=True) if tokens <= max_tokens]
    return taken


def build_requests(texts: Sequence[str], per_request: int, path: str, fields: Mapping[str, object]) -> list[bytes]:
    """Return HTTP requests of `per_request` texts each; `fields` are the other fields of their bodies."""
    return [
        build_request(texts[start : start + per_request], path, fields)
        for start in range(0, len(texts) - per_request + 1, per_request)
    ]


def build_request(texts: Sequence[str], path: str, fields: Mapping[str, object], key: str = "bench") -> bytes:
    """Return the bytes of a POST; `key` is the API key, which is the client's name where the server has no keys."""
    body = json.dumps({**fields, "input": list(texts)}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
