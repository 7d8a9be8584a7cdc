"""Rows of files and batches as objects of OpenAI's API. Pure."""

from collections.abc import Sequence

import msgspec

from frontend.api.file_answers import (
    BatchCounts,
    BatchErrorList,
    BatchErrorObject,
    BatchList,
    BatchObject,
    BatchUsage,
    FileList,
    FileObject,
)
from frontend.batches.rows import Batch, File


def render_file(file: File) -> FileObject:
    """Return a file object."""
    return msgspec.convert(file, FileObject, from_attributes=True)


def render_files(files: Sequence[File], has_more: bool) -> FileList:
    """Return a page of file objects."""
    data = [render_file(file) for file in files]
    return FileList("list", data, data[0].id if data else None, data[-1].id if data else None, has_more)


def render_batch(batch: Batch) -> BatchObject:
    """Return a batch object."""
    fields = {name: getattr(batch, name) for name in _SHARED}
    errors = [BatchErrorObject(one.code, one.message, one.param, one.line) for one in batch.errors]
    return BatchObject(
        **fields,
        errors=BatchErrorList("list", errors) if errors else None,
        request_counts=BatchCounts(batch.total, batch.completed, batch.failed),
        usage=BatchUsage(batch.input_tokens, batch.input_tokens) if batch.in_progress_at else None,
    )


def render_batches(batches: Sequence[Batch], has_more: bool) -> BatchList:
    """Return a page of batch objects."""
    data = [render_batch(batch) for batch in batches]
    return BatchList("list", data, data[0].id if data else None, data[-1].id if data else None, has_more)


#: Fields that are the same in the row and in the object.
_SHARED = {field.name for field in msgspec.structs.fields(BatchObject)} - {
    "object",
    "errors",
    "request_counts",
    "usage",
}
