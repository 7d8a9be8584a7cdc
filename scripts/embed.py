"""`scripts/embed`: embed whole corpora through a server, so that the same command goes on after any crash.

Every row has a number, and parts have fixed ranges of rows. A part that exists is complete; the rows of a part that is
not complete are in its journal (embed_store.py). The manifest has what the vectors depend on (embed_plan.py), and a run
that differs from the manifest is refused.
"""

import asyncio
import concurrent.futures
import contextlib
import errno
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from embed_client import Client, Model, RequestError
from embed_errors import AWAY, DONE, INTERRUPTED, REFUSED, ROW_ERRORS, RefusedError, SignalError, StopError
from embed_export import export_file, list_files
from embed_inputs import STDIN, Input, Part, count_rows, find_inputs, read_parts
from embed_local import serve_locally
from embed_options import Options, parse_options
from embed_pace import Next, choose_next
from embed_plan import Manifest, choose_part_rows, cut_requests
from embed_progress import Progress, choose_mode, pluralize
from embed_readers import Columns, choose_columns
from embed_run import Run
from embed_store import Store

#: Options that decide about rows, their columns and their vectors.
FIXED = ("text", "template", "id", "keep", "limit", "input_type", "prompt_name", "truncate", "dimensions", "dtype")

#: Rows that --dry-run reads at a time.
DRY_ROWS = 10_000


def make_manifest(options: Options, inputs: list[Input], model: Model) -> Manifest:
    """Return the manifest of a run."""
    dimension = options.dimensions or model.dimension
    fixed = {name: getattr(options, name) for name in (*FIXED, "format", "input_format")}
    return Manifest(
        inputs=[one.describe() for one in inputs],
        options={name: list(value) if isinstance(value, tuple) else value for name, value in fixed.items()},
        model=model.id,
        revision=model.revision,
        dimension=dimension,
        part_rows=options.part_rows or choose_part_rows(dimension),
    )


def open_store(options: Options) -> tuple[Store, Path]:
    """Return the store of an output and the path of its errors."""
    if options.format == "parquet":
        if options.output.exists() and not options.output.is_dir():
            raise RefusedError(f"{options.output} is a file, but Parquet parts need a folder; choose another output")
        return Store(options.output), Path(options.errors or options.output / "_errors.jsonl")
    if options.output.is_dir():
        raise RefusedError(
            f"{options.output} is a folder, but {options.format} is written to a file; choose another output"
        )
    folder = options.output.with_name(f"{options.output.name}.parts")
    return Store(folder), Path(options.errors or options.output.with_name(f"{options.output.name}.errors.jsonl"))


def begin(options: Options, store: Store, manifest: Manifest) -> Manifest:
    """Return the manifest to go on with; `rows` is None unless the output has all files of a finished run.

    Raise `RefusedError` if the output is of another run.
    """
    is_file = options.format != "parquet"
    files = list_files(options.output, options.format, with_ids=bool(options.id)) if is_file else []
    if options.retry_errors and is_file:
        raise RefusedError("--retry-errors needs an output of Parquet parts; use --overwrite alone to begin again")
    if options.overwrite:
        store.clear()
        for path in files:
            path.unlink(missing_ok=True)
    elif is_file and options.output.exists() and store.read_manifest() is None:
        raise RefusedError(f"{options.output} exists already; choose another output, or use --overwrite")
    found = store.begin(manifest, retry=options.retry_errors)
    finished = found.rows is not None
    if finished and (lost := next((path for path in files if not path.exists()), None)):
        print(f"{lost} is gone, so that all rows are embedded again", file=sys.stderr)
        found = msgspec.structs.replace(found, digests=[])
    elif finished and not is_file and not store.has_parts(found):
        print(f"{options.output} has lost parts, so that their rows are embedded again", file=sys.stderr)
    elif not options.retry_errors:
        return found
    found = msgspec.structs.replace(found, rows=None)
    store.write_manifest(found)
    return found


async def embed(options: Options, inputs: list[Input], columns: Columns, url: str) -> int:
    """Embed the inputs through a server, and return the exit status."""
    progress = Progress(choose_mode(quiet=options.quiet, json=options.json))
    store, errors_path = open_store(options)
    async with Client(url, options.api_key, options.request_fields) as client:
        name = "" if options.local else options.model
        model = await client.find_model(name, options.patience_s)
        if options.dry_run:
            await estimate(options, read_parts(inputs, columns, DRY_ROWS, options.limit), model, client)
            return DONE
        if options.overwrite and inputs[0].path != STDIN:
            # An input without the columns is refused before the old output is deleted.
            next(read_parts(inputs, columns, 1, 1), None)
        with store.lock():
            manifest = begin(options, store, make_manifest(options, inputs, model))
            if manifest.rows is not None:
                parts = read_parts(inputs, columns, manifest.part_rows, options.limit)
                if inputs[0].path == STDIN:
                    # asyncio would only note a first Ctrl-C, and a read of stdin would go on.
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    for _ in compare(parts, manifest.digests or store.list_digests(), options.output):
                        pass
                if options.format == "parquet":
                    store.gather_errors(errors_path)
                else:
                    store.clear_parts()
                print(f"{options.output} has all {manifest.rows:,} rows already", file=sys.stderr)
                return report_errors(options, errors_path)
            start_counting(inputs, options.limit, progress)
            run = Run(options, manifest, model, store, client, progress)
            loop = asyncio.get_running_loop()
            # Each thread that allocates keeps memory of its own.
            loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1, "files"))
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, interrupt, run)
            parts = read_parts(inputs, columns, manifest.part_rows, options.limit)
            if manifest.digests and inputs[0].path == STDIN:
                parts = compare(parts, manifest.digests, options.output)
            with summarize(options, progress, manifest.revision):
                try:
                    with progress.show():
                        await run.run(parts)
                except BaseException:
                    with contextlib.suppress(OSError):
                        store.gather_errors(errors_path)
                    raise
                store.gather_errors(errors_path)
                end(options, store, manifest, run.rows)
    return report_errors(options, errors_path)


@contextlib.contextmanager
def summarize(options: Options, progress: Progress, revision: str) -> Iterator[None]:
    """Print a summary at the end of the block, but only the reason of a run that is refused."""
    refused = False
    try:
        yield
    except RefusedError:
        refused = True
        raise
    finally:
        if not options.quiet and not refused:
            print(progress.summarize(revision), file=sys.stderr)


def end(options: Options, store: Store, manifest: Manifest, rows: int) -> None:
    """Write the single file of an output, and note that all rows are written."""
    store.check_end(math.ceil(rows / manifest.part_rows))
    if not rows:
        raise RefusedError(f"the inputs have no rows, so that {options.output} is not written; check the inputs")
    if options.format != "parquet":
        export_file(store, options.output, options.format, rows, with_ids=bool(options.id))
    store.write_manifest(msgspec.structs.replace(manifest, rows=rows, digests=store.list_digests()))
    if options.format != "parquet":
        store.clear_parts()


def report_errors(options: Options, path: Path) -> int:
    """Print how many rows of a complete output have errors, and return the exit status."""
    if not path.exists():
        return DONE
    with path.open("rb") as file:
        errors = sum(1 for _ in file)
    number = "1 row has an error" if errors == 1 else f"{errors:,} rows have errors"
    repair = "--overwrite begins again" if options.format != "parquet" else "--retry-errors embeds such rows again"
    print(f"{number}, see {path}; {repair}", file=sys.stderr)
    return ROW_ERRORS


def compare(parts: Iterator[Part], digests: list[str], output: Path) -> Iterator[Part]:
    """Yield the parts of stdin. Raise `RefusedError` if their rows differ from those of an output."""
    number = 0
    for part in parts:
        if digests[number : number + 1] != [part.digest()]:
            raise RefusedError(
                f"stdin has other rows than {output}, from row {part.first_row} on; choose another output, or use "
                "--overwrite to begin again"
            )
        yield part
        number += 1
    if number != len(digests):
        raise RefusedError(
            f"stdin ends after {number} parts, but {output} has {len(digests)}; give the same rows again, or use "
            "--overwrite to begin again"
        )


async def estimate(options: Options, parts: Iterator[Part], model: Model, client: Client) -> None:
    """Read all rows, embed the first request's, and print what the run would compute."""
    rows = missing = characters = sample_tokens = sample_characters = 0
    seconds = 0.0
    for part in parts:
        request = next(cut_requests(part.texts, range(len(part.texts)), options.batch), [])
        if not sample_characters and request:
            texts = [part.texts[row] or "" for row in request]
            started = time.monotonic()
            answer = await client.embed(model, request, texts, options.dimensions or model.dimension)
            seconds = time.monotonic() - started
            sample_tokens, sample_characters = answer.tokens, sum(map(len, texts))
        rows += len(part.texts)
        missing += len(part.problems)
        characters += sum(map(len, filter(None, part.texts)))
    share = characters / max(1, sample_characters)
    duration = f"{share * seconds:,.0f} s" if share * seconds >= 1 else "less than 1 s"
    tokens = pluralize(round(share * sample_tokens), "token")
    print(f"{pluralize(rows, 'row')}, {missing:,} without text, and {pluralize(characters, 'character')}")
    print(f"about {tokens} and {duration}, by the length and the time of the first request")
    print(f"model {model.id}, revision {model.revision}, {options.dimensions or model.dimension} values")


def interrupt(run: Run) -> None:
    """End the run after its open requests; at a second signal, end the process at once."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    print("finishing the open requests; a second Ctrl-C ends at once", file=sys.stderr)
    run.stop(SignalError("interrupted; the same command goes on from here"))


def start_counting(inputs: list[Input], limit: int, progress: Progress) -> None:
    """Count the rows of all inputs in a thread, for the estimate of the time that is left."""

    def count() -> None:
        with contextlib.suppress(Exception):
            total = count_rows(inputs)
            progress.total = min(total, limit) if total is not None and limit else total

    threading.Thread(target=count, name="count", daemon=True).start()


@contextlib.contextmanager
def choose_server(options: Options) -> Iterator[str]:
    """Yield the URL of the server, which `--local` starts for the run."""
    if not options.local:
        yield options.url
        return
    with serve_locally(options.model) as url:
        yield url


def main() -> int:
    """Return the exit status."""
    options = parse_options()
    try:
        columns = choose_columns(options)
        inputs = find_inputs(options.inputs, options.input_format, has_fields=bool(options.text or options.template))
        with choose_server(options) as url:
            return asyncio.run(embed(options, inputs, columns, url))
    except StopError as reason:
        print(f"vecmill embed: {reason}", file=sys.stderr)
        return reason.status
    except RequestError as error:
        refused = choose_next(error.status, error.code, error.param) is Next.REFUSE
        print(f"vecmill embed: the server {'refuses the request' if refused else 'fails'}: {error}", file=sys.stderr)
        return REFUSED if refused else AWAY
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"the disk of {options.output} is full; make space and run the same command again"
            print(f"vecmill embed: {text}", file=sys.stderr)
            return AWAY
        print(f"vecmill embed: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    # The reader's thread may wait for stdin, so that Python would not end by itself.
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
