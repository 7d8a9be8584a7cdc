"""A batch's result, shared out to the frontends that are owed its rows. Pure."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from broker.core.jobs import Job
from broker.core.pool import Lease
from broker.wire import protocol as wire
from broker.wire.protocol import Frame


class Share(NamedTuple):
    """What one frontend gets of a batch: answered jobs and their rows."""

    owner: bytes
    jobs: list[Job]
    message: wire.Answers
    frame: Frame


def fits(lease: Lease, result: wire.BatchResult, dimension: int) -> bool:
    """Whether a result is one of this batch: as many jobs, and of each what it asked for."""
    tokens = wire.unpack_u32(result.tokens)
    if len(tokens) != len(lease.jobs) or result.dimension != dimension:
        return False
    tokenises = any(options & wire.Option.TOKENISE for options in lease.options)
    if not result.sizes:
        return not tokenises
    failed = {failure.position for failure in result.failures}
    wanted = [
        4 * (tokens[position] if options & wire.Option.TOKENISE else dimension)
        for position, options in enumerate(lease.options)
        if position not in failed
    ]
    return wanted == wire.unpack_u32(result.sizes).tolist()


def share_out(lease: Lease, result: wire.BatchResult, vectors: memoryview, revision: str) -> Iterator[Share]:
    """One share per frontend with open jobs in the batch. Failed jobs have no row; closed ones lose theirs.

    Jobs of one frontend are adjacent in a batch, so its rows are one slice and are not copied, unless a job of its own
    was cancelled meanwhile.
    """
    failed = {failure.position for failure in result.failures}
    served = [position for position in range(len(lease.jobs)) if position not in failed]
    begins = _begins(result, len(served))
    rows = [(lease.jobs[position], position, row) for row, position in enumerate(served)]
    for owner, group in itertools.groupby(rows, key=lambda one: one[0].request.owner):
        mine = list(group)
        kept = [one for one in mine if one[0].open]
        if len(kept) == len(mine):
            frame: Frame = vectors[begins[mine[0][2]] : begins[mine[-1][2] + 1]]
        else:
            frame = b"".join(vectors[begins[row] : begins[row + 1]] for _, _, row in kept)
        if kept:
            yield Share(owner, [job for job, _, _ in kept], _message(kept, result, revision), frame)


def _begins(result: wire.BatchResult, rows: int) -> Sequence[int]:
    """Where each row begins in the frame, and where the last one ends."""
    if result.sizes:
        return [0, *itertools.accumulate(wire.unpack_u32(result.sizes))]
    return range(0, (rows + 1) * result.dimension * 4, result.dimension * 4)


def _message(kept: Sequence[tuple[Job, int, int]], result: wire.BatchResult, revision: str) -> wire.Answers:
    tokens, cut = wire.unpack_u32(result.tokens), wire.unpack_u32(result.cut)
    sizes = wire.unpack_u32(result.sizes)
    return wire.Answers(
        requests=wire.pack_u64(job.request.number for job, _, _ in kept),
        positions=wire.pack_u32(job.position for job, _, _ in kept),
        tokens=wire.pack_u32(tokens[position] for _, position, _ in kept),
        dimension=result.dimension,
        queue_us=int(max(job.dispatched - job.request.arrived for job, _, _ in kept) * 1e6),
        inference_us=result.inference_us,
        revision=revision,
        cut=wire.pack_u32(cut[position] for _, position, _ in kept) if cut else b"",
        sizes=wire.pack_u32(sizes[row] for _, _, row in kept) if sizes else b"",
    )
