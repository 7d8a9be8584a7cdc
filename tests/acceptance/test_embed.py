"""`scripts/embed` with the fake model: formats, resuming, row errors, refusals and exit statuses."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.harness.data import read_golden
from tests.harness.fake_worker import DIMENSION, MAX_TOKENS, vector
from tests.harness.processes import ROOT, Cluster, Program, alive, descendants, free_port, until

ROWS = 2500


class Embedder:
    """Runs scripts/embed against a cluster."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.input = folder / "in.jsonl"
        self.output = folder / "out"

    def command(self, *flags: str | Path, url: str = "") -> list[str]:
        """Return the command, with the packages of this environment."""
        known = ["--url", url or self.cluster.url, "--part-rows", "700", "--batch", "64"]
        return [sys.executable, str(ROOT / "scripts/embed.py"), *known, *map(str, flags)]

    def run(self, *flags: str | Path, stdin: bytes = b"", url: str = "") -> "subprocess.CompletedProcess[str]":
        """Run scripts/embed to its end."""
        done = subprocess.run(self.command(*flags, url=url), input=stdin, capture_output=True, timeout=60)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *flags: str | Path) -> Program:
        """Start scripts/embed."""
        return Program("embed", self.command(*flags), self.folder / "embed.log")

    def write(self, texts: Sequence[str]) -> None:
        """Write the texts as rows of JSONL, with an id and another column."""
        rows = ({"doc": f"d{number}", "body": text, "size": len(text)} for number, text in enumerate(texts))
        self.input.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a cluster for tests that end none of its processes."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    cluster.all()
    yield cluster
    cluster.close()


@pytest.fixture
def embedder(running: Cluster, tmp_path: Path) -> Embedder:
    """Return an embedder with an input of `ROWS` texts."""
    embedder = Embedder(running, tmp_path)
    embedder.write(make_texts())
    return embedder


def make_texts(count: int = ROWS) -> list[str]:
    return [f"text {number}" for number in range(count)]


def check_rows(table: pa.Table, texts: Sequence[str]) -> None:
    """Check that a table has every row once, in order, with the fake model's vector."""
    assert table.num_rows == len(texts)
    vectors = np.asarray(pa.concat_arrays(table.column("embedding").chunks).flatten()).reshape(-1, DIMENSION)
    assert vectors.tolist() == [vector(text).tolist() for text in texts]


def test_jsonl_becomes_parquet_parts(embedder: Embedder) -> None:
    done = embedder.run(embedder.input, "-o", embedder.output, "--text", "body", "--id", "doc", "--keep", "size")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(embedder.output)
    check_rows(table, make_texts())
    assert table.schema.field("embedding").type == pa.list_(pa.field("element", pa.float32()), DIMENSION)
    assert table.column_names == ["id", "size", "embedding"]
    assert table.column("id").to_pylist() == [f"d{number}" for number in range(ROWS)]
    assert table.column("size").to_pylist() == [len(text) for text in make_texts()]
    assert f"{ROWS:,} rows" in done.stderr
    again = embedder.run(embedder.input, "-o", embedder.output, "--text", "body", "--id", "doc", "--keep", "size")
    assert (again.returncode, "has all 2,500 rows" in again.stderr) == (0, True)


def test_killed_runs_resume_where_they_ended(embedder: Embedder) -> None:
    dice = random.Random(3)
    flags = (embedder.input, "-o", embedder.output, "--text", "body")
    kills = 0
    while kills < 5:
        program = embedder.start(*flags, "--quiet")
        try:
            status = program.wait(0.5 + dice.random())
        except subprocess.TimeoutExpired:
            program.close()
            kills += 1
        else:
            assert status == 0, program.output
            break
    done = embedder.run(*flags)
    assert done.returncode == 0, done.stderr
    check_rows(pq.read_table(embedder.output), make_texts())
    assert sorted(path.name for path in (embedder.output / "_vecmill").iterdir()) == ["lock"]


def test_interrupted_run_keeps_its_rows(embedder: Embedder) -> None:
    texts = [*make_texts(300), "wait go", *make_texts()[301:]]
    embedder.write(texts)
    flags = (embedder.input, "-o", embedder.output, "--text", "body", "--batch", "50", "--in-flight", "2")
    program = embedder.start(*flags)
    journal = embedder.output / "_vecmill" / "000000.journal"
    until(lambda: journal.exists() and journal.stat().st_size, what="the journal")
    program.signal(signal.SIGINT)
    until(lambda: "finishing the open requests" in program.output)
    (embedder.cluster.folder / "go").touch()
    assert program.wait() == 130
    assert "the same command goes on from here" in program.output
    done = embedder.run(*flags)
    assert done.returncode == 0
    assert "rows from earlier runs" in done.stderr
    check_rows(pq.read_table(embedder.output), texts)


def test_single_files_are_written_of_parts(embedder: Embedder) -> None:
    flags = (embedder.input, "--text", "body", "--id", "doc")
    assert embedder.run(*flags, "-o", embedder.folder / "out.npy").returncode == 0
    vectors = np.load(embedder.folder / "out.npy")
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [vector(text).tolist() for text in make_texts()]
    ids = [json.loads(line) for line in (embedder.folder / "out.ids.jsonl").read_text().splitlines()]
    assert ids == [f"d{number}" for number in range(ROWS)]
    done = embedder.run(*flags, "--keep", "size", "-o", embedder.folder / "out.jsonl", "--limit", "900")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (embedder.folder / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"d{number}" for number in range(900)]
    assert rows[1] == {"id": "d1", "size": 6, "embedding": vector("text 1").tolist()}
    assert not list(embedder.folder.glob("*.parts/part*"))
    assert embedder.run(*flags, "-o", embedder.folder / "out.npy").returncode == 0
    refused = embedder.run(*flags, "-o", embedder.folder / "out.npy", "--limit", "3")
    assert refused.returncode == 2
    assert "begun with no --limit" in refused.stderr


def test_stdin_and_compressed_files_are_read(embedder: Embedder) -> None:
    texts = make_texts(1500)
    stdin = "".join(f"{text}\n" for text in texts).encode()
    assert embedder.run("-", "-o", embedder.output, stdin=stdin).returncode == 0
    check_rows(pq.read_table(embedder.output), texts)
    other = embedder.run("-", "-o", embedder.folder / "b", "--text", "body", stdin=embedder.input.read_bytes())
    assert other.returncode == 0
    check_rows(pq.read_table(embedder.folder / "b"), make_texts())
    folder = embedder.folder / "inputs"
    folder.mkdir()
    (folder / "1.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a", "n": 1}\n{"text": "b", "n": 2}\n'))
    (folder / "2.jsonl.zst").write_bytes(pa.compress(b'{"text": "c", "n": 3}', "zstd", asbytes=True))
    (folder / "3.csv").write_text('n,text\n4,"d, with ""quotes"""\n')
    (folder / "4.tsv").write_text("n\ttext\n5\te\n")
    (folder / "_hidden.csv").write_text("")
    pq.write_table(pa.table({"text": ["f", "g"], "n": [6, 7]}), folder / "5.parquet")
    done = embedder.run(folder, "-o", embedder.folder / "c", "--keep", "n")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(embedder.folder / "c")
    check_rows(table, ["a", "b", "c", 'd, with "quotes"', "e", "f", "g"])
    assert table.column("n").to_pylist() == [1, 2, 3, 4, 5, 6, 7]


def test_stdin_that_ends_too_early_is_refused(embedder: Embedder) -> None:
    texts = make_texts(1400)
    whole = "".join(f"{text}\n" for text in texts).encode()
    too_long = f"{'x' * (MAX_TOKENS + 1)}\n".encode() * 2
    output = embedder.folder / "out.npy"
    flags = ("-", "-o", output, "--in-flight", "1", "--max-errors", "1")
    assert embedder.run(*flags, stdin=whole + too_long).returncode == 1
    for shorter in (b"", "".join(f"{text}\n" for text in texts[:700]).encode()):
        refused = embedder.run(*flags, stdin=shorter)
        assert (refused.returncode, "has rows of part" in refused.stderr) == (2, True), refused.stderr
        assert not output.exists()
    assert len(list(embedder.folder.glob("out.npy.parts/part-*.parquet"))) == 3


@pytest.mark.parametrize("name", ["out", "out.npy", "out.jsonl"])
def test_stdin_is_compared_with_finished_output(embedder: Embedder, name: str) -> None:
    output = embedder.folder / name
    lines = b"".join(f"{text}\n".encode() for text in make_texts(800))
    assert embedder.run("-", "-o", output, stdin=lines).returncode == 0
    same = embedder.run("-", "-o", output, stdin=lines)
    assert (same.returncode, "has all 800 rows" in same.stderr) == (0, True), same.stderr
    for other, text in (
        (b"other\n", "other rows than"),
        (lines[:-1] + b"!\n", "from row 700 on"),
        (lines + b"more\n", "from row 700 on"),
        (b"", "ends after 0 parts"),
    ):
        refused = embedder.run("-", "-o", output, stdin=other)
        assert (refused.returncode, text in refused.stderr) == (2, True), refused.stderr


def test_lost_files_of_finished_output_are_replaced(embedder: Embedder) -> None:
    texts = make_texts(1500)
    lines = [f"{text}\n".encode() for text in ["x" * (MAX_TOKENS + 1), *texts]]
    flags = ("-", "-o", embedder.output)
    errors = embedder.output / "_errors.jsonl"
    assert embedder.run(*flags, stdin=b"".join(lines)).returncode == 1
    listed = errors.read_bytes()
    (embedder.output / "part-000002.parquet").unlink()
    errors.unlink()
    refused = embedder.run(*flags, stdin=b"".join(lines[:1400]))
    assert (refused.returncode, "ends after 2 parts" in refused.stderr) == (2, True), refused.stderr
    for text in ("1,400 rows from earlier runs", "has all 1,501 rows already"):
        again = embedder.run(*flags, stdin=b"".join(lines))
        assert (again.returncode, text in again.stderr) == (1, True), again.stderr
        table = pq.read_table(embedder.output)
        check_rows(table.filter(table.column("embedding").is_valid()), texts)
        assert errors.read_bytes() == listed
        errors.unlink()


def test_rows_with_errors_are_listed_and_retried(embedder: Embedder) -> None:
    texts = ["fine", "x" * (MAX_TOKENS + 1), "good", "once marker raise"]
    embedder.write(texts)
    with embedder.input.open("a") as file:
        file.write('{"doc": "d4"}\nno json\n')
    flags = (embedder.input, "-o", embedder.output, "--text", "body", "--id", "doc")
    done = embedder.run(*flags)
    assert done.returncode == 1, done.stderr
    assert "4 rows in " in done.stderr
    assert "2 rows without text, 3 errors" in done.stderr
    errors = [json.loads(line) for line in (embedder.output / "_errors.jsonl").read_text().splitlines()]
    assert [(error["row"], error["id"], error["code"]) for error in errors] == [
        (1, "d1", "context_length_exceeded"),
        (4, "d4", "no_text"),
        (5, None, "no_text"),
    ]
    table = pq.read_table(embedder.output)
    assert table.column("embedding").is_null().to_pylist() == [False, True, False, False, True, True]
    check_rows(table.filter(table.column("embedding").is_valid()), ["fine", "good", "once marker raise"])
    same = embedder.run(*flags)
    assert (same.returncode, "3 rows have errors, see " in same.stderr) == (1, True), same.stderr
    again = embedder.run(*flags, "--retry-errors")
    assert again.returncode == 1
    assert pq.read_table(embedder.output).equals(table)
    cut = embedder.run(*flags, "--retry-errors", "--truncate", "end")
    assert (cut.returncode, "2 rows have errors" in cut.stderr) == (1, True), cut.stderr
    assert pq.read_table(embedder.output).column("embedding").is_null().to_pylist() == [False] * 4 + [True] * 2
    refused = embedder.run(*flags, "--retry-errors")
    assert (refused.returncode, "begun with --truncate end" in refused.stderr) == (2, True), refused.stderr
    stopped = embedder.run(*flags, "--overwrite", "--max-errors", "1")
    assert stopped.returncode == 1
    assert "more than 1 row has an error" in stopped.stderr
    stopped = embedder.run(*flags, "--overwrite", "--max-errors", "0")
    assert (stopped.returncode, "a row has an error; see" in stopped.stderr) == (1, True), stopped.stderr


def test_other_inputs_and_options_are_refused(embedder: Embedder) -> None:
    flags = (embedder.input, "-o", embedder.output, "--text", "body")
    assert embedder.run(*flags).returncode == 0
    for other in (["--input-type", "query"], ["--dimensions", "4"], ["--dtype", "int8"]):
        refused = embedder.run(*flags, *other)
        assert (refused.returncode, f"with no {other[0]}" in refused.stderr or "float32" in refused.stderr) == (2, True)
    embedder.write(["other"])
    refused = embedder.run(*flags)
    assert (refused.returncode, "in.jsonl has changed" in refused.stderr) == (2, True)
    assert embedder.run(*flags, "--overwrite", "--input-type", "query", "--dtype", "float16").returncode == 0
    table = pq.read_table(embedder.output)
    assert table.schema.field("embedding").type.value_type == pa.float16()
    assert table.num_rows == 1


def test_another_revision_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    models = tmp_path / "models.json"
    models.write_text('{"fake": "revision-1"}')
    cluster.broker()
    cluster.worker("--config-poll-s", "0.1", models=str(models))
    cluster.frontend()
    cluster.until_workers(1)
    embedder = Embedder(cluster, tmp_path)
    embedder.write([*make_texts(1000), "wait go", *make_texts(1000)])
    flags = (embedder.input, "-o", embedder.output, "--text", "body", "--in-flight", "1")
    program = embedder.start(*flags)
    journal = embedder.output / "_vecmill" / "000001.journal"
    until(journal.exists, what="the journal")
    models.write_text('{"fake": "revision-2"}')
    listed = f"{cluster.url}/v1/models"
    until(lambda: "revision-2" in httpx.get(listed).text, what="the new revision")
    (tmp_path / "go").touch()
    assert program.wait() == 2
    assert "has replaced fake by revision revision-2" in program.output
    refused = embedder.run(*flags)
    assert (refused.returncode, "vectors of revision revision-1" in refused.stderr) == (2, True)


def test_server_that_stays_away_exits_3(cluster: Cluster, tmp_path: Path) -> None:
    cluster.all()
    embedder = Embedder(cluster, tmp_path)
    flags = (embedder.input, "-o", embedder.output, "--text", "body", "--patience", "0.5")
    embedder.write(["text"])
    away = embedder.run(*flags, url=f"http://127.0.0.1:{free_port()}")
    assert (away.returncode, "start it and run this again" in away.stderr) == (3, True)
    embedder.write([*make_texts(1000), "wait go", *make_texts(1000)])
    program = embedder.start(*flags)
    part = embedder.output / "part-000000.parquet"
    until(part.exists, what="the first part")
    for process in embedder.cluster.programs:
        process.close()
    assert program.wait() == 3
    assert "run the same command again when it is back" in program.output


def test_run_survives_the_end_of_all_processes(cluster: Cluster, tmp_path: Path) -> None:
    cluster.all()
    embedder = Embedder(cluster, tmp_path)
    texts = [*make_texts(1000), "wait go", *make_texts(1000)]
    embedder.write(texts)
    program = embedder.start(embedder.input, "-o", embedder.output, "--text", "body")
    until((embedder.output / "part-000000.parquet").exists, what="the first part")
    for process in list(cluster.programs):
        process.close()
    (tmp_path / "go").touch()
    # This server accepts fewer texts in a request than the command sends.
    cluster.broker()
    cluster.worker()
    cluster.frontend("--max-inputs", "10")
    assert program.wait(60) == 0, program.output
    check_rows(pq.read_table(embedder.output), texts)


def test_wrong_requests_are_refused_with_a_reason(embedder: Embedder) -> None:
    output = ("-o", embedder.output)
    earlier = embedder.folder / "earlier"
    assert embedder.run(embedder.input, "-o", earlier, "--text", "body", "--limit", "2").returncode == 0
    cases: list[tuple[list[str | Path], str]] = [
        ([embedder.input, *output], "has no column 'text'"),
        ([embedder.input, *output, "--text", "body", "--model", "other"], "has no model other; it has fake"),
        ([embedder.input, *output, "--text", "body", "--prompt-name", "odd"], "prompt_name is 'odd'"),
        ([embedder.folder / "none", *output], "there is no input"),
        ([embedder.input, "-o", embedder.input, "--text", "body"], "exists already"),
        ([embedder.input, "-o", earlier, "--overwrite"], "has no column 'text'"),
    ]
    for flags, text in cases:
        refused = embedder.run(*flags)
        assert refused.returncode == 2, (flags, refused.stderr)
        assert text in refused.stderr
        assert "Traceback" not in refused.stderr
        # No summary, which reads like success.
        assert "rows/s" not in refused.stderr
    assert pq.read_table(earlier).num_rows == 2


@pytest.mark.parametrize("name", ["out", "out.npy", "out.jsonl"])
def test_inputs_without_rows_are_refused(embedder: Embedder, name: str) -> None:
    output = embedder.folder / name
    refused = embedder.run("-", "-o", output)
    assert (refused.returncode, "the inputs have no rows" in refused.stderr) == (2, True), refused.stderr
    assert not output.is_file()
    assert embedder.run("-", "-o", output, stdin=b"text\n").returncode == 0


def test_dry_run_estimates_without_an_output(embedder: Embedder) -> None:
    flags = (embedder.input, "-o", embedder.output, "--text", "body", "--dimensions", "4")
    refused = embedder.run(*flags, "--dry-run", "--input-type", "zz")
    assert (refused.returncode, "refuses the request: input_type is 'zz'" in refused.stderr) == (2, True)
    estimated = embedder.run(*flags, "--dry-run")
    assert estimated.returncode == 0, estimated.stderr
    assert estimated.stdout.startswith("2,500 rows, 0 without text, and "), estimated.stdout
    assert "tokens and less than 1 s, by the length and the time of the first request" in estimated.stdout
    assert not embedder.output.exists()


def test_local_server_lives_as_long_as_the_run(tmp_path: Path) -> None:
    golden = read_golden()[:5]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in golden))
    command = [sys.executable, str(ROOT / "scripts/embed.py"), str(tmp_path / "in.jsonl"), "--local"]
    environ = {**os.environ, "API_KEY": "key-of-another-server", "VECMILL_PRECISION": "f32"}
    command += ["--truncate", "end", "-o", str(tmp_path / "out.npy")]
    program = Program("embed", command, tmp_path / "embed.log", environ)
    servers: set[int] = set()

    def has_ended() -> bool:
        servers.update(descendants(program.process.pid))
        return program.process.poll() is not None

    until(has_ended, 100, "the end of the run")
    assert program.wait() == 0, program.output
    assert "ready after" not in program.output
    assert "open requests" not in program.output
    assert len(servers) >= 4
    assert not any(map(alive, servers))
    assert np.allclose(np.load(tmp_path / "out.npy"), [row["vector"] for row in golden], atol=1e-5)
