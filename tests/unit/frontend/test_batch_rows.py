"""Rows of files and batches: ids, and what changes of a batch's row are merged."""

from typing import get_args

import pytest

from frontend.batches.rows import (
    OPEN,
    Batch,
    Chunk,
    Status,
    add_chunk,
    cancel,
    is_key,
    is_unfinished_key,
    make_id,
    merge_batch,
)


def make_batch(status: Status = "in_progress", total: int = 0) -> Batch:
    return Batch(
        id="batch_1", owner="", endpoint="/v1/embeddings", input_file_id="file-1", completion_window="24h",
        status=status, created_at=10, expires_at=20, total=total,
    )  # fmt: skip


def test_ids_sort_by_time() -> None:
    ids = [make_id("file-", time, random) for time, random in [(9, b"\xff" * 8), (10, b"\0" * 8), (2**60, b"\0" * 8)]]
    assert ids == sorted(ids)
    assert all(len(one) == len("file-") + 32 for one in ids)


def test_keys_of_objects_are_recognized() -> None:
    file, batch = make_id("file-", 1, b"\0" * 8), make_id("batch_", 1, b"\0" * 8)
    keys = [f"files/{file}", f"batches/{batch}/000000-0123abcd-output", f"batches/{batch}/1000000-0123abcd-errors"]
    for key in keys:
        assert is_key(key)
        assert is_unfinished_key(f"{key}#1")
    others = [f"files/{file}x", f"x/files/{file}", f"files/{batch}", f"batches/{batch}/000000-output", "vecmill-store"]
    assert not any(map(is_key, others))
    assert not any(map(is_unfinished_key, [*keys, f"files/{file}#", f"files/{file}#1x", "files/a#1"]))


def test_saved_batch_keeps_committed_counts() -> None:
    chunk = Chunk(
        batch="batch_1", number=0, first_line=0, end_line=3, input_offset_end=9, completed=2, failed=1, tokens=7
    )
    current = add_chunk(add_chunk(make_batch(total=6), chunk), chunk)
    merged = merge_batch(current, make_batch(total=7))
    assert (merged.total, merged.completed, merged.failed, merged.input_tokens) == (7, 4, 2, 14)


@pytest.mark.parametrize(("saved", "expected"), [("in_progress", "cancelling"), ("cancelled", "cancelled")])
def test_saved_batch_keeps_cancellation(saved: Status, expected: Status) -> None:
    merged = merge_batch(cancel(make_batch(), 15), make_batch(saved))
    assert (merged.status, merged.cancelling_at) == (expected, 15)


def test_cancelled_batch_never_ends_as_completed() -> None:
    new = make_batch("completed")
    new.completed_at = 20
    merged = merge_batch(cancel(make_batch(), 15), new)
    assert (merged.status, merged.cancelling_at, merged.cancelled_at, merged.completed_at) == (
        "cancelled",
        15,
        20,
        None,
    )


def test_only_open_batch_is_cancelled() -> None:
    for status in get_args(Status):
        batch = cancel(make_batch(status), 15)
        assert batch.status == ("cancelling" if status in OPEN else status)
        assert batch.cancelling_at == (15 if status in OPEN and status != "cancelling" else None)
