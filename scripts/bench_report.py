"""docs/benchmarks.md and its plots, of the results of `scripts/bench`.

matplotlib draws the plots, in an environment of its own that only `scripts/bench --report` installs. Plots are SVG
without dates and with fixed identifiers, so that equal results give equal files.
"""

import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from bench_load import PERCENTILES
from bench_results import (
    BASE,
    P50,
    P99,
    Results,
    Summary,
    format_costs,
    format_floods,
    format_overview,
    format_speeds,
    summarize,
)
from bench_texts import WORKLOADS

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".cache" / "bench" / "report"
LOCK = ROOT / "scripts" / "requirements-report.txt"
#: Curve of `scripts/bench_scale.py`, if that was run: workers, jobs per second, busy share.
SCALE = ROOT / "docs" / "scaling.json"
#: What the other servers are; `bench_peers.PACKAGES` installs these versions.
PEERS = (
    "The other servers get the same model, requests and client: Infinity 0.0.78 with its defaults, on torch 2.13.0 and "
    "on ONNX Runtime with optimum's export, and sentence-transformers 6.2.0 behind FastAPI, one `encode` per request "
    "(`scripts/bench_minimal_server.py`)."
)
#: Colours of the rows: Vecmill in greens, raw OpenVINO in greys, the others in reds.
COLOURS = {
    "Vecmill": ("#1b7837", "#5aae61", "#a6dba0", "#00441b"),
    "raw": ("#252525", "#737373", "#bdbdbd", "#d9d9d9"),
    "": ("#b2182b", "#ef8a62", "#c994c7", "#67001f"),
}


def start(results: Path, output: Path) -> None:
    """Summarize results, if there are any, and render the report into a folder, in its environment."""
    output.mkdir(parents=True, exist_ok=True)
    stored = get_summary(output)
    if results.exists():
        summary = summarize(msgspec.json.decode(results.read_bytes(), type=Results))
        stored.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n")
    elif not stored.exists():
        raise OSError(f"there are neither {results} nor {stored}; run scripts/bench first")
    if not (ENVIRONMENT / "lock").exists() or (ENVIRONMENT / "lock").read_bytes() != LOCK.read_bytes():
        print(f"installing the packages of {LOCK.relative_to(ROOT)} into {ENVIRONMENT} …", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "--only-binary", ":all:", "-r", str(LOCK)], check=True)
        (ENVIRONMENT / "lock").write_bytes(LOCK.read_bytes())
    subprocess.run([str(ENVIRONMENT / "bin" / "python"), __file__, str(output.absolute())], check=True)
    print(f"wrote {output / 'benchmarks.md'}", file=sys.stderr)


def get_summary(output: Path) -> Path:
    """Return the file of the medians, which the page has."""
    return output / "benchmarks.json"


def render_page(summary: Summary) -> str:
    """Return docs/benchmarks.md."""
    facts = summary.facts
    machine = f"{facts['cores']} cores of an {facts['cpu']}, {facts['model']}, texts of `{facts['texts']}`"
    method = (
        "The load generator and raw OpenVINO use the same cores as the servers. Figures are medians of rounds "
        f"({list_rounds(summary)}), in which all rows take turns on the same texts. No text repeats. "
        f'"Of raw" is relative to the row "{BASE}" of the same round: a process without a server that has all texts '
        f"before it starts, sorts each {WORKLOADS['short'].window} of them by length ({WORKLOADS['bulk'].window} in "
        "bulk), which is what the clients have open at once, and uses the fastest size of micro-batches. Vecmill's "
        "rows name the precision; all others compute in float32. CPU time and memory are those of the kind of process "
        "that is named."
    )
    has_peers = any(not cell.row.startswith(("Vecmill", "raw")) for cell in summary.cells)
    lines = [
        "# Benchmarks",
        "",
        *wrap(f"{machine}, load by `{facts['generator']}`. Written by `scripts/bench --report` from the results of:"),
        "",
        f"    scripts/bench {'--peers ' * has_peers}{facts['settings']}",
        "",
        *wrap(method),
        "",
        *([*wrap(PEERS), ""] if has_peers else []),
        "![Texts per second by workload and clients](benchmarks/throughput.svg)",
        "",
        *format_overview(summary),
        "",
        "![Latency of short texts](benchmarks/latency.svg)",
    ]
    for name, workload in WORKLOADS.items():
        cells = [cell for cell in summary.cells if cell.workload == name]
        if cells:
            lines += ["", f"## {name.capitalize()}: {workload.meaning}", "", *format_speeds(cells)]
            lines += ["", *format_costs(cells)]
    if summary.floods:
        lines += ["", "## A query next to bulk work", ""]
        lines += ["One client of single queries, alone and next to 8 clients with 32 texts per request.", ""]
        lines += [*format_floods(summary.floods), "", "![Latency in a flood](benchmarks/flood.svg)"]
    if SCALE.exists():
        lines += ["", "## Scale", "", "[scaling.md](scaling.md) has the figures.", ""]
        lines += ["![Jobs per second by workers](benchmarks/scale.svg)"]
    return "\n".join(lines) + "\n"


def wrap(text: str) -> list[str]:
    """Return the lines of a paragraph."""
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def list_rounds(summary: Summary) -> str:
    """Return the number of rounds by workload."""
    return ", ".join(f"{name} {number}" for name, number in summary.rounds.items())


def choose_colours(rows: Sequence[str]) -> dict[str, str]:
    """Return a colour for each row."""
    chosen: dict[str, str] = {}
    used: dict[str, int] = {}
    for row in dict.fromkeys(rows):
        family = next(name for name in COLOURS if row.startswith(name))
        chosen[row] = COLOURS[family][used.get(family, 0) % len(COLOURS[family])]
        used[family] = used.get(family, 0) + 1
    return chosen


def draw_throughput(summary: Summary, pyplot: Any) -> Any:
    """Return a figure with a panel for each workload: bars by number of clients."""
    names = [name for name in WORKLOADS if name in summary.rounds]
    figure, axes = pyplot.subplots(1, len(names), figsize=(max(9, 3.1 * len(names)), 3.4), squeeze=False)
    colours = choose_colours([cell.row for cell in summary.cells if cell.clients and cell.memory_mb])
    for axis, name in zip(axes[0], names, strict=True):
        cells = [cell for cell in summary.cells if cell.workload == name]
        served = [cell for cell in cells if cell.row in colours]
        clients = sorted({cell.clients for cell in served})
        width = 0.8 / max(1, len(colours))
        for number, (row, colour) in enumerate(colours.items()):
            found = {cell.clients: cell.texts_s for cell in served if cell.row == row}
            places = [at + (number - len(colours) / 2 + 0.5) * width for at in range(len(clients))]
            axis.bar(places, [found.get(each, 0.0) for each in clients], width, color=colour, label=row)
        for cell in cells:
            if cell.row == BASE:
                axis.axhline(cell.texts_s, color="#252525", linestyle="--", linewidth=1, label=BASE)
        axis.set(title=name, xticks=range(len(clients)), xticklabels=clients, xlabel="clients")
    axes[0][0].set_ylabel("texts/s")
    add_legend(figure, axes[0][0])
    return figure


def draw_latency(summary: Summary, pyplot: Any) -> Any:
    """Return a figure of the latency's distribution: one short text, from one client and from the most."""
    cells = [cell for cell in summary.cells if cell.workload == "short" and cell.latency_ms]
    most = max((cell.clients for cell in cells), default=1)
    colours = choose_colours([cell.row for cell in cells])
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for axis, clients in zip(axes, (1, most), strict=True):
        for cell in (cell for cell in cells if cell.clients == clients):
            axis.plot(cell.latency_ms, PERCENTILES, color=colours[cell.row], label=cell.row)
        axis.set(
            title=f"short, {clients} client{'s' * (clients > 1)}", xscale="log", xlabel="ms", ylabel="% of answers"
        )
    for axis in axes:
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    add_legend(figure, axes[0])
    return figure


def draw_flood(summary: Summary, pyplot: Any) -> Any:
    """Return a figure of the latency of a query alone and next to a flood."""
    figure, axis = pyplot.subplots(figsize=(7, 0.7 + 0.7 * len(summary.floods)))
    rows = [flood.row for flood in summary.floods]
    kinds = (("alone", "alone_ms", "#a6dba0"), ("in the flood", "beside_ms", "#1b7837"))
    for number, (label, name, colour) in enumerate(kinds):
        values = [getattr(flood, name) for flood in summary.floods]
        places = [at + (number - 0.5) * 0.36 for at in range(len(rows))]
        axis.barh(places, [each[P99] for each in values], 0.34, color=colour, label=f"{label}, p99")
        axis.plot([each[P50] for each in values], places, "|", color="black", markersize=9)
    axis.set(yticks=range(len(rows)), yticklabels=rows, xlabel="ms of a query; the black line is the median")
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def draw_scale(pyplot: Any) -> Any:
    """Return a figure of the jobs per second by number of workers."""
    points = msgspec.json.decode(SCALE.read_bytes())["points"]
    figure, axis = pyplot.subplots(figsize=(6, 3.2))
    axis.plot([point["workers"] for point in points], [point["jobs_s"] for point in points], "o-", color="#1b7837")
    axis.set(xscale="log", yscale="log", xlabel="workers", ylabel="jobs/s")
    figure.tight_layout()
    return figure


def add_legend(figure: Any, axis: Any) -> None:
    """Put one legend below the panels."""
    handles, labels = axis.get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8, frameon=False)


def main() -> None:
    """Render the page and the plots into the folder on the command line."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("svg")
    # Text as text keeps the files small; the salt and the missing date make them the same for the same results.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "vecmill", "font.size": 9})
    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "white"})
    output = Path(sys.argv[1])
    summary = msgspec.json.decode(get_summary(output).read_bytes(), type=Summary)
    plots = output / "benchmarks"
    plots.mkdir(exist_ok=True)
    figures = {"throughput": draw_throughput(summary, pyplot), "latency": draw_latency(summary, pyplot)}
    if summary.floods:
        figures["flood"] = draw_flood(summary, pyplot)
    if SCALE.exists():
        figures["scale"] = draw_scale(pyplot)
    for name, figure in figures.items():
        figure.savefig(plots / f"{name}.svg", metadata={"Date": None, "Creator": None})
    (output / "benchmarks.md").write_text(render_page(summary))


if __name__ == "__main__":
    main()
