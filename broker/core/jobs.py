"""Requests and their jobs.

A request may hold thousands of inputs, and its client may be gone before any of them is dispatched. So admitting,
refusing and cancelling a request cost the same few steps however many inputs it holds: the inputs stay in the request's
one frame, and a `Job` is made from an input when the input leaves the queue. Pure.
"""

from __future__ import annotations

import functools
import itertools
import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from broker.wire import protocol as wire
from broker.wire.protocol import Frame, Kind, Option

#: Tokens of an empty text: those that the tokenizer puts around every text, in most families.
SPECIAL_TOKENS = 2
#: So many tokens that are only counted take a worker as long as one that is run through the model.
CHEAPER = 64
#: Lengths in one bucket differ by less than this factor: at most a fifth of a micro-batch of one bucket is padding.
BUCKET_RATIO = 1.25


class Pricing(NamedTuple):
    """How many tokens the inputs of one request are counted as: estimated for text, exact for token ids."""

    special_tokens: int
    tokens_per_byte: float
    #: The most that one input counts. A longer one is refused or cut once its worker has counted it.
    longest: int
    #: Whether the inputs are only tokenised.
    tokenise: bool

    def count_tokens(self, lengths: Sequence[int]) -> list[int]:
        """Return the tokens of inputs of these lengths in bytes."""
        special, ratio, longest, _ = self
        if self.tokenise:
            return [1 + (special + int(length * ratio)) // CHEAPER for length in lengths]
        return [
            tokens if (tokens := special + int(length * ratio)) < longest else longest
            for length in lengths
        ]  # fmt: skip


def price(kind: Kind, options: int, tokens_per_byte: float, max_tokens: int) -> Pricing:
    """Return the pricing of a request for a model that takes inputs of `max_tokens`."""
    tokenise = bool(options & Option.TOKENISE)
    if kind == Kind.TOKENS:
        return Pricing(0, 0.25, max_tokens + 1, tokenise)
    return Pricing(SPECIAL_TOKENS, tokens_per_byte, max_tokens + 1, tokenise)


@functools.lru_cache(65536)
def find_bucket(tokens: int) -> int:
    """Return the number of the bucket that inputs of this length belong to."""
    return int(math.log(max(1, tokens), BUCKET_RATIO))


class Request:
    """A request: what it asks for, which of its inputs are open, and which of those wait in a queue."""

    __slots__ = (
        "_counted",
        "_starts",
        "_tokens",
        "arrived",
        "bytes",
        "client",
        "deadline",
        "frame",
        "holders",
        "inputs",
        "jobs",
        "kind",
        "lane",
        "lengths",
        "model",
        "number",
        "open_bytes",
        "open_jobs",
        "open_tokens",
        "options",
        "origin",
        "owner",
        "pricing",
        "queued_in",
        "queued_jobs",
        "queued_tokens",
    )

    def __init__(self, owner: bytes, asked: wire.Submission, frame: Frame, pricing: Pricing, arrived: float) -> None:
        #: uuid of the frontend process that is owed the answers, and the request's number there.
        self.owner = owner
        self.number = asked.request
        self.model = asked.model
        self.lane = asked.lane
        #: The client that takes turns with others.
        self.client: str | bytes = asked.client or owner
        #: All whose part of the queue the request is counted to: the client and, where it is told, its address.
        self.holders = (self.client, asked.address) if asked.address else (self.client,)
        self.kind = asked.kind
        #: `Option` bits.
        self.options = asked.options
        self.origin = asked.origin
        self.arrived = arrived
        self.deadline = arrived + asked.budget_ms / 1000
        #: The bytes of all inputs, one after another; empty once the request has ended.
        self.frame = frame
        #: Bytes of each input.
        self.lengths = wire.unpack_u32(asked.lengths)
        self.inputs = len(self.lengths)
        self.bytes = len(frame)
        self.pricing = pricing
        #: What has no answer yet. The ledger counts it.
        self.open_jobs = self.open_tokens = self.open_bytes = 0
        #: Open jobs that have been made, by position.
        self.jobs: dict[int, Job] = {}
        #: What waits in the queue, suspects not counted, and the buckets that it waits in. The queue counts it.
        self.queued_jobs = self.queued_tokens = 0
        self.queued_in: set[int] = set()
        self._tokens: int | None = None
        self._counted: list[int] = []
        self._starts: array[int] = array("I")

    def __repr__(self) -> str:
        return f"<Request {self.number} of {self.owner.hex()[:8]}, {self.open_jobs} of {self.inputs} inputs open>"

    @property
    def tokens(self) -> int:
        """Tokens of all inputs. Counted when somebody first needs them."""
        if self._tokens is None:
            self._tokens = sum(self.pricing.count_tokens(self.lengths))
        return self._tokens

    def sort_inputs(self) -> dict[int, list[int]]:
        """Return the positions of all inputs by their bucket, and get ready to make jobs from them."""
        self._counted = self.pricing.count_tokens(self.lengths)
        self._starts = array("I", itertools.accumulate(self.lengths, initial=0))
        buckets: dict[int, list[int]] = {}
        for position, bucket in enumerate(map(find_bucket, self._counted)):
            buckets.setdefault(bucket, []).append(position)
        return buckets

    def count_tokens(self, position: int) -> int:
        """Return the tokens of one input of a request that has been sorted."""
        return self._counted[position]

    def make_job(self, position: int) -> Job:
        """Return the job of an open input of a request that has been sorted."""
        job = self.jobs.get(position)
        if job is None:
            job = self.jobs[position] = Job(self, position, self._counted[position])
        return job

    def read_input(self, position: int) -> memoryview:
        """Return the bytes of one input of an open request that has been sorted."""
        start = self._starts[position]
        return memoryview(self.frame)[start : start + self.lengths[position]]

    def release(self) -> None:
        """Forget the inputs: the request has ended."""
        self.frame = b""
        self.jobs.clear()
        self._counted, self._starts = [], array("I")


class Job:
    """One input from its first dispatch to its one answer. Data only; the scheduler changes it."""

    __slots__ = (
        "bytes",
        "crashes",
        "dispatched",
        "errors",
        "open",
        "position",
        "queued",
        "request",
        "suspect",
        "tokens",
    )

    def __init__(self, request: Request, position: int, tokens: int) -> None:
        self.request = request
        self.position = position
        self.bytes = request.lengths[position]
        self.tokens = tokens
        self.dispatched = request.arrived
        #: How many workers died, and how many inferences failed, while it ran.
        self.crashes = 0
        self.errors = 0
        #: It was in a batch that killed or failed its worker: it runs alone, so that the next time names the cause.
        self.suspect = False
        #: False once answered, failed or cancelled: whoever still holds it drops it.
        self.open = True
        #: Whether it waits in its model's queue as a suspect.
        self.queued = False

    def __repr__(self) -> str:
        return f"<Job {self.position} of {self.request!r}>"

    @property
    def payload(self) -> memoryview:
        """The input's bytes, while the job is open."""
        return self.request.read_input(self.position)

    @property
    def key(self) -> tuple[bytes, int, int]:
        """The job's name, which also orders the jobs of a batch: its frontend, request and position."""
        return self.request.owner, self.request.number, self.position
