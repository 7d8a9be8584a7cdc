"""Limits and times of the scheduler. Pure."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and times of the scheduler. Fields with a description are settings of the broker."""

    heartbeat_s: float = 1.0
    #: Silence after which a peer is evicted, in seconds: three heartbeats and a margin.
    liveness_s: float = 3.5
    lease_s: Annotated[
        float, Meta(gt=0, description="evict a worker when a batch has run for longer than this, in seconds")
    ] = 20.0
    worker_grace_s: Annotated[
        float, Meta(ge=0, description="how long jobs wait for a worker when their model has none, in seconds")
    ] = 30.0
    max_jobs: Annotated[int, Meta(gt=0, description="maximum number of open jobs, over all models")] = 100_000
    max_tokens: Annotated[int, Meta(gt=0, description="maximum number of tokens in open jobs, estimated")] = 20_000_000
    max_bytes: Annotated[int, Meta(gt=0, description="maximum number of input bytes in open jobs")] = 1 << 30
    max_unread_bytes: Annotated[
        int,
        Meta(gt=0, description="reject requests of a frontend that has more than this many bytes of answers unread"),
    ] = 1 << 28
    max_client_share: Annotated[
        float, Meta(gt=0, le=1, description="maximum share of --max-jobs that one client may hold")
    ] = 0.5
    max_wait_s: Annotated[
        float, Meta(gt=0, description="reject requests with an expected wait longer than this, in seconds")
    ] = 30.0
    cache_bytes: Annotated[
        int,
        Meta(ge=0, description="memory for results, which answer equal inputs; 0: compute every input, in bytes"),
    ] = 1 << 28
    cache_scope: Annotated[
        Literal["key", "all"],
        Meta(description="who shares results: the clients of one API key, or all clients"),
    ] = "key"
    #: Crashes of workers that one job may be part of before it is poison.
    max_crashes: int = 2
    #: Failed inferences that one job may be part of before it fails.
    max_errors: int = 2
