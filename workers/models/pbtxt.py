"""Parser of protobuf's text format, in which OVMS and MediaPipe write graphs. Pure.

The grammar is that of https://protobuf.dev/reference/protobuf/textformat-spec, without a schema: a message is a dict
from each field's name to the list of its values, and a value is a text or a message. Numbers, enums and booleans stay
texts.
"""

import re
from typing import Any, NoReturn

#: Fields of a message: the values of each name, in the order of the text.
Message = dict[str, list[Any]]

#: Largest text, in characters, and deepest nesting of messages. Graphs have a few hundred characters and 4 levels.
MAX_CHARACTERS, MAX_DEPTH = 1 << 20, 100

_BLANK = re.compile(r"(?:\s+|#[^\n]*)*")
_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<word>[-+]?[\w.][\w.+-]*)|(?P<sign>[{}<>\[\]:,;/])"""
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3})|(.))")
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
#: Characters that are in no path and cannot be sent: NUL, and half of a surrogate pair.
_FORBIDDEN = re.compile("[\0\ud800-\udfff]")
_CLOSING = {"{": "}", "<": ">"}


class PbtxtError(ValueError):
    """The text is not protobuf text. The message names the line."""


def parse_pbtxt(text: str) -> Message:
    """Return the message that a text holds. Raise `PbtxtError` if the text is invalid."""
    if len(text) > MAX_CHARACTERS:
        raise PbtxtError(f"longer than {MAX_CHARACTERS} characters")
    return _Parser(text).parse_fields("", 0)


class _Parser:
    """Reader of one text, one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self._advance()

    def parse_fields(self, closing: str, depth: int) -> Message:
        """Return the fields up to the closing sign, or up to the end of the text if that is ""."""
        if depth > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} nested messages")
        message: Message = {}
        while self._token != closing or self._kind == "text":
            name = self._parse_name()
            has_colon = self._accept(":")
            message.setdefault(name, []).extend(self._parse_values(depth, has_colon=has_colon))
            _ = self._accept(",") or self._accept(";")
        if closing:
            self._advance()
        return message

    def _advance(self) -> None:
        """Read the next token; `_token` is "" and `_kind` is None at the end."""
        blank = _BLANK.match(self._text, self._end)
        self._start = blank.end() if blank else self._end
        match = _TOKEN.match(self._text, self._start)
        if match is None and self._start < len(self._text):
            self._fail(f"unexpected {self._text[self._start]!r}")
        self._token, self._kind = (match[0], match.lastgroup) if match else ("", None)
        self._end = match.end() if match else self._start

    def _accept(self, sign: str) -> bool:
        """Read the sign if it comes next, and return whether it did."""
        found = self._kind == "sign" and self._token == sign
        if found:
            self._advance()
        return found

    def _parse_word(self) -> str:
        if self._kind != "word":
            self._fail(f"expected a name or a value, not {self._token!r}")
        word = self._token
        self._advance()
        return word

    def _parse_name(self) -> str:
        """Return a field's name; of an extension or an Any in brackets, the full name of the type."""
        if not self._accept("["):
            return self._parse_word()
        name = self._parse_word()
        while self._accept("/"):
            name = self._parse_word()
        if not self._accept("]"):
            self._fail("expected ]")
        return name

    def _parse_values(self, depth: int, *, has_colon: bool) -> list[Any]:
        """Return a field's value, or the values of a list in brackets."""
        if not self._accept("["):
            return [self._parse_value(depth, has_colon=has_colon)]
        values: list[Any] = []
        while not self._accept("]"):
            if values and not self._accept(","):
                self._fail("expected , or ]")
            values.append(self._parse_value(depth, has_colon=True))
        return values

    def _parse_value(self, depth: int, *, has_colon: bool) -> Any:
        if self._kind == "sign" and self._token in _CLOSING:
            closing = _CLOSING[self._token]
            self._advance()
            return self.parse_fields(closing, depth + 1)
        if not has_colon:
            self._fail("expected : or {")
        if self._kind != "text":
            return self._parse_word()
        parts = []
        while self._kind == "text":
            parts.append(_ESCAPE.sub(_unescape, self._token[1:-1]))
            if _FORBIDDEN.search(parts[-1]):
                self._fail("a text has NUL or half of a surrogate pair")
            self._advance()
        return "".join(parts)

    def _fail(self, reason: str) -> NoReturn:
        line = self._text.count("\n", 0, self._start) + 1
        raise PbtxtError(f"line {line}: {reason}")


def _unescape(match: re.Match[str]) -> str:
    hexadecimal = match[1] or match[2] or match[3]
    code = int(hexadecimal, 16) if hexadecimal else int(match[4], 8) if match[4] else -1
    if code < 0:
        return _LETTERS.get(match[5], match[5])
    return chr(code) if code < 0x110000 else "\ufffd"
