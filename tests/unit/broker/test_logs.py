"""Log lines of records with arbitrary content."""

import io
import json
import logging
import unicodedata

import pytest

from broker.shared.logs import INDENT, LineHandler, build_formatter

#: C0, DEL and C1; line separators; bidirectional controls; half a surrogate pair; invisible characters.
ODD = [*map(chr, (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))]
ODD += ["\u061c", "\u200e", "\u200f", "\ud800", "\udcff", "\ufeff", "\U000e0041"]
FORGED = "".join(ODD) + "\n2026-01-01 00:00:00,000 CRITICAL broker: forged\n\x1b[2Jforged"


class BrokenError(Exception):
    """An error with a text from outside."""


@pytest.fixture(params=["text", "json"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return a format."""
    return str(request.param)


def logged(kind: str, message: str, *args: object, **more: object) -> str:
    """Return what a logger writes for a message with a traceback of forged exceptions."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(build_formatter("test", kind))
    log = logging.Logger("anybody's")
    log.addHandler(handler)
    try:
        try:
            raise BrokenError(FORGED)
        except BrokenError as cause:
            raise ValueError(FORGED) from cause
    except ValueError:
        log.exception(message, *args, stack_info=True, extra=more)
    return written.getvalue()


def texts(value: object) -> list[str]:
    """Return all strings in a JSON value, field names included."""
    match value:
        case str():
            return [value]
        case dict():
            return [text for pair in value.items() for one in pair for text in texts(one)]
        case list():
            return [text for one in value for text in texts(one)]
    return []


def test_record_fields_cannot_forge_a_line(kind: str) -> None:
    extra = {"one": FORGED, "many": [FORGED, {FORGED: (FORGED, {FORGED})}], "other": BrokenError(FORGED), "number": 1}
    written = logged(kind, "message %s " + FORGED, FORGED, **extra)
    assert {one for one in written if unicodedata.category(one)[0] == "C"} == {"\n"}
    assert "forged" in written
    first, *rest = written.removesuffix("\n").split("\n")
    if kind == "text":
        assert first.index("ERROR test: message ") == len("2026-01-01 00:00:00,000 ")
        assert rest
        assert all(line.startswith(INDENT) for line in rest)
        assert f"{INDENT}Traceback (most recent call last):" in rest
        return
    assert not rest
    record = json.loads(first)
    for name in ("exc_info", "stack_info"):
        lines = record.pop(name).split("\n")
        assert len(lines) > 2
        assert all(line.startswith(INDENT) and line.isprintable() for line in lines)
    assert all(text.isprintable() for text in texts(record))
    assert record["many"][0] == record["one"]
    assert record["number"] == 1


def test_printable_text_is_not_escaped(kind: str) -> None:
    text = 'größer \\ "中" 😀 \' \\n'
    written = logged(kind, "%s", text)
    assert text in (written if kind == "text" else json.loads(written)["message"])


def test_added_line_equals_a_logged_one(kind: str) -> None:
    written = io.StringIO()
    handler = LineHandler(written)
    handler.setFormatter(build_formatter("test", kind))
    log = logging.Logger("anybody's")
    log.addHandler(handler)
    log.info("%s", FORGED, extra={"one": FORGED})
    handler.add_line("INFO", FORGED, {"one": FORGED})
    handler.flush()
    lines = written.getvalue().splitlines()
    if kind == "text":
        assert len({line[len("2026-01-01 00:00:00,000 ") :] for line in lines}) == 1
    else:
        records = [json.loads(line) for line in lines]
        assert all(record.pop("time") for record in records)
        assert list(records[0]) == list(records[1])
        assert records[0] == records[1]
    assert len(lines) == 2


def test_added_lines_keep_their_order() -> None:
    written = io.StringIO()
    handler = LineHandler(written)
    handler.setFormatter(build_formatter("test", "text"))
    handler.add_line("INFO", "first", {})
    handler.add_line("INFO", "second", {})
    assert not written.getvalue()
    handler.handle(logging.makeLogRecord({"levelname": "INFO", "msg": "third"}))
    assert [line.split(": ")[1] for line in written.getvalue().splitlines()] == ["first", "second", "third"]


def test_closed_stream_raises_no_error() -> None:
    written = io.StringIO()
    handler = LineHandler(written)
    handler.setFormatter(build_formatter("test", "text"))
    handler.add_line("INFO", "lost", {})
    written.close()
    handler.flush()
