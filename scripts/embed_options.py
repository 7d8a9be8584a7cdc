"""Flags of scripts/embed. Needs only Python, so that `scripts/embed --help` installs no packages."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

INPUT_FORMATS = ("parquet", "arrow", "jsonl", "csv", "tsv", "text")
OUTPUT_FORMATS = ("parquet", "npy", "jsonl")
DTYPES = ("float32", "float16", "int8", "ubinary")
DEFAULT_URL = "http://127.0.0.1:8000"
EPILOG = """\
exit status: 0 done; 1 done, but some rows have errors; 2 refused, the message names the reason; 3 the server was away
for longer than --patience, or the disk is full: run the same command again; 130 interrupted: run the same command
again. docs/embed.md has examples."""


class Options(NamedTuple):
    """What to embed, how, and where to."""

    inputs: tuple[str, ...]
    output: Path
    format: str
    input_format: str = ""
    text: str = ""
    template: str = ""
    id: str = ""
    keep: tuple[str, ...] = ()
    limit: int = 0
    url: str = DEFAULT_URL
    local: bool = False
    model: str = ""
    api_key: str = ""
    input_type: str = ""
    prompt_name: str = ""
    truncate: str = ""
    dimensions: int = 0
    dtype: str = "float32"
    batch: int = 256
    in_flight: int = 0
    part_rows: int = 0
    overwrite: bool = False
    retry_errors: bool = False
    errors: str = ""
    max_errors: int | None = None
    patience_s: float = 300.0
    dry_run: bool = False
    quiet: bool = False
    json: bool = False

    @property
    def request_fields(self) -> dict[str, str | int]:
        """Fields of each request's body that change the vectors."""
        names = ("input_type", "prompt_name", "truncate", "dimensions")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


def parse_positive(text: str) -> int:
    """Return a whole number of at least 1; raise `ArgumentTypeError` for anything else."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse_in_flight(text: str) -> int:
    """Return a number of requests, or 0 for `auto`."""
    return 0 if text == "auto" else parse_positive(text)


def parse_seconds(text: str) -> float:
    """Return a number of seconds; raise `ArgumentTypeError` if it is not one."""
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return float(text)


def parse_url(text: str) -> str:
    """Return the server's URL without the path of the API; raise `ArgumentTypeError` if it is not one."""
    if not re.match(r"https?://[^/\s]", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"the URL needs http:// or https:// and a host, but is {text!r}")
    return text.rstrip("/").removesuffix("/v1")


def parse_count(text: str) -> int:
    """Return a whole number of at least 0; raise `ArgumentTypeError` for anything else."""
    return 0 if text == "0" else parse_positive(text)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    formatter = argparse.RawDescriptionHelpFormatter
    description = "Embed whole corpora with a running server, or with --local. The same command goes on after a crash."
    parser = argparse.ArgumentParser(
        "scripts/embed", description=description, epilog=EPILOG, formatter_class=formatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="files, folders, or patterns such as 'docs/*.jsonl.gz'; -: stdin")
    text = "folder of Parquet parts, also if its name ends in .parquet, or a file that ends in .npy or .jsonl"
    add("-o", "--output", required=True, type=Path, help=text)
    add("--format", choices=OUTPUT_FORMATS, default="", help="of the output; default: by its ending, or parquet")
    text = "of the inputs; default: by their endings; for stdin jsonl if --text or --template is given, else text"
    add("--input-format", choices=INPUT_FORMATS, default="", help=text)
    add("--text", default="", metavar="COLUMN", help="column or field with the text; default: text")
    add("--template", default="", help=r"text of several columns, such as '{title}\n{body}'")
    add("--id", default="", metavar="COLUMN", help="column to copy as id; default: the number of the row, from 0")
    text = "columns to copy to the output, separated by commas; '*': all"
    add("--keep", default=[], action="append", metavar="COLUMNS", help=text)
    add("--limit", type=parse_positive, default=0, metavar="ROWS", help="embed only the first rows")
    add("--url", type=parse_url, default=DEFAULT_URL, help=f"of the server; default: {DEFAULT_URL}")
    add("--local", action="store_true", help="start scripts/serve for the run, on a free port, and end it afterwards")
    text = "name of the model; default: the only one that the server has; with --local as in scripts/serve --model"
    add("--model", default="", help=text)
    add("--api-key", default=os.environ.get("OPENAI_API_KEY", ""), help="default: the variable OPENAI_API_KEY")
    add("--input-type", default="", help="query or document: use the model's prompt for it")
    add("--prompt-name", default="", help="prompt of the model to put before each text")
    text = "where to truncate texts that are too long; default: as the server"
    add("--truncate", choices=("none", "start", "end"), default="", help=text)
    add("--dimensions", type=parse_positive, default=0, help="number of leading values to keep of each vector")
    text = "of the vectors in the output; int8: times 127, for vectors of length 1; ubinary: a bit per value"
    add("--dtype", choices=DTYPES, default="float32", help=text)
    add("--batch", type=parse_positive, default=256, help="most texts in a request; default: 256")
    text = "requests at a time; default: auto, which grows while the throughput grows"
    add("--in-flight", type=parse_in_flight, default=0, help=text)
    text = "rows of a part; default: 32 MiB of vectors"
    add("--part-rows", type=parse_positive, default=0, metavar="ROWS", help=text)
    add("--overwrite", action="store_true", help="delete what an earlier run has left in the output")
    add("--retry-errors", action="store_true", help="embed the rows with errors of a finished run again")
    add("--errors", default="", metavar="FILE", help="JSONL file of the rows with errors; default: in the output")
    text = "stop if more rows have errors; 0: at the first; default: never"
    add("--max-errors", type=parse_count, default=None, metavar="N", help=text)
    text = "seconds to wait for a server that is away or full; default: 300"
    add("--patience", dest="patience_s", type=parse_seconds, default=300.0, metavar="SECONDS", help=text)
    add("--dry-run", action="store_true", help="read all inputs, embed a sample, and print counts and an estimate")
    add("--quiet", action="store_true", help="print no progress")
    add("--json", action="store_true", help="print progress as a JSON object each second, to stderr")
    return parser


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Return the options; exit with status 2 if they are invalid."""
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    if parsed.text and parsed.template:
        parser.error("--text and --template exclude each other; give one of them")
    if parsed.input_type and parsed.prompt_name:
        parser.error("--input-type and --prompt-name exclude each other; give one of them")
    parsed.inputs = tuple(parsed.inputs)
    if "-" in parsed.inputs and len(parsed.inputs) > 1:
        parser.error("- for stdin excludes other inputs")
    parsed.keep = tuple(dict.fromkeys(name for names in parsed.keep for name in names.split(",") if name))
    endings = {".npy": "npy", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    parsed.format = parsed.format or endings.get(parsed.output.suffix, "parquet")
    return Options(**vars(parsed))


if __name__ == "__main__":
    parse_options()
