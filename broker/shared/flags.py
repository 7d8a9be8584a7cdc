"""Command lines of all programs: flags are not abbreviated, and an error is one sentence. Needs only Python."""

import argparse
import difflib
import re
import sys
from typing import Any, NoReturn

from broker.shared.exit import REFUSED_STATUS

#: argparse's sentences, and those that users get.
_REWORDED = (
    (r"argument (?:\S+/)?(\S+): invalid choice: (.+) \(choose from (.+)\)", r"\1 is \2, but must be one of \3"),
    (r"argument (?:\S+/)?(\S+): invalid int value: (.+)", r"\1 is \2, but must be a whole number"),
    (r"argument (?:\S+/)?(\S+): invalid float value: (.+)", r"\1 is \2, but must be a number"),
    (r"argument (?:\S+/)?(\S+): expected (?:one|at least one) argument", r"\1 has no value"),
    (r"argument (?:\S+/)?(\S+): (.+)", r"\1: \2"),
    (r"the following arguments are required: (.+)", r"\1 is missing"),
)
_UNKNOWN = "unrecognized arguments: "


class FlagParser(argparse.ArgumentParser):
    """Parser of a program's flags."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        # A program with more flags would refuse an abbreviation that an earlier version accepted.
        super().__init__(*arguments, **{"allow_abbrev": False} | options)

    def error(self, message: str) -> NoReturn:
        """Print a sentence, without the usage, and exit with status 2."""
        sentence = self.describe_error(message)
        hint = "" if sentence.endswith("?") else f"; see {self.prog} --help"
        print(f"{self.prog}: {sentence}{hint}", file=sys.stderr)
        sys.exit(REFUSED_STATUS)

    def describe_error(self, message: str) -> str:
        """Return a sentence for a message of argparse, with the flags that unknown ones resemble."""
        if message.startswith(_UNKNOWN):
            words = message.removeprefix(_UNKNOWN).split()
            similar = [name for word in words if word.startswith("--") for name in self._find_similar(word)]
            return f"{message}; did you mean {' and '.join(similar)}?" if similar else message
        for pattern, sentence in _REWORDED:
            if re.fullmatch(pattern, message, re.DOTALL):
                return re.sub(pattern, sentence, message, flags=re.DOTALL)
        return message

    def _find_similar(self, flag: str) -> list[str]:
        """Return the flag that a word abbreviates or resembles, if there is one."""
        name = flag.partition("=")[0]
        flags = [known for action in self._actions for known in action.option_strings if known.startswith("--")]
        longer = [known for known in flags if known.startswith(name)]
        return longer[:1] if len(longer) == 1 else difflib.get_close_matches(name, flags, n=1)


def parse_count(text: str) -> int:
    """Return a whole number of at least 1; raise `ArgumentTypeError` if the text is something else."""
    if not (text.isascii() and text.isdecimal()) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse_duration(text: str) -> float:
    """Return a time above 0; raise `ArgumentTypeError` if the text is something else."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
