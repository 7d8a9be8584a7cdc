"""`python -m frontend.new_key`: make an API key. What `scripts/api-key` runs."""

import argparse
import hashlib
import json
import os
import secrets
import sys
from pathlib import Path

from broker.shared.files import explain
from frontend.rest.api_keys import KeysError, read_keys, read_text


def main() -> None:
    """Print the key to standard output, and its entry beside it or into the file. Exit status 1 when that cannot be."""
    parser = argparse.ArgumentParser(prog="scripts/api-key", description="Make an API key.")
    parser.add_argument("name", help="whose it is: for logs and limits")
    parser.add_argument(
        "--tokens-per-minute", type=_positive, default=0, help="tokens it may use in a minute (default: no limit)"
    )
    parser.add_argument(
        "--jobs-in-flight", type=_positive, default=0, help="inputs it may have open at once (default: no limit)"
    )
    parser.add_argument("--admin", action="store_true", help="let it use what is for operators")
    parser.add_argument("--file", type=Path, help="add the entry to this file")
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
            add(options.file, text)
        except KeysError as error:
            sys.exit(f"vecmill: {error}")
        except OSError as error:
            sys.exit(f"vecmill: {options.file} cannot be written: {explain(error)}")
    print(key)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1 is needed; without the flag there is no limit")
    return int(text)


def add(path: Path, entry: str) -> None:
    """Add an entry to a file of keys; KeysError or OSError, and the file as it was, when that gives none."""
    before = read_text(path) if path.exists() else ""
    made = path.with_name(path.name + ".new")
    made.unlink(missing_ok=True)
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(before + entry)
        read_keys(made)
        if path.exists():
            made.chmod(path.stat().st_mode & 0o777)
        made.rename(path)
    except KeysError as error:
        raise KeysError(f"{path} with the new key", error.reason) from None
    finally:
        made.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
