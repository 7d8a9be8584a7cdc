"""Errors of the store of files and batches."""

import errno

from broker.shared.files import explain

#: What errors of a full disk have in their texts: those of obstore, of SQLite and of PostgreSQL.
_FULL = (f"os error {errno.ENOSPC}", f"os error {errno.EDQUOT}", "disk is full", "disk quota", "no space left")


class StoreError(Exception):
    """The database or the file store cannot be used now. The text is one sentence for the operator."""


class StoreFullError(StoreError):
    """The disk of the database or of the file store is full."""


class ForeignStoreError(StoreError):
    """The file store belongs to another database."""


class MissingContentError(StoreError):
    """The file store has less of a file than was written."""


class TooManyBatchesError(Exception):
    """The owner of a batch has as many open batches as allowed."""


class DamagedRowError(Exception):
    """A batch's row cannot be decoded, for example because a later release has written it."""

    def __init__(self, batch: str, reason: str) -> None:
        super().__init__(f"{batch}: the row of this batch is damaged or of a later release, and is left: {reason}")
        self.batch = batch


class TooLargeError(Exception):
    """An upload is larger than allowed."""


def convert_error(subject: str, error: Exception) -> StoreError:
    """Return the error of a database or a file store, which `subject` names, as an error of the store."""
    # `explain` leaves out the path, which `subject` has.
    text = explain(error)
    reason = text.splitlines()[0] if text else type(error).__name__
    if any(words in text.lower() for words in _FULL):
        return StoreFullError(f"{subject} is full: {reason}; make space")
    return StoreError(f"{subject} cannot be used: {reason}")
