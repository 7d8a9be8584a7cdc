"""A batch's result, shared out to the frontends that are owed its rows. Pure."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from broker import protocol as wire
from broker.pool import Lease
from broker.protocol import Frame
from broker.queues import Job


class Share(NamedTuple):
    """What one frontend gets of a batch: answered jobs and their rows."""

    owner: bytes
    jobs: list[Job]
    message: wire.Answers
    frame: Frame


def share_out(lease: Lease, result: wire.BatchResult, vectors: memoryview, revision: str) -> Iterator[Share]:
    """One share per frontend with open jobs in the batch. Failed jobs have no row; closed ones lose theirs.

    Jobs of one frontend are adjacent in a batch, so its rows are one slice and are not copied, unless a job of its own
    was cancelled meanwhile.
    """
    tokens = wire.unpack_u32(result.tokens)
    failed = {failure.position for failure in result.failures}
    width = result.dimension * 4
    rows = itertools.count()
    served = [(job, tokens[position], next(rows)) for position, job in enumerate(lease.jobs) if position not in failed]
    for owner, group in itertools.groupby(served, key=lambda one: one[0].owner):
        mine = list(group)
        kept = [one for one in mine if one[0].open]
        if len(kept) == len(mine):
            frame: Frame = vectors[mine[0][2] * width : (mine[-1][2] + 1) * width]
        else:
            frame = b"".join(vectors[row * width : (row + 1) * width] for _, _, row in kept)
        if kept:
            yield Share(owner, [job for job, _, _ in kept], _message(kept, result, revision), frame)


def _message(kept: Sequence[tuple[Job, int, int]], result: wire.BatchResult, revision: str) -> wire.Answers:
    return wire.Answers(
        requests=wire.pack_u64(job.request for job, _, _ in kept),
        positions=wire.pack_u32(job.position for job, _, _ in kept),
        tokens=wire.pack_u32(count for _, count, _ in kept),
        dimension=result.dimension,
        queue_us=int(max(job.dispatched - job.arrived for job, _, _ in kept) * 1e6),
        inference_us=result.inference_us,
        revision=revision,
    )
