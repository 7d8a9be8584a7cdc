"""Measurements of `scripts/bench`: rows that take turns on the same texts."""

import contextlib
import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench_load import Load, LoadError, find_percentiles, send_requests
from bench_raw import Raw, RawRun
from bench_results import BASE, Cell, Round, add_ratios
from bench_servers import Server
from bench_texts import Workload, build_requests, generate_texts, take_texts

#: Texts per second that a server may reach, relative to the fastest raw row: the texts of a run must not run out.
HEADROOM = 4.0
#: A measurement lasts at least as long as the row takes for this many times the texts that wait at once, but at most
#: `MAX_S` seconds.
CYCLES, MAX_S = 3.0, 10.0
#: Seconds of the warm-up of a row before its first measurement, beyond the time of the texts that wait at once. Vecmill
#: compiles a stream on all CPUs meanwhile.
WARM_UP_S = 3.0
#: Most texts of a measurement, and most requests per second: a model that costs almost nothing is no faster.
MAX_TEXTS, MAX_REQUESTS_S = 20_000, 4_000
#: Rows without a server, besides `BASE`.
PACKED = "raw OpenVINO, padding-free"
SINGLE = "raw OpenVINO, 1 text per inference"
IN_TURN = "raw OpenVINO, one request after another"
#: Counters of the broker: numerator and denominator of a cell's fields.
QUOTIENTS = {
    "padding": ("vecmill_padding_tokens_total", "vecmill_tokens_total"),
    "batch": ("vecmill_batch_jobs_sum", "vecmill_batch_jobs_count"),
    "micro_batch": ("vecmill_micro_batch_inputs_total", "vecmill_micro_batches_total"),
}


class Target(Protocol):
    """Running server."""

    port: int
    path: str

    @property
    def fields(self) -> Mapping[str, object]:
        """Fields of a request besides its inputs."""

    def read_cpu_seconds(self) -> dict[str, float]:
        """Return the CPU seconds so far by kind of process."""

    def measure_memory_mb(self) -> dict[str, float]:
        """Return the memory by kind of process."""


@dataclass(slots=True)
class Bench:
    """What is measured on which texts."""

    raws: Mapping[str, Raw]
    targets: Mapping[str, Target]
    max_tokens: int
    seconds: float
    generator: str
    #: Texts per second of each row, workload and number of clients in the warm-up; 0 if that was too short.
    rates: dict[tuple[str, str, int], float] = field(default_factory=dict)
    #: Measurements without a result.
    failures: list[str] = field(default_factory=list)

    def count_tokens(self, texts: Sequence[str]) -> Sequence[int]:
        """Return the tokens of each text."""
        return next(iter(self.raws.values())).count_tokens(texts)


class WorkloadBench:
    """Measurements of one workload. No text repeats between them, and all rows get the same texts."""

    def __init__(self, bench: Bench, workload: Workload, texts: Sequence[str], seed: int) -> None:
        """Find the fastest sizes of micro-batches for these texts."""
        self._bench, self._workload = bench, workload
        self._source = generate_texts(texts, seed)
        trial = self.take_texts(192)
        found = {row: raw.find_budget(trial, workload.window) for row, raw in bench.raws.items()}
        self._budgets = {row: budget for row, (budget, _) in found.items()}
        self.rate = max(rate for _, rate in found.values())

    def take_texts(self, number: int) -> list[str]:
        """Return texts that no measurement has had."""
        return take_texts(self._source, number, self._bench.max_tokens, self._bench.count_tokens)

    def iterate(self) -> Iterator[str]:
        """Yield texts that no measurement has had."""
        while True:
            yield from self.take_texts(64)

    def run_round(self, clients: Iterable[int]) -> Round:
        """Measure every row once."""
        bench, cells = self._bench, list(self._run_raw_rows())
        for number in clients:
            texts = self.take_texts(self._count_texts(number, MAX_S / 2))
            for row, target in bench.targets.items():
                try:
                    cells.append(self._run_server(row, target, texts, number))
                except LoadError as error:
                    bench.failures.append(f"{self._workload.name}: {row}, {number} clients: {error}")
                    print_progress(bench.failures[-1])
                else:
                    print_progress(describe_cell(cells[-1]))
        return Round(self._workload.name, add_ratios(cells))

    def _count_texts(self, clients: int, seconds: float) -> int:
        """Return how many texts the fastest server may need."""
        rate = min(self.rate * HEADROOM, MAX_REQUESTS_S * self._workload.per_request)
        return min(MAX_TEXTS, int(rate * seconds) + 2 * clients * self._workload.per_request)

    def _run_raw_rows(self) -> Iterator[Cell]:
        bench, per_request = self._bench, self._workload.per_request
        texts = self.take_texts(min(MAX_TEXTS, max(per_request, int(self.rate * bench.seconds))))
        runs: list[tuple[str, int, Callable[[], RawRun]]] = [
            (row, 0, functools.partial(raw.run_batched, texts, self._budgets[row], self._workload.window))
            for row, raw in bench.raws.items()
        ]
        raw = bench.raws.get(PACKED) or bench.raws[BASE]
        runs.append((SINGLE, 0, lambda: raw.run_parallel(texts[: len(texts) // 2 or 1])))
        requests = [texts[at : at + per_request] for at in range(0, len(texts) - per_request + 1, per_request)]
        runs.append((IN_TURN, 1, lambda: raw.run_in_turn(requests, bench.seconds)))
        for row, clients, run in runs:
            # The first run compiles kernels for the shapes of these texts, which a server has done before.
            run()
            cell = self._make_raw_cell(row, clients, run(), texts)
            print_progress(describe_cell(cell))
            yield cell

    def _make_raw_cell(self, row: str, clients: int, run: RawRun, texts: Sequence[str]) -> Cell:
        tokens = sum(self._bench.count_tokens(texts)) / len(texts)
        latencies = Counter(int(seconds * 1e6) for seconds in run.latencies)
        return Cell(
            row=row,
            workload=self._workload.name,
            clients=clients,
            texts_s=run.texts_s,
            tokens_s=run.texts_s * tokens,
            latency_ms=find_percentiles(latencies) if latencies else [],
            cpu_s={"raw": run.cpu_s / run.texts * 1000},
            padding=run.padding,
            micro_batch=run.micro_batch,
        )

    def _run_server(self, row: str, target: Target, texts: Sequence[str], clients: int) -> Cell:
        per_request, bench = self._workload.per_request, self._bench
        requests = build_requests(texts, per_request, target.path, target.fields)
        key = (row, self._workload.name, clients)
        if key not in bench.rates:
            bench.rates[key] = self._warm_up(target, clients, len(texts))
        # An unknown rate is 0.
        seconds = CYCLES * clients * per_request / max(bench.rates[key], 1e-3)
        seconds = min(MAX_S, max(bench.seconds, seconds))
        before, counters = target.read_cpu_seconds(), read_counters(target)
        load = send_requests(target.port, requests, clients, seconds, bench.generator)
        used = {name: value - before.get(name, 0.0) for name, value in target.read_cpu_seconds().items()}
        sent = texts[: (load.answered + clients) * per_request]
        tokens = sum(bench.count_tokens(sent)) / len(sent)
        return Cell(
            row=row,
            workload=self._workload.name,
            clients=clients,
            texts_s=load.rate * per_request,
            tokens_s=load.rate * per_request * tokens,
            latency_ms=load.latency_ms,
            cpu_s=divide_cpu(used | {"load": load.cpu_s}, load, per_request),
            memory_mb=target.measure_memory_mb(),
            **divide_counters(counters, read_counters(target)),
        )

    def _warm_up(self, target: Target, clients: int, number: int) -> float:
        """Send other texts for a moment, and return the texts per second."""
        per_request = self._workload.per_request
        requests = build_requests(self.take_texts(number), per_request, target.path, target.fields)
        seconds = WARM_UP_S + clients * per_request / self.rate
        with contextlib.suppress(LoadError):
            return send_requests(target.port, requests, clients, seconds, self._bench.generator).rate * per_request
        return 0.0


def divide_cpu(used: Mapping[str, float], load: Load, per_request: int) -> dict[str, float]:
    """Return CPU seconds for 1,000 texts."""
    texts = load.rate * per_request * load.seconds
    return {name: value / texts * 1000 for name, value in used.items()}


def read_counters(target: Target) -> dict[str, float]:
    """Return the metrics of a Vecmill server; none of other servers."""
    return target.read_metrics() if isinstance(target, Server) else {}


def divide_counters(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return the fields of a cell that are quotients of counters, as far as the server has them."""
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    return {
        name: grown.get(above, 0.0) / grown[below] for name, (above, below) in QUOTIENTS.items() if grown.get(below)
    }


def describe_cell(cell: Cell) -> str:
    """Return a line of progress."""
    clients = f", {cell.clients} client{'s' * (cell.clients != 1)}" if cell.clients else ""
    return f"{cell.workload}: {cell.row}{clients}: {cell.texts_s:.0f} texts/s"


def print_progress(message: str) -> None:
    """Print a line to the standard error, where it does not mix with the tables."""
    print(f"[{time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)
