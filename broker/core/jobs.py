"""Requests, jobs, and the estimate of how many tokens an input has. Pure.

A request may hold thousands of inputs, and its client may be gone before any of them is dispatched. Admitting,
rejecting and cancelling a request therefore cost the same few steps for any number of inputs: the inputs stay in the
request's single frame, and a `Job` is created from an input when the input leaves the queue.
"""

import bisect
import itertools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from broker.core.input_keys import InputKeys
from broker.wire import protocol as wire
from broker.wire.protocol import Frame, Kind, Option

#: Tokens of an empty text: the special tokens that most model families put around every text.
SPECIAL_TOKENS = 2
#: A worker tokenizes this many tokens in the time in which it runs one token through the model.
TOKENIZE_DISCOUNT = 64
#: Bytes of a text above the model's limit that take as long as one token in the model: all of them are tokenized before
#: the text is rejected or truncated. For all-MiniLM-L6-v2, 8 MB took 0.3 to 1.2 s, that is 500 to 2,500 bytes in the
#: time of a token (2 cores of an Intel Xeon virtual machine, 12,000 tokens/s).
BYTES_PER_TOKEN_TIME = 1024
#: The option as a plain number, because `&` of an `IntFlag` takes 20 times as long.
TOKENIZE = int(Option.TOKENIZE)


class Pricing(NamedTuple):
    """Rule that gives the tokens of a request's inputs: an estimate for text, exact for token ids."""

    special_tokens: int
    tokens_per_byte: float
    #: Most tokens of one input that run; the worker rejects or truncates a longer input.
    longest: int
    #: Whether the inputs are only tokenized.
    tokenize: bool

    def count_tokens(self, lengths: Sequence[int]) -> list[int]:
        """Return the tokens of inputs of these lengths in bytes."""
        special, ratio, longest, _ = self
        if self.tokenize:
            return [1 + (special + int(length * ratio)) // TOKENIZE_DISCOUNT for length in lengths]
        return [
            tokens if (tokens := special + int(length * ratio)) < longest else longest + length // BYTES_PER_TOKEN_TIME
            for length in lengths
        ]


def choose_pricing(kind: Kind, options: int, tokens_per_byte: float, max_tokens: int) -> Pricing:
    """Return the pricing of a request for a model that accepts inputs of up to `max_tokens`."""
    tokenize = bool(options & TOKENIZE)
    if kind == Kind.TOKENS:
        return Pricing(0, 0.25, max_tokens + 1, tokenize)
    return Pricing(SPECIAL_TOKENS, tokens_per_byte, max_tokens + 1, tokenize)


@dataclass(slots=True, eq=False, repr=False)
class Request:
    """One client request: its inputs, which of them are open, and which of those wait in a queue."""

    #: uuid of the frontend process to answer, and the request's number there.
    owner: bytes
    number: int
    #: Model and revision that answer all inputs.
    model: wire.ModelKey
    lane: wire.Lane
    #: Client that takes turns with other clients: an API key, an address, or the frontend's uuid.
    client: str | bytes
    #: Holders of the open jobs, each with a limit: the client and, if known, its address.
    holders: tuple[str | bytes, ...]
    kind: Kind
    #: `Option` bits.
    options: int
    origin: wire.Origin
    arrived: float
    deadline: float
    #: Bytes of all inputs, one after another; empty once the request has ended.
    frame: Frame
    #: Bytes of each input.
    lengths: "memoryview[int]"
    #: Number of inputs.
    inputs: int
    pricing: Pricing
    #: Keys of the inputs in the cache; None: their results are neither looked up nor stored.
    keys: InputKeys | None = None
    #: Open jobs with their tokens and bytes. Maintained by the ledger.
    open_jobs: int = 0
    open_tokens: int = 0
    open_bytes: int = 0
    #: Open jobs that have been created, by position.
    jobs: "dict[int, Job]" = field(default_factory=dict)
    #: Waiting inputs without suspects, and their tokens. Maintained by the queue.
    queued_jobs: int = 0
    queued_tokens: int = 0
    #: Position of the first input that has not left the queue, or, with look-ups, has not been looked up; and positions
    #: that have returned or were looked up, in order.
    _next: int = 0
    _returned: list[int] = field(default_factory=list)
    _tokens: int | None = None
    _counted: list[int] = field(default_factory=list)
    _starts: Sequence[int] = ()

    @classmethod
    def from_submission(
        cls,
        owner: bytes,
        submission: wire.Submission,
        frame: Frame,
        model: wire.ModelKey,
        pricing: Pricing,
        arrived: float,
        keys: InputKeys | None = None,
    ) -> Self:
        """Return the request of a frontend's submission; `owner` is the frontend's uuid."""
        client = submission.client or owner
        lengths = wire.unpack_u32(submission.lengths)
        return cls(
            owner=owner,
            number=submission.request,
            model=model,
            lane=submission.lane,
            client=client,
            holders=(client, submission.address) if submission.address else (client,),
            kind=submission.kind,
            options=submission.options,
            origin=submission.origin,
            arrived=arrived,
            deadline=arrived + submission.budget_ms / 1000,
            frame=frame,
            lengths=lengths,
            inputs=len(lengths),
            pricing=pricing,
            keys=keys,
        )

    def __repr__(self) -> str:
        return f"<Request {self.number} of {self.owner.hex()[:8]}, {self.open_jobs} of {self.inputs} inputs open>"

    @property
    def size(self) -> int:
        """Bytes of all inputs; 0 once the request has ended."""
        return len(self.frame)

    @property
    def tokens(self) -> int:
        """Tokens of all inputs. Counted on first use, because counting reads the length of each input."""
        if self._tokens is None:
            self._counted = self.pricing.count_tokens(self.lengths)
            self._tokens = sum(self._counted)
        return self._tokens

    def count_tokens(self, position: int) -> int:
        """Return the tokens of one input, after `tokens`."""
        return self._counted[position]

    @property
    def looks_up(self) -> bool:
        """Whether each input is looked up before it may leave the queue."""
        return self.keys is not None and self.keys.looks_up

    def list_ready(self) -> Iterable[int]:
        """Return the positions of the waiting inputs that may leave the queue, in order, without suspects."""
        return self._returned if self.looks_up else itertools.chain(self._returned, range(self._next, self.inputs))

    def list_unknown(self) -> range:
        """Return the positions of the waiting inputs that have not been looked up."""
        return range(self._next, self.inputs) if self.looks_up else range(0)

    def end_lookups(self, inputs: int, ready: Iterable[int]) -> None:
        """Record that the first of the unknown inputs were looked up, and which of them may leave the queue."""
        self._next += inputs
        self._returned.extend(ready)

    def remove_ready(self, inputs: int) -> None:
        """Remove the first of the inputs that may leave the queue."""
        returned = len(self._returned[:inputs])
        del self._returned[:returned]
        self._next += inputs - returned

    def return_input(self, position: int) -> None:
        """Add an input that had left to the waiting ones."""
        bisect.insort(self._returned, position)

    def make_job(self, position: int) -> "Job":
        """Return the job of an open input. Repeated calls return the same job. Requires `tokens`."""
        job = self.jobs.get(position)
        if job is None:
            key = (self.owner, self.number, position)
            tokens = self._counted[position]
            job = self.jobs[position] = Job(self, position, key, self.lengths[position], tokens, self.arrived)
        return job

    def read_inputs(self, first: int, last: int) -> memoryview:
        """Return the bytes of inputs from the first to the last position of an open request."""
        if not self._starts:
            self._starts = array("I", itertools.accumulate(self.lengths, initial=0))
        return memoryview(self.frame)[self._starts[first] : self._starts[last + 1]]

    def release_inputs(self) -> None:
        """Free the memory of the inputs, because the request has ended."""
        self.frame = b""
        self.jobs.clear()
        self._counted, self._starts = [], ()


@dataclass(slots=True, eq=False, repr=False)
class Job:
    """One input from its first dispatch to its end. Data only; the scheduler changes it."""

    request: Request
    position: int
    #: Frontend's uuid, request number and position: identifies the job, and orders the jobs of a batch.
    key: tuple[bytes, int, int]
    #: Bytes of the input, and its tokens by the estimate.
    size: int
    tokens: int
    #: When the job was last dispatched; the arrival of its request before that.
    dispatched_at: float
    #: Workers that crashed, and inferences that failed, while the job was running.
    crashes: int = 0
    errors: int = 0
    #: Whether a batch with the job crashed or failed. A suspect runs alone, so that the next crash identifies the job.
    suspect: bool = False
    #: Identifies the input of a job that was blamed for a crash; empty for other jobs.
    fingerprint: bytes = b""
    #: Whether the job has not been answered, failed or cancelled. Holders of a closed job drop it.
    is_open: bool = True
    #: Whether the job waits in its model's queue of suspects.
    is_queued: bool = False
    #: Key of the input if the job leads or follows it, or did (see `Coalescing`).
    input_key: bytes = b""

    def __repr__(self) -> str:
        state = "closed" if not self.is_open else "suspect" if self.suspect else "open"
        return f"<Job {self.position} of {self.request!r}, {state}>"

    @property
    def payload(self) -> memoryview:
        """Bytes of the input; valid while the job is open."""
        return self.request.read_inputs(self.position, self.position)
