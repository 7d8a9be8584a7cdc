"""Files and batches in OpenAI's API: types of the answers. Pure.

As in answers.py, docstrings and `Meta` descriptions are part of the API's description.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from frontend.api.answers import AlwaysTrue

#: `batch_output` is the purpose of files that batches make.
Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals", "batch_output"]


class FileObject(Struct):
    """OpenAI's file object."""

    id: str
    bytes: Annotated[int, Meta(description="Size")]
    created_at: Annotated[int, Meta(description="Seconds since 1970")]
    expires_at: Annotated[int | None, Meta(description="Seconds since 1970; null: never")]
    filename: str
    purpose: Purpose
    object: Literal["file"] = "file"
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(Struct):
    """Page of files, the latest first."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Struct):
    """Answer of a deletion."""

    id: str
    object: Literal["file"]
    deleted: AlwaysTrue


class BatchErrorObject(Struct):
    """Reason why a batch failed."""

    code: str
    message: str
    param: str | None
    line: Annotated[int | None, Meta(description="Line of the input file, from 1")]


class BatchErrorList(Struct):
    """Reasons why a batch failed; at most 100."""

    object: Literal["list"]
    data: list[BatchErrorObject]


class BatchCounts(Struct):
    """Lines of the input file, and those with a result or an error so far."""

    total: int
    completed: int
    failed: int


class InputDetails(Struct, frozen=True):
    """Tokens of inputs."""

    cached_tokens: int = 0


class OutputDetails(Struct, frozen=True):
    """Tokens of outputs, of which embeddings have none."""

    reasoning_tokens: int = 0


class BatchUsage(Struct):
    """Tokens of the completed lines so far."""

    input_tokens: int
    total_tokens: int
    output_tokens: int = 0
    input_tokens_details: InputDetails = InputDetails()
    output_tokens_details: OutputDetails = OutputDetails()


class BatchObject(Struct, kw_only=True):
    """OpenAI's batch object."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrorList | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: Annotated[str | None, Meta(description="File with the results; null if there are none")]
    error_file_id: Annotated[str | None, Meta(description="File with the failed requests; null if there are none")]
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None


class BatchList(Struct):
    """Page of batches, the latest first."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
