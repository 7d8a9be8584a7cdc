"""Progress of `scripts/embed`: a bar on a terminal, a line every 10 s elsewhere, or a JSON object every second."""

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Literal

import msgspec

Mode = Literal["quiet", "json", "bar", "lines"]
#: Seconds between two reports of each mode, and of the rates that are shown.
INTERVALS_S = {"json": 1.0, "bar": 0.25, "lines": 10.0}
RATE_S = 10.0


class Progress:
    """Counters of a run, and how they are shown."""

    def __init__(self, mode: Mode) -> None:
        self.rows = self.skipped = self.missing = self.tokens = self.errors = self.truncated = 0
        self.in_flight = self.cache_hits = 0
        #: Rows of all inputs, or None if their number is not known.
        self.total: int | None = None
        #: What the run waits for.
        self.note = ""
        self.started = time.monotonic()
        self._mode = mode
        self._samples: deque[tuple[float, int, int]] = deque()

    def add(self, rows: int, tokens: int, truncated: int, errors: int) -> None:
        """Count embedded rows."""
        self.rows += rows
        self.tokens += tokens
        self.truncated += truncated
        self.errors += errors

    def skip(self, rows: int, errors: int, missing: int = 0) -> None:
        """Count rows of earlier runs, their and all known errors, and the rows without text."""
        self.skipped += rows
        self.missing += missing
        self.errors += errors

    @property
    def done(self) -> int:
        """Rows that need no request any more."""
        return self.skipped + self.missing + self.rows

    @contextlib.contextmanager
    def show(self) -> Iterator[None]:
        """Report in a thread until the end of the block."""
        if self._mode == "quiet":
            yield
            return
        ended = threading.Event()
        show = self._show_bar if self._mode == "bar" else self._show_lines
        thread = threading.Thread(target=show, args=[ended], name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(2)

    def count(self) -> dict[str, object]:
        """Return the counters, and the rates of the last `RATE_S`."""
        now = time.monotonic()
        self._samples.append((now, self.rows, self.tokens))
        while len(self._samples) > 2 and self._samples[0][0] < now - RATE_S:
            self._samples.popleft()
        since, rows, tokens = self._samples[0] if len(self._samples) > 1 else (self.started, 0, 0)
        elapsed = max(now - since, 1e-3)
        rate = (self.rows - rows) / elapsed
        left = None if self.total is None or not rate else round((self.total - self.done) / rate)
        return {
            "rows": self.done,
            "total": self.total,
            "rows_per_s": round(rate, 1),
            "tokens_per_s": round((self.tokens - tokens) / elapsed, 1),
            "eta_s": left,
            "errors": self.errors,
            "truncated": self.truncated,
            "in_flight": self.in_flight,
            "cache_hits": self.cache_hits,
            "elapsed_s": round(now - self.started, 1),
            "note": self.note,
        }

    def summarize(self, revision: str) -> str:
        """Return the last line of a run."""
        seconds = max(time.monotonic() - self.started, 1e-3)
        rows, tokens = pluralize(self.rows, "row"), pluralize(self.tokens, "token")
        parts = [f"{rows} in {seconds:.1f} s ({self.rows / seconds:,.0f} rows/s), {tokens}"]
        parts += [f"{pluralize(self.skipped, 'row')} from earlier runs"] * bool(self.skipped)
        parts += [f"{pluralize(self.missing, 'row')} without text"] * bool(self.missing)
        parts += [f"{self.truncated:,} truncated"] * bool(self.truncated)
        parts += [f"{self.cache_hits:,} from the server's cache"] * bool(self.cache_hits)
        parts += [pluralize(self.errors, "error"), f"revision {revision}"]
        return ", ".join(parts)

    def _show_lines(self, ended: threading.Event) -> None:
        while not ended.wait(INTERVALS_S[self._mode]):
            self._print_line()
        if self._mode == "json":
            self._print_line()

    def _print_line(self) -> None:
        counts = self.count()
        if self._mode == "json":
            print(msgspec.json.encode(counts).decode(), file=sys.stderr, flush=True)
            return
        total = f" of {self.total:,}" if self.total is not None else ""
        print(f"{counts['rows']:,} rows{total}, {_describe(counts)}", file=sys.stderr, flush=True)

    def _show_bar(self, ended: threading.Event) -> None:
        from rich import progress as rich
        from rich.console import Console

        columns = (rich.BarColumn(), rich.MofNCompleteColumn(), rich.TextColumn("{task.description}"))
        eta = rich.TimeRemainingColumn()
        with rich.Progress(*columns, eta, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None)
            while not ended.wait(INTERVALS_S["bar"]):
                counts = self.count()
                bar.update(task, completed=self.done, total=self.total, description=_describe(counts, eta=False))


def _describe(counts: dict[str, object], *, eta: bool = True) -> str:
    text = f"{counts['rows_per_s']:,} rows/s, {counts['tokens_per_s']:,} tokens/s, {counts['errors']} errors, "
    text += f"{counts['in_flight']} in flight"
    for name in ("truncated", "cache_hits"):
        text += f", {counts[name]} {name.replace('_', ' ')}" if counts[name] else ""
    if eta and counts["eta_s"] is not None:
        text += f", {counts['eta_s']} s left"
    return f"{text}; {counts['note']}" if counts["note"] else text


def pluralize(number: int, noun: str) -> str:
    """Return a number and a noun, which gets an s unless the number is 1."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def choose_mode(*, quiet: bool, json: bool) -> Mode:
    """Return how to show progress on this stderr."""
    if quiet:
        return "quiet"
    if json:
        return "json"
    return "bar" if sys.stderr.isatty() else "lines"
