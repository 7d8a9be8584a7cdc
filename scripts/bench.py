"""`scripts/bench`: compare the server with raw OpenVINO and with other servers, on the same texts in one run.

All rows of a workload take turns, because shared machines are noisy: compare the ratios of one run, not the seconds of
two runs. Each run adds its rounds to a file of results, which `--report` renders without measuring again.
"""

import argparse
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench_flood import measure_flood  # noqa: E402  after the path is set
from bench_load import LoadError, find_generator  # noqa: E402
from bench_measure import PACKED, Bench, Target, WorkloadBench, print_progress  # noqa: E402
from bench_results import (  # noqa: E402
    BASE,
    Results,
    Round,
    Summary,
    format_costs,
    format_floods,
    format_speeds,
    merge_results,
    summarize,
)
from bench_servers import Server, find_cpu_name  # noqa: E402
from bench_texts import FORMAT, WORKLOADS, make_texts, read_collections  # noqa: E402

from broker.shared.exit import exit_refused  # noqa: E402
from broker.shared.flags import FlagParser, parse_count, parse_duration  # noqa: E402

#: Default file of results.
RESULTS = ROOT / ".cache" / "bench" / "results.json"
FLOOD = "flood"
#: Texts by the name of their file.
Collections = Mapping[str, Sequence[str]]
#: Seed of the random order of texts.
SEED = 12


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags of scripts/bench."""
    parser = FlagParser(
        prog="scripts/bench",
        description="Compare the server with raw OpenVINO and with other servers.",
        epilog="With the options of OVMS's benchmark client (--api_url, …), measure a running server as that client "
        "does; `scripts/bench --api_url URL --help` lists them.",
    )
    every = (*WORKLOADS, FLOOD)
    parser.add_argument(
        "--workload", nargs="+", choices=every, default=list(every), help="what to measure (default: all)"
    )
    text = "numbers of clients (default: 1 8 64; for bulk at most 4)"
    parser.add_argument("--clients", nargs="+", type=parse_count, help=text)
    parser.add_argument("--rounds", type=parse_count, default=3, help="measurements of each row (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=parse_duration, default=3.0, help="least length of one (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="one short round of two workloads, in about a minute")
    parser.add_argument(
        "--precision",
        nargs="+",
        type=str.lower,
        choices=("auto", "f32", "bf16", "f16", "int8"),
        default=["f32", "auto", "int8"],
        help="precisions of the server (default: f32 auto int8)",
    )
    parser.add_argument("--peers", action="store_true", help="measure Infinity and sentence-transformers, too")
    parser.add_argument("--client", choices=("wrk", "python"), help="load generator (default: wrk if it is installed)")
    parser.add_argument("--add", action="store_true", help="keep the rounds of earlier runs on this machine")
    parser.add_argument("--model", type=Path, help="model folder (default: all-MiniLM-L6-v2)")
    cache = ROOT / ".cache" / "vecmill"
    parser.add_argument("--cache", type=Path, default=cache, help="folder for models (default: %(default)s)")
    text = f"folder of other texts: {FORMAT.partition('; --texts')[0]}, in queries.jsonl and mixed.jsonl"
    parser.add_argument("--texts", type=Path, help=text)
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of results (default: %(default)s)")
    text = "write benchmarks.md and its plots of the results to --output, measure nothing"
    parser.add_argument("--report", action="store_true", help=text)
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of --report (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
        options.workload = [name for name in options.workload if name in ("short", "bulk")] or options.workload
        options.clients = options.clients or [1, 64]
    return options


def choose_clients(options: argparse.Namespace, workload: str) -> list[int]:
    """Return the numbers of clients."""
    most = WORKLOADS[workload].max_clients
    return sorted({min(number, most) for number in options.clients or [1, 8, 64]})


def find_texts(folder: Path | None) -> Path:
    """Return the folder of texts: the large collections where this project has them, else those of the tests."""
    large = ROOT.parent / "shared" / "data" / "load"
    return folder or (large if large.is_dir() else ROOT / "tests" / "data")


def start_rows(options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> dict[str, Target]:
    """Start the servers; the stack closes them."""
    targets: dict[str, Target] = {}
    for precision in options.precision:
        print_progress(f"starting Vecmill, {precision}")
        server = Server("--model", str(folder), "--cache", str(options.cache), "--precision", precision)
        stack.callback(server.close)
        resolved = server.read_precision()
        if f"Vecmill, {resolved}" in targets:
            print_progress(f"{precision} is {resolved} on this machine, which has its row")
            server.close()
        else:
            targets[f"Vecmill, {precision}{f' ({resolved})' * (resolved != precision)}"] = server
    if options.peers:
        from bench_peers import NAMES, Peer

        print_progress(f"starting {', '.join(NAMES)}")
        for name in NAMES:
            targets[name] = peer = Peer(name, folder)
            stack.callback(peer.close)
        for target in targets.values():
            if isinstance(target, Peer):
                target.wait()
    return targets


def load_bench(options: argparse.Namespace, folder: Path, targets: Mapping[str, Target]) -> Bench:
    """Return the bench with the raw rows."""
    from bench_raw import Raw, build_padded

    from workers.models.prepare import prepare_model

    prepared = prepare_model(folder, options.cache, print_progress)
    padded = build_padded(folder)
    raws = {BASE: Raw(prepared, *(padded or [prepared.model_path]))}
    if padded:
        raws[PACKED] = Raw(prepared, prepared.model_path)
    return Bench(raws, targets, prepared.max_tokens, options.seconds, find_generator(options.client))


def run_floods(options: argparse.Namespace, folder: Path, bench: Bench, collections: Collections) -> list[Round]:
    """Return one round of floods for each row of Vecmill, and for two workers on this host."""
    queries = WorkloadBench(bench, WORKLOADS["short"], choose_texts(bench, "short", collections), SEED)
    bulk = WorkloadBench(bench, WORKLOADS["bulk"], choose_texts(bench, "bulk", collections), SEED)
    rounds = [Round(FLOOD) for _ in range(options.rounds)]
    with contextlib.ExitStack() as stack:
        servers = {row: target for row, target in bench.targets.items() if isinstance(target, Server)}
        first = next(iter(servers))
        flags = ("--model", str(folder), "--cache", str(options.cache), "--workers", "2")
        two = Server(*flags, "--precision", options.precision[0])
        stack.callback(two.close)
        for each, (row, server) in itertools.product(rounds, [*servers.items(), (f"{first}, 2 workers", two)]):
            flood = measure_flood(
                server, row, bulk.iterate(), queries.iterate(), options.seconds, bulk.rate * 4, bench.generator
            )
            each.floods.append(flood)
            print_progress(
                f"flood: {row}: p99 {flood.alone_ms[8]:.1f} ms alone, {flood.beside_ms[8]:.1f} ms in the flood"
            )
    return rounds


def choose_texts(bench: Bench, name: str, collections: Collections) -> list[str]:
    """Return the texts of a workload."""
    workload = WORKLOADS[name]
    return make_texts(workload, collections[workload.collection], bench.max_tokens, bench.count_tokens)


def measure(options: argparse.Namespace) -> Results:
    """Run all measurements, and write the results after each workload."""
    from workers.models.default import find_folder

    texts_folder = find_texts(options.texts)
    # Read before the servers start.
    collections = read_collections(texts_folder, ("queries", "mixed"))
    folder = find_folder(str(options.model or ""), options.cache, print_progress)
    facts = {
        "cpu": find_cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "model": folder.name,
        "texts": str(options.texts or ("shared/data/load" if texts_folder.name == "load" else "tests/data")),
        "settings": describe_settings(options),
        "generator": Path(find_generator(options.client)).name or "bench_client.py",
    }
    results = read_results(options.results) if options.add else None
    with contextlib.ExitStack() as stack:
        targets = start_rows(options, folder, stack)
        bench = load_bench(options, folder, targets)
        for name in options.workload:
            if name == FLOOD:
                rounds = run_floods(options, folder, bench, collections)
            else:
                # Other texts in each run, so that the rounds of several runs are not of the same texts.
                seed = SEED + len(results.rounds if results else ())
                workload = WorkloadBench(bench, WORKLOADS[name], choose_texts(bench, name, collections), seed)
                rounds = [workload.run_round(choose_clients(options, name)) for _ in range(options.rounds)]
            results = merge_results(results, Results(facts=facts, rounds=rounds))
            write_results(options.results, results)
    assert results
    if bench.failures:
        print_tables(summarize(results))
        raise LoadError(f"{len(bench.failures)} measurements failed; the first: {bench.failures[0]}")
    return results


def describe_settings(options: argparse.Namespace) -> str:
    """Return the flags of the measurements, which those of one report have in common."""
    clients = ["--clients", *map(str, options.clients)] if options.clients else []
    return " ".join([*clients, "--rounds", str(options.rounds), "--seconds", f"{options.seconds:g}"])


def read_results(path: Path) -> Results | None:
    """Return the content of a file of results; None if there is none."""
    import msgspec

    with contextlib.suppress(FileNotFoundError):
        return msgspec.json.decode(path.read_bytes(), type=Results)
    return None


def write_results(path: Path, results: Results) -> None:
    """Write a file of results."""
    import msgspec

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(results))


def print_tables(summary: Summary) -> None:
    """Print all tables."""
    print(", ".join(f"{name}: {value}" for name, value in summary.facts.items()))
    for workload in summary.rounds:
        cells = [cell for cell in summary.cells if cell.workload == workload]
        if cells:
            print("", f"{workload}: {WORKLOADS[workload].meaning}", "", *format_speeds(cells), sep="\n")
            print("", *format_costs(cells), sep="\n")
    if summary.floods:
        print("", *format_floods(summary.floods), sep="\n")


def main() -> None:
    """Measure and print tables, or write the report."""
    if any(word.partition("=")[0] == "--api_url" for word in sys.argv[1:]):
        import bench_ovms

        return bench_ovms.main()
    if "--scale" in sys.argv[1:]:
        arguments = [word for word in sys.argv[1:] if word != "--scale"]
        os.execv(sys.executable, [sys.executable, str(ROOT / "scripts" / "bench_scale.py"), *arguments])
    options = parse_arguments()
    # A stopped run also ends its servers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.report:
            import bench_report

            return bench_report.start(options.results, options.output)
        print_tables(summarize(measure(options)))
    except (LoadError, OSError, ValueError) as error:
        exit_refused("", error)
    except KeyboardInterrupt:
        print_progress("stopped; the servers have ended")
        sys.exit(130)


if __name__ == "__main__":
    main()
