"""Rows of files and batches, as the database stores them and as frontends and runners use them. Pure.

Times are whole seconds since 1970. A new field needs a default, because rows of earlier releases do not have it.
"""

import re
from typing import Literal

from msgspec import Struct

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals", "batch_output"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
#: States of a batch that a runner has still to work on.
OPEN: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")
#: Key of an object of the file store: of an uploaded file, or of a chunk's output or errors.
_KEY = re.compile(r"files/file-[0-9a-f]{32}|batches/batch_[0-9a-f]{32}/[0-9]{6,}-[0-9a-f]{8}-(output|errors)")
#: What obstore adds to the name of a file that is not complete yet.
_UNFINISHED = re.compile(r"#[0-9]+")


class File(Struct, kw_only=True):
    """File of a client. Its content is the concatenation of its parts."""

    id: str
    #: Client that may use the file: "key " and the name of the API key; empty if the server has no keys.
    owner: str
    bytes: int
    created_at: int
    #: None: never.
    expires_at: int | None = None
    filename: str
    purpose: Purpose


class FilePart(Struct):
    """Part of a file, which is one object of the file store."""

    file: str
    #: From 0, in the order of the content.
    number: int
    key: str
    bytes: int


class BatchError(Struct):
    """Reason why a batch failed, as in OpenAI's batch object."""

    code: str
    message: str
    param: str | None = None
    #: Line of the input file, from 1.
    line: int | None = None


class Batch(Struct, kw_only=True):
    """Batch of a client. The database keeps which runner works on it (`Database.claim_batch`)."""

    id: str
    owner: str
    endpoint: str
    model: str | None = None
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    #: Lines of the input file, and those that are committed with a result or an error.
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    errors: list[BatchError] = []
    metadata: dict[str, str] | None = None
    #: Seconds after which the output files expire; None: never.
    output_expires_after_s: int | None = None
    #: Revision of the model that computed the first chunk.
    revision: str = ""
    #: Limits of the owner's API key, as in `RequestOptions`; 0: no limit.
    client_jobs: int = 0
    client_tokens: int = 0
    #: Faults of runners in a row, without a committed chunk between them.
    faults: int = 0
    #: How the lines use the cache of results: `Caching` as a number.
    caching: int = 0
    #: The frontend's settings on which answers depend, by their names in `Config`.
    settings: dict[str, bool | int | str] = {}
    #: Names of the models that the frontend's broker had when the batch was created.
    served: list[str] = []
    #: Names of the models in the input file, with the first line of each; empty before the whole file is valid.
    names: dict[str, int] = {}
    #: Since when no runner has found the model; None: a runner has, or none has searched.
    missing_since: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether a runner has still to work on the batch."""
        return self.status in OPEN


class Chunk(Struct, kw_only=True):
    """Committed lines of a batch, from `first_line` to before `end_line`, both counted from 0."""

    batch: str
    #: From 0, in the order of the input.
    number: int
    first_line: int
    end_line: int
    #: Offset in the input file after the last line.
    input_offset_end: int
    #: Objects with the lines for the output file and the error file; empty if there are none.
    output_key: str = ""
    output_bytes: int = 0
    error_key: str = ""
    error_bytes: int = 0
    completed: int = 0
    failed: int = 0
    tokens: int = 0
    #: Why the last lines of the chunk never ran; None: all ran.
    skipped: BatchError | None = None


def make_id(prefix: str, time_ns: int, random: bytes) -> str:
    """Return an id of 32 hexadecimal digits after the prefix, such as "file-".

    The first half is the time and the second half is random (8 bytes), so that ids are in the order of creation, and a
    page can begin after an id that has been deleted.
    """
    return f"{prefix}{time_ns:016x}{random.hex()}"


def is_key(key: str) -> bool:
    """Return whether Vecmill makes objects with this key. All others in a file store belong to somebody else."""
    return _KEY.fullmatch(key) is not None


def is_unfinished_key(key: str) -> bool:
    """Return whether a file of this name in a local file store is an object that is not complete."""
    key, mark, number = key.partition("#")
    return is_key(key) and _UNFINISHED.fullmatch(mark + number) is not None


def merge_batch(current: Batch, new: Batch) -> Batch:
    """Return the row that a runner saves, with what others have changed meanwhile: the counts and a cancellation.

    Counts change only with the commit of a chunk.
    """
    new.completed, new.failed, new.input_tokens = current.completed, current.failed, current.input_tokens
    new.cancelling_at = current.cancelling_at
    if current.status == "cancelling" and new.is_open:
        new.status = current.status
    elif current.status == "cancelling" and new.status == "completed":
        # The last lines were running already when the batch was cancelled.
        new.status, new.cancelled_at, new.completed_at = "cancelled", new.completed_at, None
    return new


def add_chunk(batch: Batch, chunk: Chunk) -> Batch:
    """Return the batch with the counts of a chunk that is committed."""
    batch.completed += chunk.completed
    batch.failed += chunk.failed
    batch.input_tokens += chunk.tokens
    batch.faults = 0
    return batch


def cancel(batch: Batch, now: int) -> Batch:
    """Return the batch as its owner has cancelled it: unchanged if it has ended."""
    if batch.is_open and batch.status != "cancelling":
        batch.status, batch.cancelling_at = "cancelling", now
    return batch
