"""`python -m frontend.new_key`, which `scripts/api-key` runs: make an API key. Without --file, needs only Python."""

import argparse
import hashlib
import json
import re
import secrets
import sys
from pathlib import Path

from broker.shared.exit import exit_refused
from broker.shared.files import explain, make_scratch_folder, move_into_place
from broker.shared.flags import FlagParser

#: A line that rejects all keys, next to which TOML allows no entry.
_NO_KEYS = re.compile(r"^[ \t]*key[ \t]*=[ \t]*\[\s*\][ \t]*(#.*)?$\n?", re.MULTILINE)


def main() -> None:
    """Print a new key. Write its entry to the file, or to standard error."""
    parser = FlagParser(prog="scripts/api-key", description="Make an API key.")
    parser.add_argument("name", type=_parse_name, help="name of the client, for logs and limits")
    parser.add_argument(
        "--tokens-per-minute", type=_parse_positive, default=0, help="maximum tokens per minute (default: no limit)"
    )
    parser.add_argument(
        "--jobs-in-flight", type=_parse_positive, default=0, help="maximum open inputs (default: no limit)"
    )
    parser.add_argument("--admin", action="store_true", help="allow operators' paths")
    parser.add_argument("--file", type=Path, help="file of API keys to add the entry to")
    options = parser.parse_args()
    key = "vm-" + secrets.token_urlsafe(32)
    entry = ["[[key]]", f"name = {json.dumps(options.name)}", f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"']
    for name in ("tokens_per_minute", "jobs_in_flight"):
        if getattr(options, name):
            entry.append(f"{name} = {getattr(options, name)}")
    text = "\n".join([*entry, *(["admin = true"] if options.admin else []), "", ""])
    if options.file is None:
        print(text, file=sys.stderr)
    else:
        try:
            from frontend.rest.api_keys import KeysError
        except ModuleNotFoundError as error:
            hint = "run scripts/setup, or omit --file and append the entry, which is printed to standard error"
            exit_refused("", f"--file needs the package {error.name} to check the file; {hint}")
        try:
            add_entry(options.file, text)
        except KeysError as error:
            exit_refused("", error)
        except OSError as error:
            exit_refused("", f"{options.file} cannot be written: {explain(error)}")
    print(key)


def _parse_name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; give the name of a client, such as search-team")
    return text


def _parse_positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1; omit the flag for no limit")
    return int(text)


def add_entry(path: Path, entry: str) -> None:
    """Add an entry to a file of keys, in place of `key = []`.

    Raise `KeysError` or `OSError`, and keep the file, if that fails.
    """
    from frontend.rest.api_keys import KeysError, read_keys, read_text

    before = _NO_KEYS.sub("", read_text(path)) if path.exists() else ""
    with make_scratch_folder(path.parent) as scratch:
        new = scratch / path.name
        new.touch(0o600)
        new.write_text(before + entry, encoding="utf-8")
        try:
            read_keys(new)
        except KeysError as error:
            raise KeysError(f"{path} with the new key", error.reason) from None
        if path.exists():
            new.chmod(path.stat().st_mode & 0o777)
        move_into_place(new, path)


if __name__ == "__main__":
    main()
