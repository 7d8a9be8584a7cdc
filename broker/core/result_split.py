"""Split of a batch's result into one answer for each frontend. Pure."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from broker.core.jobs import TOKENIZE, Job
from broker.core.result_cache import Row
from broker.core.worker import Lease
from broker.wire import protocol as wire
from broker.wire.protocol import Frame


class Share(NamedTuple):
    """Answered jobs of one frontend in a batch, with their rows."""

    owner: bytes
    jobs: list[Job]
    message: wire.Answers
    frame: Frame


def matches_lease(lease: Lease, result: wire.BatchResult, dimension: int) -> bool:
    """Return whether a result has the jobs of this lease, with rows of the sizes that their options require."""
    tokens = wire.unpack_u32(result.tokens)
    if len(tokens) != len(lease.jobs) or result.dimension != dimension:
        return False
    if not result.sizes:
        return not lease.tokenizes
    failed = {failure.position for failure in result.failures}
    expected = [
        4 * (tokens[position] if options & TOKENIZE else dimension)
        for position, options in enumerate(lease.options)
        if position not in failed
    ]
    return expected == wire.unpack_u32(result.sizes).tolist()


def split_result(lease: Lease, result: wire.BatchResult, vectors: memoryview, revision: str) -> Iterator[Share]:
    """Yield one share for each frontend with open jobs in the batch. Rows of closed jobs are dropped.

    Jobs of one frontend are adjacent in a batch, so their rows are one slice and are not copied, unless one of the
    frontend's jobs was cancelled meanwhile.
    """
    served = _list_served(lease, result)
    offsets = _find_offsets(result, len(served))
    rows = [(lease.jobs[position], position, row) for row, position in enumerate(served)]
    for owner, group in itertools.groupby(rows, key=lambda row: row[0].request.owner):
        owned = list(group)
        still_open = [row for row in owned if row[0].is_open]
        if len(still_open) == len(owned):
            frame: Frame = vectors[offsets[owned[0][2]] : offsets[owned[-1][2] + 1]]
        else:
            frame = b"".join(vectors[offsets[row] : offsets[row + 1]] for _, _, row in still_open)
        if still_open:
            yield Share(owner, [job for job, _, _ in still_open], _build_answers(still_open, result, revision), frame)


def list_rows(lease: Lease, result: wire.BatchResult, vectors: memoryview) -> Iterator[tuple[Job, Row]]:
    """Yield the jobs whose inputs have keys, also closed jobs, with copies of their rows."""
    tokens, truncated = wire.unpack_u32(result.tokens), wire.unpack_u32(result.truncated)
    served = _list_served(lease, result)
    offsets = _find_offsets(result, len(served))
    for number, position in enumerate(served):
        job = lease.jobs[position]
        if job.input_key:
            vector = bytes(vectors[offsets[number] : offsets[number + 1]])
            yield job, Row(vector, tokens[position], truncated[position] if truncated else 0)


def _list_served(lease: Lease, result: wire.BatchResult) -> list[int]:
    """Return the positions of the jobs that have rows."""
    failed = {failure.position for failure in result.failures}
    return [position for position in range(len(lease.jobs)) if position not in failed]


def _find_offsets(result: wire.BatchResult, rows: int) -> Sequence[int]:
    """Return the byte offset of each row, and the end of the last one."""
    if result.sizes:
        return [0, *itertools.accumulate(wire.unpack_u32(result.sizes))]
    return range(0, (rows + 1) * result.dimension * 4, result.dimension * 4)


def _build_answers(rows: Sequence[tuple[Job, int, int]], result: wire.BatchResult, revision: str) -> wire.Answers:
    tokens, truncated = wire.unpack_u32(result.tokens), wire.unpack_u32(result.truncated)
    sizes = wire.unpack_u32(result.sizes)
    return wire.Answers(
        requests=wire.pack_u64([job.request.number for job, _, _ in rows]),
        positions=wire.pack_u32([job.position for job, _, _ in rows]),
        tokens=wire.pack_u32([tokens[position] for _, position, _ in rows]),
        dimension=result.dimension,
        queue_us=int(max([job.dispatched_at - job.request.arrived for job, _, _ in rows]) * 1e6),
        inference_us=result.inference_us,
        revision=revision,
        truncated=wire.pack_u32(truncated[position] for _, position, _ in rows) if truncated else b"",
        sizes=wire.pack_u32(sizes[row] for _, _, row in rows) if sizes else b"",
    )
