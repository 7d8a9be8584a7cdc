"""`scripts/bench`: texts, load results, statistics, tables and options. Starts no server."""

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import bench  # noqa: E402  after the path is set
import bench_load  # noqa: E402
import bench_measure  # noqa: E402
import bench_ovms  # noqa: E402
import bench_peers  # noqa: E402
import bench_raw  # noqa: E402
import bench_report  # noqa: E402
import bench_scale  # noqa: E402
import bench_servers  # noqa: E402
from bench_results import (  # noqa: E402
    BASE,
    Cell,
    Flood,
    Results,
    Round,
    add_ratios,
    format_costs,
    format_floods,
    format_overview,
    format_speeds,
    merge_results,
    summarize,
)
from bench_texts import (  # noqa: E402
    CHUNK_TOKENS,
    WORKLOADS,
    build_requests,
    generate_texts,
    join_chunks,
    make_texts,
    read_collection,
    read_collections,
    split_text,
    take_texts,
)

from broker.shell.metrics_server import render  # noqa: E402
from tests.harness.core import Core  # noqa: E402

QUERIES = ROOT / "tests" / "data" / "queries.jsonl"


def count_words(texts: Sequence[str]) -> list[int]:
    """Return the words of each text and two special tokens."""
    return [len(text.split()) + 2 for text in texts]


def test_broker_has_the_counters_of_the_columns() -> None:
    core = Core()
    core.worker()
    text = render(core.scheduler.collect_metrics(), "")[0].decode()
    for names in bench_measure.QUOTIENTS.values():
        for name in names:
            assert f"\n{name}{{" in text
    before, after = ({name: value for names in bench_measure.QUOTIENTS.values() for name in names} for value in (1, 3))
    after["vecmill_micro_batch_inputs_total"] = 9
    assert bench_measure.divide_counters(before, after) == {"padding": 1, "batch": 1, "micro_batch": 4}


def make_cell(row: str = "Vecmill, f32", texts_s: float = 100.0, **fields: object) -> Cell:
    """Return a measurement."""
    known: dict[str, object] = {"workload": "short", "clients": 8, "latency_ms": [float(each) for each in range(10)]}
    return Cell(row=row, texts_s=texts_s, tokens_s=20 * texts_s, **{**known, **fields})  # type: ignore[arg-type]


# --- texts -----------------------------------------------------------------------------------------------------------


def test_no_generated_text_repeats() -> None:
    texts = read_collection(QUERIES)
    made = list(itertools.islice(generate_texts(texts, 1), 5 * len(texts)))
    assert len(set(made)) == len(made) == 5 * len(texts)
    assert set(made[: len(set(texts))]) == set(texts)


def test_combined_texts_keep_the_lengths() -> None:
    texts = read_collection(QUERIES)
    source = generate_texts(texts, 1)
    first, second, third = (list(map(len, itertools.islice(source, len(texts)))) for _ in range(3))
    for later in (second, third):
        assert sum(later) == pytest.approx(sum(first), rel=0.05)
        assert max(later) > max(first) / 2


def test_seed_decides_the_order_of_texts() -> None:
    texts = [f"text {number} of many" for number in range(20)]
    first, same, other = (list(itertools.islice(generate_texts(texts, seed), 50)) for seed in (1, 1, 2))
    assert first == same != other


@pytest.mark.parametrize(
    ("text", "halves"),
    [("one two", ("one", " two")), ("abcd", ("ab", "cd")), ("", ("", "")), ("a bcdefgh", ("a", " bcdefgh"))],
)
def test_text_is_split_at_a_space(text: str, halves: tuple[str, str]) -> None:
    assert split_text(text) == halves


def test_chunks_have_the_promised_lengths() -> None:
    texts = [" ".join(["word"] * (number % 120 + 1)) for number in range(400)]
    chunks = join_chunks(texts, count_words(texts))
    assert len(chunks) > 50
    assert all(CHUNK_TOKENS[0] <= tokens <= CHUNK_TOKENS[1] for tokens in count_words(chunks))


def test_texts_that_are_too_long_are_left_out() -> None:
    assert make_texts(WORKLOADS["short"], ["a", "a b c d", "a"], 4, count_words) == ["a"]
    assert take_texts(iter(["a b c d", "a", "b"]), 2, 4, count_words) == ["a", "b"]
    with pytest.raises(ValueError, match="only 1 different texts, and 2 are needed"):
        take_texts(iter(["a"]), 2, 4, count_words)


def test_requests_have_all_texts_once() -> None:
    requests = build_requests(["a", "b", "ü", "d", "left"], 2, "/v1/embeddings", {"model": "m"})
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in requests]
    assert [body["input"] for body in bodies] == [["a", "b"], ["ü", "d"]]
    assert all(
        f"Content-Length: {len(json.dumps(body))}".encode() in request
        for body, request in zip(bodies, requests, strict=True)
    )


# --- load ------------------------------------------------------------------------------------------------------------


def report_load(times: list[float], *latencies: tuple[int, int], status: int = 0, head: str = "") -> str:
    """Return the output of a load generator."""
    lines = [head, f"errors\t0\t0\t0\t0\t{status}", f"run\t2000000\t{len(times) - 2}"]
    lines += [f"time\t{time}" for time in times] + [f"latency\t{value}\t{count}" for value, count in latencies]
    return "\n".join(lines)


def test_rate_leaves_out_the_ramp() -> None:
    # Two clients; nothing in the first second, then a burst of ten answers each half second.
    bursts = [1.0 + number / 2 for number in range(9) for _ in range(10)]
    load = bench_load.read_load(report_load([0.0, 0.0, *bursts], (5000, 90)), 2, 0.5)
    assert load.rate == pytest.approx(20.0)
    assert (load.answered, load.seconds, load.cpu_s) == (90, 5.0, 0.5)
    assert load.latency_ms == [5.0] * len(bench_load.PERCENTILES)


def test_rate_of_few_bursts_counts_from_the_start() -> None:
    assert bench_load.find_rate([1.0, 1.001, 2.0, 2.001], 0.0) == pytest.approx(2.0, rel=0.01)
    assert bench_load.find_rate([1.9, 1.9001, 1.9002], 0.0) == pytest.approx(1.58, rel=0.01)


def test_failed_requests_end_the_measurement() -> None:
    with pytest.raises(bench_load.LoadError, match="errors 3 of status"):
        bench_load.read_load(report_load([0.0, 1.0, 2.0], (5, 1), status=3), 1, 0.0)
    with pytest.raises(bench_load.LoadError, match="printed no result: unable to connect"):
        bench_load.read_load("unable to connect", 1, 0.0)


def test_corrections_of_wrk_are_undone() -> None:
    measured = Counter({100: 50, 250: 2, 1000: 1})
    interval = 100
    # As stats_correct of wrk's stats.c adds them.
    reported = Counter(measured)
    for value in range(2 * interval, 1001):
        for added in range(value - interval, interval, -interval):
            reported[added] += reported[value]
    assert reported != measured
    assert bench_load.undo_correction(reported, interval) == measured


def test_percentiles_count_repeated_values() -> None:
    found = bench_load.find_percentiles(Counter({1000: 98, 2000: 1, 9000: 1}))
    assert dict(zip(bench_load.PERCENTILES, found, strict=True)) == {
        **dict.fromkeys(bench_load.PERCENTILES, 1.0),
        99: 2.0,
        99.9: 9.0,
    }


def test_requests_survive_the_file(tmp_path: Path) -> None:
    requests = [b"POST /\r\n\r\n{}", b"12\n34", b""]
    path = tmp_path / "requests"
    path.write_bytes(b"".join(b"%d\n%b" % (len(request), request) for request in requests))
    assert bench_load.read_file(path) == requests


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pads", [True, False])
def test_micro_batches_keep_their_budget(pads: bool) -> None:
    lengths = [5, 300, 7, 40, 41, 100, 1]
    cut = bench_raw.cut_micro_batches(lengths, 128, pads=pads)
    assert sorted(itertools.chain(*cut)) == list(range(len(lengths)))
    for rows in cut:
        computed = max(lengths[row] for row in rows) * len(rows) if pads else sum(lengths[row] for row in rows)
        assert computed <= 128 or len(rows) == 1


@pytest.mark.parametrize(
    ("command", "role"),
    [("python -m workers --broker x", "worker"), ("python -m broker", "broker"), ("infinity_emb v2 -m", "server")],
)
def test_process_is_named_by_its_module(command: str, role: str) -> None:
    assert bench_servers.find_role(command.split()) == role


def test_metrics_are_summed_over_labels() -> None:
    text = '# TYPE a counter\na_total{worker="1"} 2\na_total{worker="2"} 3\n# TYPE b gauge\nb 7\n'
    assert bench_servers.sum_samples(text) == {"a_total": 5.0, "b": 7.0}


def test_peers_compute_in_float32_without_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_peers, "export_onnx", lambda folder: tmp_path)
    for name in bench_peers.NAMES:
        _, command = bench_peers.build_command(name, Path("/model"), 1234)
        assert "1234" in command
        assert ("float32" in command) == name.startswith("Infinity")
    assert bench_peers.build_command("Infinity, ONNX", Path("/model"), 1234)[0] == tmp_path
    assert bench_peers.ENVIRON["HF_HUB_OFFLINE"] == "1"


# --- results ---------------------------------------------------------------------------------------------------------


def test_ratios_are_those_of_one_round() -> None:
    rounds = [
        Round("short", add_ratios([make_cell(BASE, base), make_cell(texts_s=rate)]))
        for base, rate in ((100.0, 150.0), (200.0, 220.0), (50.0, 100.0))
    ]
    summary = summarize(Results(facts={}, rounds=rounds))
    raw, vecmill = summary.cells
    assert (raw.texts_s, raw.ratio) == (100.0, 1.0)
    assert (vecmill.texts_s, vecmill.ratio) == (150.0, 1.5)
    assert summary.rounds == {"short": 3}


def test_medians_are_taken_by_process_and_percentile() -> None:
    cells = [make_cell(cpu_s={"worker": each}, latency_ms=[each] * 10, padding=each / 10) for each in (1.0, 9.0, 2.0)]
    (median,) = summarize(Results(facts={}, rounds=[Round("short", [cell]) for cell in cells])).cells
    assert (median.cpu_s, median.latency_ms, median.padding) == ({"worker": 2.0}, [2.0] * 10, 0.2)


def test_runs_of_another_machine_are_not_merged() -> None:
    old, new = (Results(facts={"cpu": cpu}, rounds=[Round(cpu)]) for cpu in "ab")
    assert merge_results(None, new) is new
    assert merge_results(old, new) is new
    assert [each.workload for each in merge_results(old, Results(facts={"cpu": "a"}, rounds=[Round("c")])).rounds] == [
        "a",
        "c",
    ]


def test_tables_have_a_value_for_each_column() -> None:
    cells = [make_cell(cpu_s={"broker": 0.05}, memory_mb={"broker": 70.4}, padding=0.125, batch=31.96, ratio=1.2)]
    cells += [make_cell(BASE, clients=0, latency_ms=[])]
    flood = Flood(row="f32", alone_ms=[5.0] * 10, beside_ms=[10.0] * 10, bulk_alone=100.0, bulk_beside=95.0)
    assert format_speeds(cells)[2:] == [
        "| Vecmill, f32 | 8 | 100 | 1.20 | 2,000 | 4.0 | 7.0 | 8.0 |",
        f"| {BASE} |  | 100 |  | 2,000 |  |  |  |",
    ]
    assert format_costs(cells)[2] == "| Vecmill, f32 | 8 | broker 0.05 | broker 70 | 12% | 32.0 |  |"
    assert format_floods([flood])[2] == "| f32 | 5.0 | 5.0 | 10.0 | 10.0 | 2.0 | 100 | 95 | 95% |"
    for table in (format_speeds(cells), format_costs(cells), format_floods([flood])):
        assert len({line.count("|") for line in table}) == 1


def test_overview_has_the_most_clients_of_each_workload() -> None:
    cells = [make_cell(BASE, 50.0, clients=0), make_cell(clients=1), make_cell(texts_s=200.0, clients=64)]
    other = make_cell(texts_s=70.0, workload="bulk")
    summary = summarize(Results(facts={}, rounds=[Round("short", cells), Round("bulk", [other])]))
    assert format_overview(summary) == [
        "| texts/s | short, 64 clients | bulk, 8 clients |",
        "|---|---:|---:|",
        f"| {BASE} | 50 |  |",
        "| Vecmill, f32 | 200 | 70 |",
    ]


def test_page_has_only_what_was_measured() -> None:
    facts = {"cpu": "CPU", "cores": "2", "model": "m", "texts": "t", "generator": "wrk", "settings": "--rounds 3"}
    page = bench_report.render_page(summarize(Results(facts=facts, rounds=[Round("short", [make_cell()])])))
    assert "## Short: one query per request" in page
    assert "## Bulk" not in page
    assert "flood.svg" not in page
    assert max(map(len, page.splitlines())) <= 120


def test_page_names_the_versions_of_peers() -> None:
    for package in itertools.chain(*bench_peers.PACKAGES.values()):
        name, _, version = package.partition("==")
        if name.partition("[")[0] in ("torch", "infinity-emb", "sentence-transformers"):
            assert version.partition("+")[0] in bench_report.PEERS


def test_each_row_has_its_own_colour() -> None:
    rows = [BASE, "Vecmill, f32", "Vecmill, int8", *bench_peers.NAMES]
    colours = bench_report.choose_colours([*rows, *rows])
    assert list(colours) == rows
    assert len(set(colours.values())) == len(rows)


# --- options ---------------------------------------------------------------------------------------------------------


def test_quick_measures_one_short_round() -> None:
    options = bench.parse_arguments(["--quick"])
    assert (options.rounds, options.seconds, options.workload) == (1, 1.0, ["short", "bulk"])
    assert bench.choose_clients(options, "bulk") == [1, 4]
    assert bench.describe_settings(options) == "--clients 1 64 --rounds 1 --seconds 1"
    assert bench.parse_arguments(["--quick", "--workload", "chunk"]).workload == ["chunk"]


def test_texts_of_a_clone_are_those_of_the_tests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path / "clone")
    assert bench.find_texts(None) == tmp_path / "clone" / "tests" / "data"
    assert bench.find_texts(Path("mine")) == Path("mine")
    (tmp_path / "shared" / "data" / "load").mkdir(parents=True)
    assert bench.find_texts(None) == tmp_path / "shared" / "data" / "load"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        ("a line of text", "JSONDecodeError"),
        ('["a"]', "TypeError"),
        ('{"body": "a"}', "KeyError: 'text'"),
        ('{"text": ""}', "is empty or no string"),
    ],
)
def test_unusable_texts_are_refused_with_their_format(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "queries.jsonl").write_text(content)
    with pytest.raises(ValueError, match=re.escape(reason)) as raised:
        read_collections(tmp_path, ["queries"])
    assert str(raised.value).count("--texts needs a folder with queries.jsonl") == 1


def test_too_few_texts_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="give a folder of larger ones with --texts"):
        take_texts(iter(["a"]), 2, 10, count_words)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--precision", "f33"], "--precision is 'f33', but must be one of 'auto', 'f32', 'bf16', 'f16', 'int8'"),
        (["--clients", "0"], "--clients: '0' is not a whole number of at least 1"),
        (["--rounds", "-1"], "--rounds: '-1' is not a whole number of at least 1"),
        (["--seconds", "nan"], "--seconds: 'nan' is not a number above 0"),
        (["--prec", "f32"], "unrecognized arguments: --prec f32; did you mean --precision?"),
    ],
)
def test_unusable_flag_is_refused(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.parse_arguments(flags)
    hint = "" if sentence.endswith("?") else "; see scripts/bench --help"
    assert capsys.readouterr().err == f"scripts/bench: {sentence}{hint}\n"


def test_precision_is_accepted_in_capitals() -> None:
    assert bench.parse_arguments(["--precision", "F32", "BF16"]).precision == ["f32", "bf16"]


def test_scale_without_workers_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--scale", "--workers", "0"])
    with pytest.raises(SystemExit, match="2"):
        bench_scale.main()
    sentence = "--workers: '0' is not a whole number of at least 1; see scripts/bench --scale --help"
    assert capsys.readouterr().err == f"scripts/bench --scale: {sentence}\n"


def test_report_is_written_to_the_chosen_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(bench_report, "ENVIRONMENT", tmp_path)
    (tmp_path / "lock").write_bytes(bench_report.LOCK.read_bytes())
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    with pytest.raises(OSError, match="run scripts/bench first"):
        bench_report.start(tmp_path / "results.json", tmp_path / "out")
    bench.write_results(tmp_path / "results.json", Results(facts={}, rounds=[Round("short", [make_cell()])]))
    bench_report.start(tmp_path / "results.json", tmp_path / "out")
    assert (tmp_path / "out" / "benchmarks.json").exists()
    assert [command[-1] for command in commands] == [str(tmp_path / "out")]


def test_options_of_ovms_are_accepted() -> None:
    published = "--api_url http://localhost:8000/v3/embeddings --dataset synthetic --synthetic_length 5"
    published += " --request_rate 10 --batch_size 1 --backend ovms-embeddings --model m"
    options = bench_ovms.parse_arguments(published.split())
    documents = bench_ovms.make_documents(options)
    assert len(documents) == 1000
    assert {len(document.split()) for document in documents} == {5}
    starts = bench_ovms.list_starts(1000, options.request_rate)
    assert starts[-1] == pytest.approx(100, rel=0.1)
    assert bench_ovms.list_starts(2, float("inf")) == [0.0, 0.0]


def test_hub_data_set_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_ovms.parse_arguments(["--api_url", "u", "--model", "m", "--dataset", "Cohere/wikipedia"])
    assert "save the texts as JSON lines" in capsys.readouterr().err


def test_outcome_names_tokens_and_latency() -> None:
    outcome = bench_ovms.Outcome(documents=4, tokens=40, failed=1, latencies_s=[0.01, 0.03], duration_s=2.0)
    shown = bench_ovms.format_outcome(outcome, 3)
    assert "Success rate: 66.7 %. (2/3)" in shown
    assert "Tokens per second: 20.0" in shown
    assert "Median latency: 20.00 ms" in shown
    assert "p99 latency: 30.00 ms" in shown
