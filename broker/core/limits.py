"""What the scheduler is configured with. Pure."""

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler is configured with. Times in seconds."""

    heartbeat_s: float = 1.0
    #: Silence after which a peer is dead: three heartbeats and a little.
    liveness_s: float = 3.5
    #: Longest time a batch may run before its worker counts as hung.
    lease_s: float = 20.0
    #: How long a known model's jobs wait for a worker when it has none.
    worker_grace_s: float = 30.0
    #: What may be open at once, over all models.
    max_jobs: int = 100_000
    max_tokens: int = 20_000_000
    max_bytes: int = 1 << 30
    #: Bytes of vectors that a frontend may have unread when it submits more.
    max_unread_bytes: int = 1 << 28
    #: The part of `max_jobs` that one client may have open while anything is open.
    max_client_share: float = 0.5
    #: A request that would wait longer than this, or than its deadline, is refused at the door.
    max_wait_s: float = 30.0
    #: Deaths of a worker that one job may have been running in before it is called poison.
    max_crashes: int = 2
    #: Inferences that one job may have been part of when they failed, before it fails with them.
    max_errors: int = 2
