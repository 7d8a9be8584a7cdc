"""Labelled data for `scripts/accuracy`: pairs of sentences with grades, and collections with judged queries.

- `stsb-….tsv`: grade, sentence and sentence in tab-separated columns, as the STS benchmark.
- folders with `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`) and `qrels/test.tsv` (a heading,
  then query, document and grade), as the collections of BEIR (https://github.com/beir-cellar/beir).
"""

import json
from dataclasses import dataclass
from pathlib import Path

#: Least grade of a sentence of the STS benchmark that answers a query. A collection's documents need more than 0.
RELEVANT = 3.0
_JUDGED = "qrels/test.tsv"


class DataError(Exception):
    """A file of labelled data cannot be used; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of sentences, and how similar people found them."""

    name: str
    grades: list[float]
    first: list[str]
    second: list[str]


@dataclass(frozen=True, slots=True)
class Collection:
    """Queries, documents and grades, by their ids. Each query has a relevant document."""

    name: str
    queries: dict[str, str]
    documents: dict[str, str]
    grades: dict[str, dict[str, float]]
    #: Least grade of a relevant document.
    relevant: float


def find_sets(folder: Path) -> list[Pairs | Collection]:
    """Return the labelled data of a folder. Raise `DataError` if there are none, or a file is damaged."""
    pairs = [read_pairs(path) for path in sorted(folder.glob("stsb-*.tsv"))]
    collections = [read_collection(path.parent.parent) for path in sorted(folder.glob(f"*/{_JUDGED}"))]
    if not pairs and not collections:
        wanted = f"stsb-….tsv, or folders with corpus.jsonl, queries.jsonl and {_JUDGED}"
        raise DataError(f"{folder} has no labelled data; set --data to a folder with {wanted}")
    return [*pairs, *collections]


def read_pairs(path: Path) -> Pairs:
    """Return the pairs of a file. Raise `DataError` if it is missing or damaged."""
    pairs = Pairs(path.stem, [], [], [])
    for number, line in enumerate(_read_lines(path), 1):
        try:
            grade, first, second = line.split("\t")
            pairs.grades.append(float(grade))
        except ValueError:
            raise DataError(f"{path} line {number} is not a number and two sentences, divided by tabs") from None
        pairs.first.append(first)
        pairs.second.append(second)
    return pairs


def make_collection(pairs: Pairs) -> Collection:
    """Return the search with the first sentences of pairs in all of their second sentences, by the pairs' grades.

    Sentences are their own ids. Sentences without a relevant second sentence are no queries.
    """
    grades: dict[str, dict[str, float]] = {}
    for grade, first, second in zip(pairs.grades, pairs.first, pairs.second, strict=True):
        grades.setdefault(first, {})[second] = grade
    documents = {sentence: sentence for sentence in sorted(set(pairs.second))}
    return _keep_answerable(f"{pairs.name}, search", {first: first for first in grades}, documents, grades, RELEVANT)


def read_collection(folder: Path) -> Collection:
    """Return a collection in the format of BEIR. Raise `DataError` if a file is missing or damaged."""
    documents = {
        document["_id"]: f"{document.get('title') or ''} {document['text']}".strip()
        for document in _read_objects(folder / "corpus.jsonl")
    }
    queries = {query["_id"]: query["text"] for query in _read_objects(folder / "queries.jsonl")}
    grades: dict[str, dict[str, float]] = {}
    for number, line in enumerate(_read_lines(folder / _JUDGED)[1:], 2):
        try:
            query, document, grade = line.split("\t")
            known = query in queries and document in documents
            grades.setdefault(query, {})[document] = float(grade)
        except ValueError:
            known = False
        if not known:
            raise DataError(f"{folder / _JUDGED} line {number} is not a known query, a known document and a grade")
    return _keep_answerable(folder.name, queries, documents, grades, relevant=1.0)


def _keep_answerable(
    name: str,
    queries: dict[str, str],
    documents: dict[str, str],
    grades: dict[str, dict[str, float]],
    relevant: float,
) -> Collection:
    kept = {query: known for query, known in grades.items() if max(known.values()) >= relevant}
    if not kept:
        raise DataError(f"{name} has no query with a document of grade {relevant:.0f} or more; check its grades")
    return Collection(name, {query: queries[query] for query in kept}, documents, kept, relevant)


def _read_lines(path: Path) -> list[str]:
    try:
        # Not `splitlines`, which also divides at other characters than line feeds.
        return path.read_text().rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"could not read {path}: {error}") from None


def _read_objects(path: Path) -> list[dict[str, str]]:
    objects = []
    for number, line in enumerate(_read_lines(path), 1):
        try:
            row = json.loads(line)
            objects.append({**row, "_id": str(row["_id"]), "text": str(row["text"])})
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path} line {number} is not a JSON object with _id and text") from None
    return objects
