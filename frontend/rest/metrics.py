"""GET /metrics of a frontend: its HTTP requests, also under OVMS's names. The broker serves its own metrics.

Several frontend processes on one port write their numbers into files of one folder (PROMETHEUS_MULTIPROC_DIR, which
prometheus_client reads when it is imported), so that the process that answers a scrape returns the sums.
"""

import asyncio
import bisect
import collections
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from sanic import Request
from sanic.response import BaseHTTPResponse

from broker.shared.exposition import choose_encoder
from frontend.rest.slow_readers import Reason

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


# --- requests --------------------------------------------------------------------------------------------------------
#
# What the requests of one turn of the event loop add is written at the end of the turn: prometheus_client takes 0.6 µs
# for each change of a series, 1.4 µs for each observation, and more to find a series.


class _Answers:
    """Answers of one endpoint, status and model in this turn."""

    def __init__(self, endpoint: str, status: str, model: str) -> None:
        self._requests = _requests.labels(endpoint, status, model)
        self._request_seconds = _request_seconds.labels(endpoint)
        self._amounts: list[Counter] = []
        self._ovms_time: Histogram | None = None
        if model and status == "200":
            self._amounts = [_inputs.labels(endpoint, model), _prompt_tokens.labels(model), _truncated.labels(model)]
            self._ovms_time = _ovms_time.labels("REST", model, "1") if endpoint == "embeddings" else None
        self._seconds: list[float] = []
        self._notes: list[dict[str, Any]] = []

    def add(self, seconds: float, note: dict[str, Any]) -> None:
        """Add an answer with what its route has noted."""
        self._seconds.append(seconds)
        self._notes.append(note)

    def write(self) -> None:
        """Write and forget the answers."""
        self._requests.inc(len(self._seconds))
        _observe_all(self._request_seconds, self._seconds)
        for counter, name in zip(self._amounts, ("inputs", "tokens", "truncated"), strict=False):
            counter.inc(sum([note.get(name, 0) for note in self._notes]))
        if self._ovms_time:
            _observe_all(self._ovms_time, [seconds * 1e6 for seconds in self._seconds])
        self._seconds, self._notes = [], []


class _Waits:
    """Requests for one model that wait for the broker, and the broker's times of those that were answered this turn."""

    def __init__(self, model: str) -> None:
        self.in_flight = 0
        self.queue_us: list[int] = []
        self.inference_us: list[int] = []
        self._in_flight = _in_flight.labels(model)
        self._queue, self._inference = _ovms_wait.labels(model, "1"), _ovms_inference.labels(model, "1")

    def write(self) -> None:
        """Write the number of requests, and write and forget the times."""
        self._in_flight.set(self.in_flight)
        _observe_all(self._queue, self.queue_us)
        _observe_all(self._inference, self.inference_us)
        self.queue_us, self.inference_us = [], []


_find_answers = functools.lru_cache(10_000)(_Answers)
_find_waits = functools.lru_cache(10_000)(_Waits)
#: What has changed in this turn.
_changed: set[_Answers | _Waits] = set()


def _note_change(changed: _Answers | _Waits) -> None:
    if not _changed:
        asyncio.get_running_loop().call_soon(write_changes)
    _changed.add(changed)


def write_changes() -> None:
    """Write what has changed in this turn of the event loop."""
    for changed in _changed:
        changed.write()
    _changed.clear()


def _observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """Observe values together. prometheus_client has no method for this."""
    if values:
        for bucket, count in collections.Counter(_find_bucket(histogram, value) for value in values).items():
            histogram._buckets[bucket].inc(count)
        histogram._sum.inc(sum(values))


def _find_bucket(histogram: Histogram, value: float) -> int:
    return bisect.bisect_left(histogram._upper_bounds, value)


class InFlight:
    """Context in which a request waits for the broker, and counts as in flight.

    If the client disconnects meanwhile, the request is counted here, because there may be no answer to count.
    """

    def __init__(self, request: Request, model: str) -> None:
        self._request, self._model, self._waits = request, model, _find_waits(model)

    def __enter__(self) -> None:
        self._waits.in_flight += 1
        _note_change(self._waits)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._waits.in_flight -= 1
        _note_change(self._waits)
        if kind and issubclass(kind, asyncio.CancelledError):
            _requests.labels(get_endpoint(self._request), str(CLIENT_GONE), self._model).inc()
            self._request.ctx.counted = True


def observe_times(model: str, queue_us: int, inference_us: int) -> None:
    """Record the broker's times of an embeddings request, under OVMS's names."""
    waits = _find_waits(model)
    waits.queue_us.append(queue_us)
    waits.inference_us.append(inference_us)
    _note_change(waits)


def count_answer(request: Request, response: BaseHTTPResponse, seconds: float) -> None:
    """Count an answered request, for the model that its route has noted in `request.ctx.log`, if any."""
    context = request.ctx
    if hasattr(context, "counted"):
        return
    note: dict[str, Any] = context.log
    answers = _find_answers(get_endpoint(request), str(response.status), note.get("model", ""))
    answers.add(seconds, note)
    _note_change(answers)


# --- exposition ------------------------------------------------------------------------------------------------------


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
    write_changes()
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
