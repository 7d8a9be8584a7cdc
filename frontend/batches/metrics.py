"""Metrics of a runner, and the port that serves them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from frontend.welcome import split_address

_registry = CollectorRegistry()
lines = Counter("vecmill_batch_lines", "Committed lines of batches, by outcome", ["outcome"], registry=_registry)
batches = Gauge("vecmill_batches", "Batches that have not ended, by status", ["status"], registry=_registry)
running = Gauge("vecmill_batches_running", "Batches that this runner works on", registry=_registry)
store_errors = Counter(
    "vecmill_batch_store_errors", "Failed calls of the database or the file store, by reason", ["reason"],
    registry=_registry,
)  # fmt: skip

for _outcome in ("completed", "failed"):
    lines.labels(_outcome)
for _reason in ("full", "unavailable"):
    store_errors.labels(_reason)


def serve(address: str) -> None:
    """Serve /metrics at HOST:PORT in a thread; empty: nowhere. Raise OSError or ValueError if that fails."""
    if address:
        host, port = split_address(address)
        start_http_server(port, host, _registry)
