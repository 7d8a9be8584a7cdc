"""Inputs of a batch, sorted into those to run, those to tokenize only, and those that failed. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from broker.wire import protocol as wire
from broker.wire.protocol import Option
from workers.engine.backend import Backend, Ids


@dataclass(slots=True)
class BatchInputs:
    """Token ids of a batch's jobs. Each job is accepted, tokenized or failed."""

    #: Tokens of each job after truncation.
    tokens: list[int]
    #: Tokens that were cut off each job.
    truncated: list[int]
    #: Ids to run, in the order of the batch.
    accepted: list[Ids] = field(default_factory=list, repr=False)
    #: Indexes in `accepted` of the jobs with `Option.RAW`: their vector is the one before normalization.
    raw: set[int] = field(default_factory=set)
    #: Tokens at the start of each of `accepted` that the pooling leaves out.
    prompt_tokens: list[int] = field(default_factory=list)
    #: Ids to answer instead of a vector, by the job's position, uint32 little-endian.
    tokenized: dict[int, bytes] = field(default_factory=dict, repr=False)
    failures: list[wire.JobFailure] = field(default_factory=list)

    def count_answer_bytes(self, dimension: int) -> int:
        """Return the size of all rows; a vector has `dimension` float32 values."""
        return len(self.accepted) * dimension * 4 + sum(map(len, self.tokenized.values()))

    def merge_rows(self, vectors: Sequence[memoryview]) -> list[memoryview | bytes]:
        """Return the row of each job that has not failed, in the order of the batch.

        `vectors` has the rows of the accepted jobs.
        """
        failed = {failure.position for failure in self.failures}
        next_vector = iter(vectors)
        return [
            self.tokenized[position] if position in self.tokenized else next(next_vector)
            for position in range(len(self.tokens))
            if position not in failed
        ]


def sort_inputs(
    ids: Sequence[Ids], prompt_tokens: Sequence[int], options: Sequence[int], backend: Backend
) -> BatchInputs:
    """Return the inputs of a batch, given each job's ids, tokens of its prompt and `Option` flags."""
    inputs = BatchInputs([len(job_ids) for job_ids in ids], [0] * len(ids))
    for position, (job_ids, prompt, option) in enumerate(zip(ids, prompt_tokens, options, strict=True)):
        if option & Option.TOKENIZE:
            inputs.tokenized[position] = job_ids.astype("<u4").tobytes()
            continue
        if option & (Option.TRUNCATE_START | Option.TRUNCATE_END):
            at_start = bool(option & Option.TRUNCATE_START)
            job_ids = truncate_ids(job_ids, backend.max_tokens, backend.before, backend.after, at_start=at_start)
            inputs.truncated[position] = inputs.tokens[position] - len(job_ids)
            inputs.tokens[position] = len(job_ids)
            if at_start:
                # The special tokens before the prompt stay, and the pooling leaves them out with the prompt.
                prompt = min(prompt, max(len(backend.before), prompt - inputs.truncated[position]))
        if failure := backend.validate_ids(job_ids):
            inputs.failures.append(wire.JobFailure(position, *failure))
            continue
        if option & Option.RAW:
            inputs.raw.add(len(inputs.accepted))
        inputs.accepted.append(job_ids)
        inputs.prompt_tokens.append(prompt)
    return inputs


def truncate_ids(ids: Ids, max_tokens: int, before: Ids, after: Ids, *, at_start: bool) -> Ids:
    """Return at most `max_tokens` ids, as Hugging Face's tokenizers truncate a text.

    The special tokens `before` and `after` stay if the ids have them. The ids between them lose their start if
    `at_start`, and otherwise their end.
    """
    if len(ids) <= max_tokens:
        return ids
    head = before if ids[: len(before)].tolist() == before.tolist() else before[:0]
    tail = after if ids[len(ids) - len(after) :].tolist() == after.tolist() else after[:0]
    if len(head) + len(tail) > max_tokens:
        head, tail = before[:0], after[:0]
    room = max_tokens - len(head) - len(tail)
    body = ids[len(head) : len(ids) - len(tail)]
    return np.concatenate([head, body[len(body) - room :] if at_start else body[:room], tail])
