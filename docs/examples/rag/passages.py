"""Markdown documents as passages: `python passages.py DOCUMENT... > passages.jsonl`. Needs only Python.

The other programs of this folder use its functions to read passages and questions, and to measure a search.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

#: Most characters of a passage: about 200 tokens of English, because all-MiniLM-L6-v2 reads only 256.
LONGEST = 700
#: Passages that an answer is expected in.
TOP = 5


class Passage(TypedDict):
    """A part of one section of a document."""

    #: Document, section and number, such as `api.md#errors/2`.
    id: str
    heading: str
    text: str


class Question(TypedDict):
    """A question, and the sections that answer it."""

    question: str
    sections: list[str]


def split_document(path: Path) -> Iterator[Passage]:
    """Yield the passages of a Markdown document. No passage crosses a heading."""
    title, heading, fenced = "", "", False
    blocks: list[str] = []
    for line in [*path.read_text().split("\n"), "# end"]:
        found = None if fenced else re.match(r"#+ (.+)", line)
        if found:
            yield from _make_passages(path.name, title, heading, blocks)
            heading, blocks = found[1], []
            title = title or heading
            continue
        fenced ^= line.startswith("```")
        # Paragraphs, rows of tables and items of lists are blocks.
        if not blocks or not line or line.startswith(("| ", "- ")):
            blocks.append(line)
        else:
            blocks[-1] += f"\n{line}"


def _make_passages(name: str, title: str, heading: str, blocks: Sequence[str]) -> Iterator[Passage]:
    section = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
    texts: list[str] = []
    for block in blocks:
        for piece in re.findall(rf"(?s).{{1,{LONGEST}}}(?:\s|$)|\S+", block.strip("\n")):
            if texts and len(texts[-1]) + len(piece) < LONGEST:
                texts[-1] += f"\n{piece.rstrip()}"
            else:
                texts.append(piece.rstrip())
    full = heading if heading == title else f"{title}: {heading}"
    for number, text in enumerate(texts):
        yield {"id": f"{name}#{section}/{number}", "heading": full, "text": text}


def read_passages(path: str) -> list[Passage]:
    """Return the passages of a file that this program has written."""
    return [json.loads(line) for line in Path(path).read_text().split("\n") if line]


def read_questions(documents: set[str]) -> list[Question]:
    """Return the labelled questions whose answers are in these documents."""
    path = Path(__file__).with_name("questions.jsonl")
    questions: list[Question] = [json.loads(line) for line in path.read_text().splitlines()]
    return [each for each in questions if {name.partition("#")[0] for name in each["sections"]} <= documents]


def report(search: Callable[[str], list[Passage]], documents: set[str], question: str = "") -> None:
    """Print the passages for a question; without a question, how many of the labelled ones find a right section."""
    if question:
        for passage in search(question):
            print(f"{passage['id']}\n{passage['text']}\n")
        return
    questions, found = read_questions(documents), 0
    for each in questions:
        sections = {passage["id"].rpartition("/")[0] for passage in search(each["question"])}
        if sections.isdisjoint(each["sections"]):
            print(f"not found: {each['question']} {each['sections']}", file=sys.stderr)
        else:
            found += 1
    print(f"recall@{TOP}: {found} of {len(questions)} questions")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for passage in split_document(Path(argument)):
            print(json.dumps(passage))
