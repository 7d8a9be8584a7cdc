"""Results of `scripts/bench`: what is stored, medians over rounds, and tables. Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

import msgspec

#: Row that all others are compared with: what OpenVINO alone does with padded batches in float32.
BASE = "raw OpenVINO, padded"
#: Indexes in `bench_load.PERCENTILES` of the columns.
P50, P95, P99 = 4, 7, 8


class Cell(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One row of a table: a measurement, or the medians of several."""

    row: str
    workload: str
    #: 0 if there is no server, and therefore no clients.
    clients: int = 0
    texts_s: float
    tokens_s: float
    #: texts/s relative to `BASE` of the same round.
    ratio: float = 0.0
    #: Milliseconds at `bench_load.PERCENTILES`; empty if texts did not run one after another.
    latency_ms: list[float] = []
    #: CPU seconds for 1,000 texts by kind of process.
    cpu_s: dict[str, float] = {}
    memory_mb: dict[str, float] = {}
    #: Padding tokens per token, jobs in a batch, inputs in an inference; -1 if unknown.
    padding: float = -1.0
    batch: float = -1.0
    micro_batch: float = -1.0


class Flood(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One interactive client alone, and next to bulk clients."""

    row: str
    alone_ms: list[float]
    beside_ms: list[float]
    #: Bulk texts per second alone, and next to the interactive client.
    bulk_alone: float
    bulk_beside: float


class Round(msgspec.Struct):
    """All rows, measured in turns within a short time."""

    workload: str
    cells: list[Cell] = []
    floods: list[Flood] = []


class Results(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Content of the file of results."""

    #: Facts of the machine and the run, for the report.
    facts: dict[str, str]
    rounds: list[Round] = []


class Summary(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Medians of all rounds: what a report shows."""

    facts: dict[str, str]
    #: Rounds by workload.
    rounds: dict[str, int]
    cells: list[Cell]
    floods: list[Flood]


def add_ratios(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells of a round with their ratios."""
    cells = list(cells)
    base = next((cell.texts_s for cell in cells if cell.row == BASE), 0.0)
    return [msgspec.structs.replace(cell, ratio=cell.texts_s / base if base else 0.0) for cell in cells]


def merge_results(old: Results | None, new: Results) -> Results:
    """Return the results of two runs on the same machine. Rounds of another machine or model are dropped."""
    if old is None or old.facts != new.facts:
        return new
    return Results(facts=new.facts, rounds=[*old.rounds, *new.rounds])


def summarize(results: Results) -> Summary:
    """Return the medians over rounds, in the order of the first round."""
    groups: dict[tuple[str, str, int], list[Cell]] = {}
    floods: dict[str, list[Flood]] = {}
    rounds: dict[str, int] = {}
    for each in results.rounds:
        rounds[each.workload] = rounds.get(each.workload, 0) + 1
        for cell in each.cells:
            groups.setdefault((cell.workload, cell.row, cell.clients), []).append(cell)
        for flood in each.floods:
            floods.setdefault(flood.row, []).append(flood)
    return Summary(
        facts=results.facts,
        rounds=rounds,
        cells=[_take_medians(cells) for cells in groups.values()],
        floods=[_take_flood_medians(each) for each in floods.values()],
    )


def _take_medians(cells: Sequence[Cell]) -> Cell:
    def median(name: str, digits: int) -> float:
        values: list[float] = [getattr(cell, name) for cell in cells]
        return round(statistics.median(values), digits)

    first = cells[0]
    return Cell(
        row=first.row,
        workload=first.workload,
        clients=first.clients,
        texts_s=median("texts_s", 1),
        tokens_s=median("tokens_s", 0),
        ratio=median("ratio", 3),
        latency_ms=_take_medians_of_lists([cell.latency_ms for cell in cells]),
        cpu_s=_take_medians_by_name([cell.cpu_s for cell in cells], 3),
        memory_mb=_take_medians_by_name([cell.memory_mb for cell in cells], 0),
        padding=median("padding", 3),
        batch=median("batch", 1),
        micro_batch=median("micro_batch", 1),
    )


def _take_flood_medians(floods: Sequence[Flood]) -> Flood:
    return Flood(
        row=floods[0].row,
        alone_ms=_take_medians_of_lists([flood.alone_ms for flood in floods]),
        beside_ms=_take_medians_of_lists([flood.beside_ms for flood in floods]),
        bulk_alone=round(statistics.median(flood.bulk_alone for flood in floods), 1),
        bulk_beside=round(statistics.median(flood.bulk_beside for flood in floods), 1),
    )


def _take_medians_of_lists(lists: Sequence[Sequence[float]]) -> list[float]:
    return [round(statistics.median(values), 2) for values in zip(*lists, strict=True)]


def _take_medians_by_name(mappings: Sequence[Mapping[str, float]], digits: int) -> dict[str, float]:
    names = dict.fromkeys(name for mapping in mappings for name in mapping)
    return {
        name: round(statistics.median(mapping[name] for mapping in mappings if name in mapping), digits)
        for name in names
    }


def format_row(values: Iterable[str]) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(values)} |"


def format_overview(summary: Summary) -> list[str]:
    """Return a table of texts per second by workload in Markdown, from the most clients of each."""
    workloads = [name for name in summary.rounds if any(cell.workload == name for cell in summary.cells)]
    most = {name: max(cell.clients for cell in summary.cells if cell.workload == name) for name in workloads}
    heads = [f"{name}, {most[name]} clients" for name in workloads]
    lines = [format_row(["texts/s", *heads]), f"|---|{'---:|' * len(workloads)}"]
    for row in dict.fromkeys(cell.row for cell in summary.cells):
        found = {
            cell.workload: f"{cell.texts_s:.0f}"
            for cell in summary.cells
            if cell.row == row and cell.clients in (0, most[cell.workload])
        }
        if found:
            lines.append(format_row([row, *(found.get(name, "") for name in workloads)]))
    return lines


def format_speeds(cells: Iterable[Cell]) -> list[str]:
    """Return a table of speed and latency in Markdown."""
    lines = [
        "| | clients | texts/s | of raw | tokens/s | p50 | p95 | p99 ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in cells:
        times = [f"{cell.latency_ms[at]:.1f}" for at in (P50, P95, P99)] if cell.latency_ms else ["", "", ""]
        ratio = f"{cell.ratio:.2f}" if cell.ratio else ""
        values = [cell.row, str(cell.clients or ""), f"{cell.texts_s:.0f}", ratio, f"{cell.tokens_s:,.0f}", *times]
        lines.append(format_row(values))
    return lines


def format_costs(cells: Iterable[Cell]) -> list[str]:
    """Return a table of CPU time, memory and batches in Markdown."""
    lines = [
        "| | clients | CPU s per 1,000 texts | memory MB | padding | batch | micro-batch |",
        "|---|---:|---|---|---:|---:|---:|",
    ]
    for cell in cells:
        cpu = ", ".join(f"{name} {value:.2f}" for name, value in cell.cpu_s.items())
        memory = ", ".join(f"{name} {value:.0f}" for name, value in cell.memory_mb.items())
        padding = f"{cell.padding:.0%}" if cell.padding >= 0 else ""
        sizes = [f"{value:.1f}" if value >= 0 else "" for value in (cell.batch, cell.micro_batch)]
        lines.append(format_row([cell.row, str(cell.clients or ""), cpu, memory, padding, *sizes]))
    return lines


def format_floods(floods: Iterable[Flood]) -> list[str]:
    """Return a table of the interactive latency next to a flood in Markdown."""
    lines = [
        "| | p50 alone | p99 alone | p50 in flood | p99 in flood, ms | ratio | bulk texts/s | in flood | bulk keeps |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for flood in floods:
        times = [f"{values[at]:.1f}" for values in (flood.alone_ms, flood.beside_ms) for at in (P50, P99)]
        ratio = f"{flood.beside_ms[P99] / flood.alone_ms[P99]:.1f}"
        bulk = [f"{flood.bulk_alone:.0f}", f"{flood.bulk_beside:.0f}", f"{flood.bulk_beside / flood.bulk_alone:.0%}"]
        lines.append(format_row([flood.row, *times, ratio, *bulk]))
    return lines
