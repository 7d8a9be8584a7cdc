"""docs/examples/rag: passages of documents, and the sections of the labelled questions."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "examples" / "rag"
sys.path.insert(0, str(FOLDER))

from passages import LONGEST, read_questions, split_document  # noqa: E402  after the path is set


def test_sections_of_questions_exist() -> None:
    pages = {path.name: path for path in (ROOT / "docs").glob("*.md")}
    known = {passage["id"].rpartition("/")[0] for path in pages.values() for passage in split_document(path)}
    missing = {name for question in read_questions(set(pages)) for name in question["sections"]} - known
    assert not missing, f"set the new names of these sections in {FOLDER}/questions.jsonl"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# A\n\none\ntwo\n\n- three\n- four\n", [("x.md#a/0", "A", "one\ntwo\n- three\n- four")]),
        ("# A\n## B c\none\n\n# D\ntwo\n", [("x.md#b-c/0", "A: B c", "one"), ("x.md#d/0", "A: D", "two")]),
        ("# A\n```\n\n# no heading\n```\n", [("x.md#a/0", "A", "```\n# no heading\n```")]),
        (
            "# A\n" + "word " * 200,
            [("x.md#a/0", "A", "word " * 139 + "word"), ("x.md#a/1", "A", "word " * 59 + "word")],
        ),
    ],
)
def test_passages_end_at_headings_and_blocks(tmp_path: Path, text: str, expected: list[tuple[str, str, str]]) -> None:
    (tmp_path / "x.md").write_text(text)
    passages = list(split_document(tmp_path / "x.md"))
    assert [(each["id"], each["heading"], each["text"]) for each in passages] == expected
    assert all(len(each["text"]) <= LONGEST for each in passages)


def test_questions_are_labelled_once() -> None:
    lines = (FOLDER / "questions.jsonl").read_text().splitlines()
    assert len({json.loads(line)["question"] for line in lines}) == len(lines)
