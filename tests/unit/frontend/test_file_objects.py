"""Rows of files and batches as objects of OpenAI's API, checked against the types of OpenAI's client."""

from typing import Any

import msgspec
import openai.types
import pytest

from frontend.batches.objects import render_batch, render_batches, render_file, render_files
from frontend.batches.rows import Batch, BatchError, File

FILE = File(id="file-1", owner="key a", bytes=3, created_at=10, expires_at=20, filename="a.jsonl", purpose="batch")
BATCH = Batch(
    id="batch_1", owner="key a", endpoint="/v1/embeddings", input_file_id="file-1", completion_window="24h",
    created_at=10, expires_at=20,
)  # fmt: skip


def encode(answer: msgspec.Struct) -> Any:
    return msgspec.json.decode(msgspec.json.encode(answer))


def test_file_is_openais_object() -> None:
    fields = encode(render_file(FILE))
    assert "owner" not in fields
    file = openai.types.FileObject.model_validate(fields, strict=True)
    assert (file.id, file.bytes, file.expires_at, file.status) == ("file-1", 3, 20, "processed")


def test_new_batch_is_openais_object() -> None:
    fields = encode(render_batch(BATCH))
    assert not {"owner", "revision", "client_jobs"} & set(fields)
    batch = openai.types.Batch.model_validate(fields, strict=True)
    assert (batch.status, batch.errors, batch.usage) == ("validating", None, None)
    assert batch.request_counts is not None
    assert batch.request_counts.total == 0


def test_running_batch_has_counts_and_usage() -> None:
    running = msgspec.structs.replace(
        BATCH,
        status="in_progress",
        in_progress_at=11,
        total=5,
        completed=3,
        failed=1,
        input_tokens=7,
        metadata={"a": "b"},
    )
    batch = openai.types.Batch.model_validate(encode(render_batch(running)), strict=True)
    assert batch.request_counts is not None
    assert batch.usage is not None
    assert batch.request_counts.model_dump() == {"total": 5, "completed": 3, "failed": 1}
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (7, 0, 7)
    assert batch.metadata == {"a": "b"}


def test_failed_batch_has_its_errors() -> None:
    failed = msgspec.structs.replace(
        BATCH, status="failed", failed_at=12, errors=[BatchError("duplicate_custom_id", "twice", "custom_id", 2)]
    )
    batch = openai.types.Batch.model_validate(encode(render_batch(failed)), strict=True)
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [(one.code, one.line) for one in batch.errors.data] == [("duplicate_custom_id", 2)]


@pytest.mark.parametrize("count", [0, 2])
def test_pages_name_their_ends(count: int) -> None:
    ids = ["file-1", "file-2"][:count]
    files = render_files([msgspec.structs.replace(FILE, id=one) for one in ids], has_more=True)
    batches = render_batches([msgspec.structs.replace(BATCH, id=one) for one in ids], has_more=False)
    for page in (files, batches):
        assert (page.first_id, page.last_id) == ((ids[0], ids[-1]) if ids else (None, None))
        assert [one.id for one in page.data] == ids
    assert (files.has_more, batches.has_more) == (True, False)
