"""What a batch's jobs ask for, job by job: which are run, cut, only tokenised, or refused. Pure."""

from collections.abc import Sequence

import numpy as np

from broker.wire import protocol as wire
from broker.wire.protocol import Option
from workers.engine.backend import Backend, Ids


class BatchInputs:
    """A batch's jobs with their token ids. `accepted` are run, in the batch's order; `tokenised` are answered with
    their ids, by position; `failures` are refused."""

    def __init__(self, ids: Sequence[Ids], options: Sequence[int], backend: Backend) -> None:
        self.accepted: list[Ids] = []
        #: Numbers among the accepted of those that want the vector before normalisation.
        self.raw: set[int] = set()
        self.tokenised: dict[int, bytes] = {}
        self.failures: list[wire.JobFailure] = []
        #: Of every job: its tokens, without those that were cut off, and how many those are.
        self.tokens = [len(one) for one in ids]
        self.truncated = [0] * len(ids)
        for position, (one, option) in enumerate(zip(ids, options, strict=True)):
            if option & Option.TOKENISE:
                self.tokenised[position] = one.astype("<u4").tobytes()
            else:
                self._take(position, one, option, backend)

    def _take(self, position: int, ids: Ids, option: int, backend: Backend) -> None:
        if option & (Option.TRUNCATE_START | Option.TRUNCATE_END):
            at_start = bool(option & Option.TRUNCATE_START)
            ids = truncate_ids(ids, backend.max_tokens, backend.before, backend.after, at_start=at_start)
            self.truncated[position] = self.tokens[position] - len(ids)
            self.tokens[position] = len(ids)
        failure = backend.validate_ids(ids)
        if failure:
            self.failures.append(wire.JobFailure(position, *failure))
            return
        if option & Option.RAW:
            self.raw.add(len(self.accepted))
        self.accepted.append(ids)

    def rows(self, vectors: Sequence[memoryview]) -> list[memoryview | bytes]:
        """The row of each job that was not refused, in the batch's order, given those of the accepted."""
        failed = {failure.position for failure in self.failures}
        left = iter(vectors)
        served = (position for position in range(len(self.tokens)) if position not in failed)
        return [self.tokenised[one] if one in self.tokenised else next(left) for one in served]


def truncate_ids(ids: Ids, max_tokens: int, before: Ids, after: Ids, *, at_start: bool) -> Ids:
    """Ids cut to a length, at the end or at the start of what is between the special tokens `before` and `after`, where
    the ids have these."""
    if len(ids) <= max_tokens:
        return ids
    head = before if ids[: len(before)].tolist() == before.tolist() else before[:0]
    tail = after if ids[len(ids) - len(after) :].tolist() == after.tolist() else after[:0]
    if len(head) + len(tail) > max_tokens:
        head, tail = before[:0], after[:0]
    room = max_tokens - len(head) - len(tail)
    body = ids[len(head) : len(ids) - len(tail)]
    return np.concatenate([head, body[len(body) - room :] if at_start else body[:room], tail])
