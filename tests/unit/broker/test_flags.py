"""Command lines of all programs: errors of one sentence, no abbreviations."""

import argparse
import ast

import pytest

from broker.shared.flags import FlagParser, parse_count, parse_duration
from tests.harness.processes import ROOT


def make_parser() -> FlagParser:
    """Return a parser with flags of several kinds."""
    parser = FlagParser(prog="program")
    parser.add_argument("--number", type=int)
    parser.add_argument("--share", type=float)
    parser.add_argument("--word", "-w", choices=("a", "b"))
    parser.add_argument("--workers", type=parse_count)
    parser.add_argument("--seconds", type=parse_duration)
    parser.add_argument("folder")
    return parser


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("f --number x", "--number is 'x', but must be a whole number"),
        ("f --share x", "--share is 'x', but must be a number"),
        ("f --word c", "-w is 'c', but must be one of 'a', 'b'"),
        ("f --workers 0", "--workers: '0' is not a whole number of at least 1"),
        ("f --workers ²", "--workers: '²' is not a whole number of at least 1"),
        ("f --seconds inf", "--seconds: 'inf' is not a number above 0"),
        ("f --seconds s", "--seconds: 's' is not a number above 0"),
        ("f --number", "--number has no value"),
        ("--number 1", "folder is missing"),
        ("f --numbre 1", "unrecognized arguments: --numbre 1; did you mean --number?"),
        ("f --num=1", "unrecognized arguments: --num=1; did you mean --number?"),
        ("f --wor 1", "unrecognized arguments: --wor 1; did you mean --word?"),
        ("f --xyzzy g", "unrecognized arguments: --xyzzy g"),
        ("f g", "unrecognized arguments: g"),
        ("f --word=a=b --number=1=2", "-w is 'a=b', but must be one of 'a', 'b'"),
    ],
)
def test_error_is_one_sentence(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_parser().parse_args(words.split())
    hint = "" if sentence.endswith("?") else "; see program --help"
    assert capsys.readouterr().err == f"program: {sentence}{hint}\n"


def test_other_message_stays_as_it_is() -> None:
    assert make_parser().describe_error("conflicting flags") == "conflicting flags"


def test_tasks_have_the_same_parser(capsys: pytest.CaptureFixture[str]) -> None:
    parser = FlagParser(prog="program")
    parser.add_subparsers(dest="task").add_parser("export").add_argument("--source")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["export", "--sour", "x"])
    assert capsys.readouterr().err.count("\n") == 1


def test_count_and_duration_are_read() -> None:
    assert (parse_count("12"), parse_duration("0.5")) == (12, 0.5)
    with pytest.raises(argparse.ArgumentTypeError):
        parse_duration("0")


def test_no_program_accepts_abbreviations() -> None:
    for folder in ("broker", "frontend", "workers", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            for call in calls:
                if ast.unparse(call.func) == "argparse.ArgumentParser":
                    assert "allow_abbrev=False" in map(ast.unparse, call.keywords), path
