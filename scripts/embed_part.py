"""A part of an output of `scripts/embed` that is being computed, and its vectors in each `--dtype`."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from embed_inputs import Part
from embed_plan import Answer, RowError

Vectors = npt.NDArray[np.float32]


class OpenPart:
    """A part that is being computed."""

    def __init__(self, part: Part, dimension: int) -> None:
        self.number, self.first_row, self.columns = part.number, part.first_row, part.columns
        self.texts = part.texts
        self.rows = len(part.texts)
        self.digest = part.digest()
        self.vectors: Vectors = np.zeros((self.rows, dimension), np.float32)
        self.errors = {row: RowError("no_text", reason) for row, reason in part.problems.items()}
        self.done = np.zeros(self.rows, np.bool_)
        self.done[list(self.errors)] = True
        self.tokens = self.truncated = 0
        #: How many times the rows with errors have been tried again, with this time.
        self.retries = 0
        #: Answers that are not in the journal.
        self.unsaved: list[Answer] = []

    def add(self, answer: Answer) -> None:
        """Keep the vectors and errors of an answer."""
        self.vectors[answer.rows] = np.frombuffer(answer.vectors, "<f4").reshape(len(answer.rows), -1)
        self.done[answer.rows] = True
        self.errors |= answer.errors
        self.tokens += answer.tokens
        self.truncated += answer.truncated

    @property
    def journal_start(self) -> bytes:
        """First bytes of the journal, by which a journal of other rows or of an earlier try is recognized."""
        retry = f"retry {self.retries};" if self.retries else ""
        return (self.digest + retry).encode()

    @property
    def complete(self) -> bool:
        """Whether every row has a vector or an error."""
        return bool(self.done.all())

    def list_pending(self) -> list[int]:
        """Return the rows without vector or error."""
        return np.flatnonzero(~self.done).tolist()


def make_vectors(part: OpenPart, dtype: str) -> pa.Array:
    """Return the vectors of a part as a column of fixed-size lists, with null for each row with an error."""
    values: npt.NDArray[Any]
    match dtype:
        case "float16":
            values = part.vectors.astype(np.float16)
        case "int8":
            values = np.clip(np.rint(part.vectors * 127), -127, 127).astype(np.int8)
        case "ubinary":
            values = np.packbits(part.vectors > 0, axis=1)
        case _:
            values = part.vectors
    mask = None
    if part.errors:
        missing = np.zeros(part.rows, np.bool_)
        missing[list(part.errors)] = True
        mask = pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1], mask=mask)


def read_vectors(column: pa.ChunkedArray, dtype: str, dimension: int) -> tuple[npt.NDArray[np.bool_], Vectors]:
    """Return which rows of a part have a vector, and these vectors as float32, which `make_vectors` makes equal."""
    chunks = column.chunks
    present = np.concatenate([~np.asarray(chunk.is_null()) for chunk in chunks])
    values = np.concatenate([np.asarray(chunk.flatten()).reshape(-1, chunk.type.list_size) for chunk in chunks])
    if dtype == "ubinary":
        values = np.unpackbits(values, axis=1, count=dimension)
    return present, values.astype(np.float32) / np.float32(127 if dtype == "int8" else 1)
