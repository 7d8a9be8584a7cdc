"""What can go wrong, as codes that cross the wire and as exceptions that do not.

A frontend maps a code to an HTTP status in one table; a worker and the broker only ever name a code.
"""

import enum


class ErrorCode(enum.IntEnum):
    """Why a job or a peer was refused. Numbers are part of the wire: append, never renumber."""

    #: The input itself cannot be embedded (a token id outside the vocabulary, text that is not UTF-8).
    INVALID_INPUT = 1
    #: The input has more tokens than the model takes.
    TOO_LONG = 2
    #: No worker has announced a model of this name.
    UNKNOWN_MODEL = 3
    #: The model is known, but none of its workers has been seen for longer than the grace.
    NO_WORKER = 4
    #: The queue is full.
    OVERLOADED = 5
    #: The job's deadline passed before it could be answered.
    DEADLINE = 6
    #: The input ended a worker each time it was tried.
    POISON = 7
    #: The device failed on a batch.
    DEVICE = 8
    #: The broker or the worker is leaving and takes nothing new.
    DRAINING = 9
    #: The peers have no protocol version in common.
    PROTOCOL = 10
    #: A live worker serves other weights or another tokenizer under the same model name.
    REVISION_CONFLICT = 11
    #: A fault of ours; the text says nothing about its inside.
    INTERNAL = 12
    #: The caller has as much open as one caller may have.
    QUOTA = 13
    #: The worker's batch has run longer than a batch may: it hangs, and should end itself.
    LEASE_EXPIRED = 14
    #: The peer's key has been taken off the allow-list.
    REVOKED = 15
    #: The request has more tokens than one request may have.
    TOO_MANY_TOKENS = 16


class ProtocolError(Exception):
    """Base of the two below."""


class RemoteProtocolError(ProtocolError):
    """A peer sent something malformed: drop it, count it, go on."""


class LocalProtocolError(ProtocolError):
    """Our own code broke an invariant: stop loudly."""
