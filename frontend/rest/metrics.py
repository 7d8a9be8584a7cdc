"""GET /metrics of a frontend: its HTTP requests, also under OVMS's names. The broker serves its own metrics.

Several frontend processes on one port write their numbers into files of one folder (PROMETHEUS_MULTIPROC_DIR, which
prometheus_client reads when it is imported), so that the process that answers a scrape returns the sums.
"""

import asyncio
import contextlib
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from sanic import Request
from sanic.response import BaseHTTPResponse

from broker.shared.exposition import choose_encoder
from frontend.rest.slow_readers import Reason

M = TypeVar("M", Counter, Gauge, Histogram)

PREFIX = "vecmill_"
#: Histogram bounds in seconds, from requests that need no broker to the default deadline.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: OVMS's histogram bounds, in microseconds.
_OVMS_BUCKETS = tuple(float(math.floor(10 * 1.8**power)) for power in range(33))
#: Status of a request if the client disconnected before the answer, as in nginx.
CLIENT_GONE = 499
#: The end of a route's name, which names the path's prefix.
_VERSION = re.compile(r"_v\d.*$")
#: Label of requests for unknown paths.
_UNKNOWN = "unknown"


#: Statuses of rejected requests: a quota is used up, or the server has no capacity.
_REJECTED = ("429", "503")
#: OVMS's counters of embeddings requests: name, text, whether a status counts, and whether there is a label `version`.
_OVMS_COUNTERS: tuple[tuple[str, str, Callable[[str], bool], bool], ...] = (
    ("ovms_requests_success", "Requests answered with 200", lambda status: status == "200", True),
    (
        "ovms_requests_fail",
        "Requests answered with another status",
        lambda status: status not in ("200", str(CLIENT_GONE)),
        True,
    ),
    ("ovms_requests_accepted", "Requests that were not rejected", lambda status: status not in _REJECTED, False),
    ("ovms_requests_rejected", "Requests rejected with 429 or 503", lambda status: status in _REJECTED, False),
    ("ovms_responses", "Answers with vectors", lambda status: status == "200", False),
)

# Without the gauges of the series' creation times, which cannot be summed over processes.
disable_created_metrics()  # type: ignore[no-untyped-call]
_registry = CollectorRegistry()
_requests = Counter(PREFIX + "requests", "HTTP requests", ["endpoint", "status", "model"], registry=_registry)
_request_seconds = Histogram(
    PREFIX + "request_seconds",
    "Seconds from a request's head to its answer",
    ["endpoint"],
    buckets=_SECONDS,
    registry=_registry,
)
_in_flight = Gauge(
    PREFIX + "requests_in_flight",
    "Requests that wait for the broker",
    ["model"],
    multiprocess_mode="livesum",
    registry=_registry,
)
_inputs = Counter(PREFIX + "inputs", "Inputs of answered requests", ["endpoint", "model"], registry=_registry)
_prompt_tokens = Counter(
    PREFIX + "prompt_tokens", "Tokens of answered requests, as in usage", ["model"], registry=_registry
)
_truncated = Counter(
    PREFIX + "truncated_tokens", "Tokens cut off inputs that were truncated", ["model"], registry=_registry
)
_ovms_time = Histogram(
    "ovms_request_time_us",
    "Microseconds from the head of a request to its answer with 200",
    ["interface", "name", "version"],
    buckets=_OVMS_BUCKETS,
    registry=_registry,
)
_ovms_wait = Histogram(
    "ovms_wait_for_infer_req_time_us",
    "Longest time that an input of a request was queued, in microseconds",
    ["name", "version"],
    buckets=_OVMS_BUCKETS,
    registry=_registry,
)
_ovms_inference = Histogram(
    "ovms_inference_time_us",
    "Longest inference among the batches of a request, in microseconds",
    ["name", "version"],
    buckets=_OVMS_BUCKETS,
    registry=_registry,
)
unread_bytes = Gauge(
    PREFIX + "unread_bytes",
    "Bytes of answers that clients have not read yet",
    multiprocess_mode="livesum",
    registry=_registry,
)
scarce_descriptors = Counter(
    PREFIX + "scarce_descriptors",
    "Connections accepted while nearly all descriptors were in use",
    registry=_registry,
)
readers_ended = Counter(
    PREFIX + "readers_ended",
    "Connections closed because the client read too slowly, by reason",
    ["reason"],
    registry=_registry,
)
file_bytes = Counter(
    PREFIX + "file_bytes", "Bytes of files that clients have sent or read", ["direction"], registry=_registry
)
open_uploads = Gauge(
    PREFIX + "open_uploads", "Files that are being uploaded", multiprocess_mode="livesum", registry=_registry
)


def get_endpoint(request: Request) -> str:
    """Return the label of a request's path."""
    return get_route_endpoint(request.route.name) if request.route else _UNKNOWN


@functools.lru_cache(1000)
def get_route_endpoint(route: str) -> str:
    """Return the label of a route, which is the same for all prefixes, from the route's name."""
    return _VERSION.sub("", route.rpartition(".")[2])


# The series are cached because prometheus_client takes longer to find a series than to change its value.
@functools.lru_cache(10_000)
def _get_series(metric: M, *labels: str) -> M:
    return metric.labels(*labels)


def create_series(endpoints: Iterable[str]) -> None:
    """Create the series of these endpoints, at zero."""
    for endpoint in [*endpoints, _UNKNOWN]:
        _requests.labels(endpoint, "200" if endpoint != _UNKNOWN else "404", "")
        _request_seconds.labels(endpoint)
    for direction in ("upload", "download"):
        file_bytes.labels(direction)
    for reason in Reason:
        readers_ended.labels(reason.value)


@functools.lru_cache(1000)
def create_model_series(model: str) -> None:
    """Create the series of a model, at zero."""
    for endpoint in ("embeddings", "tokenize"):
        _requests.labels(endpoint, "200", model)
        _request_seconds.labels(endpoint)
        _inputs.labels(endpoint, model)
    for metric in (_in_flight, _prompt_tokens, _truncated):
        metric.labels(model)
    for histogram in (_ovms_wait, _ovms_inference):
        histogram.labels(model, "1")
    _ovms_time.labels("REST", model, "1")


@contextlib.contextmanager
def track_in_flight(request: Request, model: str) -> Iterator[None]:
    """Count a request as in flight in this context, in which it waits for the broker.

    If the client disconnects meanwhile, the request is counted here, because there may be no answer to count.
    """
    in_flight = _get_series(_in_flight, model)
    in_flight.inc()
    try:
        yield
    except asyncio.CancelledError:
        _get_series(_requests, get_endpoint(request), str(CLIENT_GONE), model).inc()
        request.ctx.counted = True
        raise
    finally:
        in_flight.dec()


def observe_times(model: str, queue_us: int, inference_us: int) -> None:
    """Record the broker's times of an embeddings request, under OVMS's names."""
    _get_series(_ovms_wait, model, "1").observe(queue_us)
    _get_series(_ovms_inference, model, "1").observe(inference_us)


def count_answer(request: Request, response: BaseHTTPResponse, seconds: float) -> None:
    """Count an answered request, for the model that its route has noted in `request.ctx.log`, if any."""
    if hasattr(request.ctx, "counted"):
        return
    note = request.ctx.log
    endpoint, model = get_endpoint(request), note.get("model", "")
    _get_series(_requests, endpoint, str(response.status), model).inc()
    _get_series(_request_seconds, endpoint).observe(seconds)
    if not model or response.status != 200:
        return
    _get_series(_inputs, endpoint, model).inc(note["inputs"])
    if "tokens" in note:
        _get_series(_prompt_tokens, model).inc(note["tokens"])
        _get_series(_truncated, model).inc(note["truncated"])
    if endpoint == "embeddings":
        _get_series(_ovms_time, "REST", model, "1").observe(seconds * 1e6)


class _Collector:
    """All families, for prometheus_client."""

    def __init__(self, *, broker_connected: bool) -> None:
        self._broker_connected = broker_connected

    def collect(self) -> Iterator[Metric]:
        """Yield the families of this process, or their sums over all processes on the port."""
        families = {metric.name: metric for metric in _registry.collect()}
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            # The sums replace the families of this process; a family without a series in any process has no sum.
            summed: Iterable[Metric] = MultiProcessCollector(CollectorRegistry()).collect()  # type: ignore[no-untyped-call]
            families |= {metric.name: metric for metric in summed}
        yield from families.values()
        yield from _collect_ovms_names(families)
        up = GaugeMetricFamily(PREFIX + "broker_up", "Whether this frontend process is connected to the broker")
        up.add_metric([], float(self._broker_connected))
        yield up


def render_metrics(accept: str, *, broker_connected: bool) -> tuple[bytes, str]:
    """Return the body of /metrics and its content type, in the format that the Accept header prefers."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(broker_connected=broker_connected))
    return encode(registry), content_type


def _collect_ovms_names(families: dict[str, Metric]) -> Iterator[Metric]:
    """Yield OVMS's names for some of our families; see docs/metrics.md."""
    samples = [one for one in families[PREFIX + "requests"].samples if one.labels["endpoint"] == "embeddings"]
    models = dict.fromkeys(sample.labels["model"] for sample in samples if sample.labels["model"])
    for name, text, counts_status, versioned in _OVMS_COUNTERS:
        # Untyped, because prometheus_client appends _total to the name of a counter, and OVMS does not.
        family = UnknownMetricFamily(
            name, text, labels=["api", "interface", "method", "name"] + ["version"] * versioned
        )
        for model in models:
            of_model = [sample for sample in samples if sample.labels["model"] == model]
            count = sum(sample.value for sample in of_model if counts_status(sample.labels["status"]))
            family.add_metric(["V3", "REST", "Unary", model] + ["1"] * versioned, count)
        yield family
    gauge = GaugeMetricFamily("ovms_current_requests", "Requests that wait for the broker", labels=["name", "version"])
    for sample in families[PREFIX + "requests_in_flight"].samples:
        gauge.add_metric([sample.labels["model"], "1"], sample.value)
    yield gauge
