"""Requests for files and batches: forms, bodies, pages and ranges."""

import json
from typing import Any

import pytest

from frontend.api.errors import ApiError
from frontend.api.file_requests import (
    MAX_FILENAME,
    Page,
    clean_filename,
    files_disabled,
    is_id,
    matches_tag,
    parse_batch,
    parse_page,
    parse_range,
    parse_upload,
    parse_window_s,
    too_large_file,
    too_many_batches,
    too_many_bytes,
    unknown_batch,
    unknown_file,
)

DAY_S = 86400
BATCH = {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"}


@pytest.mark.parametrize(
    ("fields", "filename", "expires_after_s"),
    [
        ({"purpose": "batch"}, "a.jsonl", 30 * DAY_S),
        ({"purpose": "batch"}, "A.JSONL", 30 * DAY_S),
        ({"purpose": "user_data"}, "a.pdf", None),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"},
            "a.jsonl",
            3600,
        ),
        ({"purpose": "evals", "expires_after[anchor]": "created_at", "expires_after[seconds]": "7200"}, "a", 7200),
    ],
)
def test_upload_is_parsed(fields: dict[str, str], filename: str, expires_after_s: int | None) -> None:
    assert parse_upload(fields, filename) == (fields["purpose"], filename, expires_after_s)


@pytest.mark.parametrize(
    ("fields", "filename", "message", "param"),
    [
        ({}, "a.jsonl", "^purpose is missing; send it as a field of the form, as one of: assistants, batch", "purpose"),
        ({"purpose": "x"}, "a", "^purpose is 'x'; send", "purpose"),
        ({"purpose": "batch_output"}, "a", "^purpose is 'batch_output'; send", "purpose"),
        ({"purpose": "batch"}, "a.json", r"^Invalid file format for Batch API\. Must be \.jsonl; .*'a.json'", "file"),
        *(
            ({"purpose": "evals", **fields}, "a", '^expires_after must have "anchor": "created_at"', "expires_after")
            for fields in (
                {"expires_after[anchor]": "created_at"},
                {"expires_after[seconds]": "3600"},
                {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
                {"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592001"},
                {"expires_after[anchor]": "created_at", "expires_after[seconds]": "x"},
                {"expires_after[anchor]": "last_active_at", "expires_after[seconds]": "3600"},
            )
        ),
    ],
)
def test_invalid_upload_is_refused(fields: dict[str, str], filename: str, message: str, param: str) -> None:
    with pytest.raises(ApiError, match=message) as raised:
        parse_upload(fields, filename)
    assert (raised.value.status, raised.value.param) == (400, param)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", "a.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\a.jsonl", "a.jsonl"),
        ("a\r\nb\0\x7f.jsonl", "ab.jsonl"),
        ("ü.jsonl", "ü.jsonl"),
        ("", "file"),
        ("folder/", "file"),
        ("x" * 300 + ".jsonl", "x" * (MAX_FILENAME - 6) + ".jsonl"),
        ("x" * 300, "x" * MAX_FILENAME),
        ("x." + "y" * 300, "x." + "y" * (MAX_FILENAME - 2)),
    ],
)
def test_filename_is_cleaned(name: str, expected: str) -> None:
    assert clean_filename(name) == expected


def test_batch_is_parsed() -> None:
    batch = parse_batch(json.dumps({**BATCH, "metadata": None, "unknown": [1]}).encode())
    assert (batch.input_file_id, batch.metadata, batch.output_expires_after) == ("file-1", None, None)
    expiry = {"anchor": "created_at", "seconds": 7200}
    pairs = {"k" * 64: "v" * 512, **{str(number): "" for number in range(15)}}
    batch = parse_batch(json.dumps({**BATCH, "metadata": pairs, "output_expires_after": expiry}).encode())
    assert batch.metadata == pairs
    assert batch.output_expires_after is not None
    assert batch.output_expires_after.seconds == 7200


@pytest.mark.parametrize(
    ("change", "message", "param"),
    [
        ({"input_file_id": None}, r"^Missing required parameter: 'input_file_id'\.$", "input_file_id"),
        ({"endpoint": None}, "^Missing required parameter: 'endpoint'", "endpoint"),
        ({"completion_window": None}, "^Missing required parameter: 'completion_window'", "completion_window"),
        ({"input_file_id": 1}, "^input_file_id must be a string$", "input_file_id"),
        ({"endpoint": "/v1/x"}, r"^Invalid value: '/v1/x'\. Supported values are: '/v1/embeddings'\.$", "endpoint"),
        ({"completion_window": "x"}, r"^Invalid value: 'x'\. Send '24h', or other hours", "completion_window"),
        ({"metadata": [1]}, "^metadata must be an object of at most 16 pairs of strings", "metadata"),
        ({"metadata": {"a": 1}}, "^metadata must be", "metadata"),
        ({"metadata": {"k" * 65: ""}}, "^metadata must be", "metadata"),
        ({"metadata": {"k": "v" * 513}}, "^metadata must be", "metadata"),
        ({"metadata": {str(number): "" for number in range(17)}}, "^metadata must be", "metadata"),
        ({"output_expires_after": {"seconds": 7200}}, "^output_expires_after must have", "output_expires_after"),
        ({"output_expires_after": 7200}, "^output_expires_after must have", "output_expires_after"),
    ],
)
def test_invalid_batch_is_refused(change: dict[str, Any], message: str, param: str) -> None:
    with pytest.raises(ApiError, match=message) as raised:
        parse_batch(json.dumps(BATCH | change).encode())
    assert (raised.value.status, raised.value.param) == (400, param)


@pytest.mark.parametrize(("text", "seconds"), [("24h", DAY_S), ("1h", 3600), ("720h", 30 * DAY_S), ("7d", 7 * DAY_S)])
def test_window_is_parsed(text: str, seconds: int) -> None:
    assert parse_window_s(text) == seconds


@pytest.mark.parametrize("text", ["0h", "721h", "31d", "24", "h", "-1h", "1.5h", "24H", "1000h", " 24h"])
def test_invalid_window_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match="Send '24h'"):
        parse_window_s(text)


def test_page_is_parsed() -> None:
    after = "file-" + "0" * 32
    assert parse_page({}, 100, 20) == Page("", 20)
    assert parse_page({"limit": "", "after": "", "order": "desc"}, 100, 20) == Page("", 20)
    query = {"limit": "100", "after": after, "order": "asc", "purpose": "batch_output", "unknown": "x"}
    assert parse_page(query, 100, 20) == Page(after, 100, ascending=True, purpose="batch_output")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", value) for value in ("0", "101", "-1", "x", "1.0", "²", "9" * 5000)),
        *(("after", value) for value in ("file-1", "x", "file-" + "g" * 32, "batch_" + "0" * 33, "\0")),
        ("order", "up"),
        ("purpose", "other"),
    ],
)
def test_invalid_page_is_refused(name: str, value: str) -> None:
    with pytest.raises(ApiError, match=f"^{name} is ") as raised:
        parse_page({name: value}, 100, 20)
    assert (raised.value.status, raised.value.param) == (400, name)


def test_ids_are_recognized() -> None:
    assert is_id("file-" + "0" * 32)
    assert is_id("batch_" + "0123456789abcdef" * 2)
    assert not any(map(is_id, ("", "file-", "file-" + "0" * 31, "file-" + "0" * 32 + "\n", "x-" + "0" * 32)))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ("bytes=0-", (0, 10)),
        ("bytes=0-0", (0, 1)),
        ("bytes=3-5", (3, 6)),
        ("Bytes = 3-99", (3, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=9-9", (9, 10)),
        # Invalid ranges, several ranges and other units are ignored.
        *((header, None) for header in ("bytes=-", "bytes=5-3", "bytes=0-1,3-4", "lines=0-1", "bytes=x-", "bytes=0")),
        (f"bytes={'9' * 19}-", None),
    ],
)
def test_range_is_parsed(header: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0", f"bytes={'9' * 18}-"])
def test_range_beyond_the_file_is_refused(header: str) -> None:
    with pytest.raises(ApiError, match=r"its size is 10$") as raised:
        parse_range(header, 10)
    assert raised.value.status == 416
    assert raised.value.headers() == {"Content-Range": "bytes */10"}


@pytest.mark.parametrize(
    ("header", "matches"),
    [("", False), ('"a"', True), ('W/"a"', True), ('"b", "a"', True), ('"b"', False), ("*", True), ("a", False)],
)
def test_tag_is_compared(header: str, matches: bool) -> None:
    assert matches_tag(header, '"a"') == matches


def test_errors_have_statuses_and_codes() -> None:
    errors = [
        unknown_file("file-1"),
        unknown_batch("batch_1"),
        too_large_file(9),
        too_many_bytes(9),
        too_many_batches(9),
        files_disabled("/v1/files"),
    ]
    assert [(error.status, error.code) for error in errors] == [
        (404, None),
        (404, "batch_not_found"),
        (413, "file_too_large"),
        (413, "storage_limit_exceeded"),
        (429, "too_many_batches"),
        (404, "unknown_url"),
    ]
    assert str(errors[0]) == "No such File object: file-1"
    assert "--data" in str(errors[5])
