"""Configuration of the scheduler. Pure."""

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration of the scheduler. Times in seconds."""

    heartbeat_s: float = 1.0
    #: Silence after which a peer counts as dead: three heartbeats and a margin.
    liveness_s: float = 3.5
    #: Longest run time of a batch before its worker counts as hung.
    lease_s: float = 20.0
    #: How long the jobs of a known model wait while no worker serves it.
    worker_grace_s: float = 30.0
    #: Most jobs, tokens and bytes open at once, over all models.
    max_jobs: int = 100_000
    max_tokens: int = 20_000_000
    max_bytes: int = 1 << 30
    #: Most bytes of vectors that a frontend may have unread when it submits a request.
    max_unread_bytes: int = 1 << 28
    #: Maximum share of `max_jobs` that one client may hold while other jobs are open.
    max_client_share: float = 0.5
    #: A request that would wait longer than this, or longer than its deadline, is rejected.
    max_wait_s: float = 30.0
    #: Worker crashes during one job before the job counts as poison.
    max_crashes: int = 2
    #: Failed batches that contained one job before the job fails.
    max_errors: int = 2
