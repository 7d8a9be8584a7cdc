"""Choice between the formats of /metrics, for broker and frontend."""

import re
from collections.abc import Callable

import prometheus_client.exposition
from prometheus_client.registry import Collector

#: Versions in an Accept header that prometheus_client fails on, or would repeat in its answer's header.
_INVALID_VERSION = re.compile(r"version=(?![0-9]{1,3}(\.[0-9]{1,3}){0,3}\s*(;|$))")


def choose_encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """Return the encoder and content type that an Accept header prefers. Ignore formats with an invalid version."""
    valid = ",".join(one for one in accept.split(",") if not _INVALID_VERSION.search(one))
    return prometheus_client.exposition.choose_encoder(valid)
