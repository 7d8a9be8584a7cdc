"""`scripts/embed`: the manifest, requests, journals, pace and flags. Reads and writes no file."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from embed_options import parse_options  # noqa: E402  after the path is set
from embed_pace import HOLD, MOST, START, Next, Pace, choose_delay_s, choose_next, is_permanent  # noqa: E402
from embed_plan import (  # noqa: E402
    MAX_PART_ROWS,
    Answer,
    Manifest,
    RowError,
    Source,
    choose_part_rows,
    cut_requests,
    decode_records,
    drop_rows,
    encode_record,
    find_difference,
    halve,
)
from embed_progress import Progress  # noqa: E402

MANIFEST = Manifest(
    inputs=[Source("/a", 1, 1), Source("/b", 2, 2)],
    options={"text": "body", "limit": 0},
    model="m",
    revision="r",
    dimension=4,
    part_rows=10,
)
ANSWER = Answer([3, 5, 8], bytes(range(24)), 9, 1, {5: RowError("invalid_input", "bad")})


# --- manifest --------------------------------------------------------------------------------------------------------


def test_equal_manifests_have_no_difference() -> None:
    assert find_difference(MANIFEST, MANIFEST) == ""
    assert msgspec.json.decode(msgspec.json.encode(MANIFEST), type=Manifest) == MANIFEST


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "another version"),
        ({"model": "n"}, "vectors of the model m, not of n"),
        ({"revision": "s"}, "revision r of m, but the server has s"),
        ({"inputs": [Source("/a", 1, 1)]}, "/b was among the inputs"),
        ({"inputs": [*MANIFEST.inputs, Source("/c", 1, 1)]}, "/c was not among the inputs"),
        ({"inputs": [Source("/a", 1, 1), Source("/b", 2, 3)]}, "/b has changed"),
        ({"inputs": MANIFEST.inputs[::-1]}, "another order"),
        ({"options": {"text": "body", "limit": 5}}, "begun with no --limit, not with --limit 5"),
        ({"options": {"text": "body", "limit": 0, "input_type": "query"}}, "no --input-type, not with --input-type"),
        ({"part_rows": 20}, "parts of 10 rows"),
        ({"dimension": 2}, "parts of 10 rows of 4 values"),
    ],
)
def test_manifest_names_what_differs(change: dict[str, Any], text: str) -> None:
    assert text in find_difference(MANIFEST, msgspec.structs.replace(MANIFEST, **change))


def test_part_rows_follow_the_dimension() -> None:
    assert choose_part_rows(8) == MAX_PART_ROWS
    assert choose_part_rows(384) == 21_000
    assert choose_part_rows(1 << 20) == 1000


# --- requests --------------------------------------------------------------------------------------------------------


def test_requests_have_bounded_texts_and_bytes() -> None:
    texts = ["aa", "aa", None, "ü" * 3, "a" * 9, "a", "a", "a"]
    assert list(cut_requests(texts, range(8), max_texts=3, max_bytes=8)) == [[0, 1], [3], [4], [5, 6, 7]]
    assert list(cut_requests(texts, [1, 5], 1)) == [[1], [5]]
    assert list(cut_requests(texts, [], 3)) == []


def test_halves_have_all_rows() -> None:
    assert halve([1, 2, 3]) == ([1], [2, 3])


def test_dropped_rows_leave_the_others() -> None:
    kept = drop_rows(ANSWER, {5})
    assert (kept.rows, kept.vectors, kept.errors) == ([3, 8], bytes([*range(8), *range(16, 24)]), {})
    assert drop_rows(ANSWER, {3}).errors == ANSWER.errors


# --- journals --------------------------------------------------------------------------------------------------------


def test_torn_record_ends_a_journal() -> None:
    record = encode_record(ANSWER)
    for torn in (b"", record[:3], record[:-1], record[:-1] + bytes([record[-1] ^ 1])):
        answers, end = decode_records(record * 2 + torn)
        assert (answers, end) == ([ANSWER, ANSWER], 2 * len(record))


# --- pace ------------------------------------------------------------------------------------------------------------


def run_rounds(pace: Pace, number: int, throughput_at: dict[int, float], now: float = 0.0) -> float:
    """Finish requests with the throughput of the limit at that time."""
    for _ in range(number):
        limit = pace.limit
        work = throughput_at.get(limit, max(throughput_at.values())) / limit
        for _ in range(2 * limit + 1):
            now += 1 / (2 * limit)
            pace.finish_request(int(1000 * work), now)
    return now


def test_pace_grows_while_throughput_grows() -> None:
    pace = Pace()
    assert pace.limit == START
    run_rounds(pace, 30, {limit: float(limit) for limit in range(1, 200)})
    assert MOST // 2 < pace.limit <= MOST


def test_pace_keeps_the_last_gain() -> None:
    pace = Pace()
    now = run_rounds(pace, 6, {2: 1.0, 3: 2.0, 4: 2.0})
    assert pace.limit == 3
    run_rounds(pace, HOLD // 2, {3: 2.0, 4: 4.0}, now)
    assert pace.limit == 3


def test_full_server_halves_the_pace() -> None:
    pace = Pace()
    run_rounds(pace, 10, {limit: float(limit) for limit in range(1, 200)})
    before = pace.limit
    pace.slow_down()
    assert pace.limit == before // 2
    for _ in range(10):
        pace.slow_down()
    assert pace.limit == 1


def test_fixed_pace_does_not_change() -> None:
    pace = Pace(7)
    run_rounds(pace, 5, {7: 3.0})
    pace.slow_down()
    assert pace.limit == 7


@pytest.mark.parametrize(
    ("status", "code", "param", "chosen"),
    [
        (400, "max_tokens_per_request", "input", Next.SPLIT),
        (413, "body_too_large", "", Next.SPLIT),
        (422, "poison_input", "input", Next.SPLIT),
        (504, "deadline_exceeded", "", Next.SPLIT),
        (400, "", "input", Next.SPLIT),
        (429, "rate_limit_exceeded", "", Next.RETRY),
        (408, "request_timeout", "", Next.RETRY),
        (503, "overloaded", "", Next.RETRY),
        (0, "", "", Next.RETRY),
        (400, "", "prompt_name", Next.REFUSE),
        (401, "invalid_api_key", "", Next.REFUSE),
        (404, "model_not_found", "model", Next.RETRY),
    ],
)
def test_answer_decides_what_follows(status: int, code: str, param: str, chosen: Next) -> None:
    assert choose_next(status, code, param) is chosen


def test_only_the_texts_own_errors_are_permanent() -> None:
    assert is_permanent("context_length_exceeded")
    assert not is_permanent("no_worker")


def test_delays_double_up_to_a_limit() -> None:
    assert [choose_delay_s(number, 0.0) for number in (0, 1, 2, 50)] == [0.5, 1.0, 2.0, 10.0]
    assert choose_delay_s(0, 30.0) == 30.0


# --- progress --------------------------------------------------------------------------------------------------------


def test_summary_counts_each_kind_of_row_once() -> None:
    progress = Progress("quiet")
    progress.skip(1, 1, 2)
    progress.add(1, 1, 0, 0)
    summary = progress.summarize("r")
    assert summary.startswith("1 row in ")
    assert summary.endswith("1 token, 1 row from earlier runs, 2 rows without text, 1 error, revision r")
    assert (progress.done, progress.count()["rows"]) == (4, 4)


# --- flags -----------------------------------------------------------------------------------------------------------


def test_format_follows_the_outputs_ending() -> None:
    formats = [parse_options(["a", "-o", name]).format for name in ("x", "x.npy", "x.jsonl", "x.ndjson", "x.parquet")]
    assert formats == ["parquet", "npy", "jsonl", "jsonl", "parquet"]
    assert parse_options(["a", "-o", "x.npy", "--format", "parquet"]).format == "parquet"


def test_flags_become_options() -> None:
    flags = ["a", "b", "-o", "x", "--keep", "p,q", "--keep", "q", "--url", "http://h/v1/", "--in-flight", "auto"]
    options = parse_options([*flags, "--dimensions", "4", "--truncate", "end"])
    assert (options.inputs, options.keep, options.url, options.in_flight) == (("a", "b"), ("p", "q"), "http://h", 0)
    assert (options.max_errors, parse_options(["a", "-o", "x", "--max-errors", "0"]).max_errors) == (None, 0)
    assert options.request_fields == {"truncate": "end", "dimensions": 4}


@pytest.mark.parametrize(
    "flags",
    [
        ["--text", "a", "--template", "{a}"],
        ["--input-type", "query", "--prompt-name", "query"],
        ["-"],
        ["--batch", "0"],
        ["--in-flight", "many"],
        ["--patience", "long"],
        ["--max-errors", "-1"],
        ["--url", "127.0.0.1:8444"],
        ["--url", "localhost:8444/v1"],
        ["--url", "http://"],
    ],
)
def test_invalid_flags_exit_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_options(["a", "-o", "x", *flags])
    assert exit_info.value.code == 2
    assert "scripts/embed: error:" in capsys.readouterr().err
