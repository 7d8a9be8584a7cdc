"""GET /metrics of a frontend: its HTTP requests, also under OVMS's names. The broker serves its own metrics.

Several frontend processes on one port write their numbers into files of one folder (PROMETHEUS_MULTIPROC_DIR, which
prometheus_client reads when it is imported), so that the process that answers a scrape returns the sums.
"""

import asyncio
import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

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


class _OvmsCounter(NamedTuple):
    """One of OVMS's counters of embeddings requests, which counts the requests with certain statuses."""

    name: str
    text: str
    counts_status: Callable[[str], bool]
    #: Whether the counter has a label for the model's version.
    versioned: bool


#: Statuses of rejected requests: a quota is used up, or the server has no capacity.
_REJECTED = ("429", "503")
_OVMS_COUNTERS = (
    _OvmsCounter("ovms_requests_success", "Requests answered with 200", lambda status: status == "200", versioned=True),
    _OvmsCounter(
        "ovms_requests_fail",
        "Requests answered with another status",
        lambda status: status not in ("200", str(CLIENT_GONE)),
        versioned=True,
    ),
    _OvmsCounter(
        "ovms_requests_accepted",
        "Requests that were not rejected",
        lambda status: status not in _REJECTED,
        versioned=False,
    ),
    _OvmsCounter(
        "ovms_requests_rejected",
        "Requests rejected with 429 or 503",
        lambda status: status in _REJECTED,
        versioned=False,
    ),
    _OvmsCounter("ovms_responses", "Answers with vectors", lambda status: status == "200", versioned=False),
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
readers_ended = Counter(
    PREFIX + "readers_ended",
    "Connections closed because the client read too slowly, by reason",
    ["reason"],
    registry=_registry,
)


def get_endpoint(request: Request) -> str:
    """Return the label of a request's path."""
    return get_route_endpoint(request.route.name) if request.route else _UNKNOWN


@functools.lru_cache(1000)
def get_route_endpoint(route: str) -> str:
    """Return the label of a route, which is the same for all prefixes, from the route's name."""
    return _VERSION.sub("", route.rpartition(".")[2])


# The series are cached because prometheus_client takes longer to find a series than to change its value.
class _AnswerSeries(NamedTuple):
    """Series of the answers with the same endpoint, status and model."""

    requests: Counter
    seconds: Histogram
    inputs: Counter


@functools.lru_cache(1000)
def _get_answer_series(endpoint: str, status: int, model: str) -> _AnswerSeries:
    return _AnswerSeries(
        requests=_requests.labels(endpoint, str(status), model),
        seconds=_request_seconds.labels(endpoint),
        inputs=_inputs.labels(endpoint, model),
    )


class _ModelSeries(NamedTuple):
    """Series of a model."""

    in_flight: Gauge
    tokens: Counter
    truncated: Counter
    request_us: Histogram
    wait_us: Histogram
    inference_us: Histogram


@functools.lru_cache(1000)
def _get_model_series(model: str) -> _ModelSeries:
    return _ModelSeries(
        in_flight=_in_flight.labels(model),
        tokens=_prompt_tokens.labels(model),
        truncated=_truncated.labels(model),
        request_us=_ovms_time.labels("REST", model, "1"),
        wait_us=_ovms_wait.labels(model, "1"),
        inference_us=_ovms_inference.labels(model, "1"),
    )


def create_series(endpoints: Iterable[str]) -> None:
    """Create the series of these endpoints, at zero."""
    for endpoint in [*endpoints, _UNKNOWN]:
        _requests.labels(endpoint, "200" if endpoint != _UNKNOWN else "404", "")
        _request_seconds.labels(endpoint)
    for reason in Reason:
        readers_ended.labels(reason.value)


def create_model_series(model: str) -> None:
    """Create the series of a model, at zero."""
    for endpoint in ("embeddings", "tokenize"):
        _get_answer_series(endpoint, 200, model)
    _get_model_series(model)


class InFlight:
    """Context of a request that waits for the broker.

    If the client disconnects meanwhile, the request is counted here, because there may be no answer to count.
    """

    __slots__ = ("_model", "_request")

    def __init__(self, request: Request, model: str) -> None:
        self._request, self._model = request, model

    def __enter__(self) -> None:
        _get_model_series(self._model).in_flight.inc()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _get_model_series(self._model).in_flight.dec()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            _get_answer_series(get_endpoint(self._request), CLIENT_GONE, self._model).requests.inc()
            self._request.ctx.counted = True


def observe_times(model: str, queue_us: int, inference_us: int) -> None:
    """Record the broker's times of an embeddings request, under OVMS's names."""
    series = _get_model_series(model)
    series.wait_us.observe(queue_us)
    series.inference_us.observe(inference_us)


def count_answer(request: Request, response: BaseHTTPResponse, seconds: float) -> None:
    """Count an answered request, for the model that its route has noted in `request.ctx.log`, if any."""
    if hasattr(request.ctx, "counted"):
        return
    note = request.ctx.log
    endpoint, model = get_endpoint(request), note.get("model", "")
    series = _get_answer_series(endpoint, response.status, model)
    series.requests.inc()
    series.seconds.observe(seconds)
    if not model or response.status != 200:
        return
    series.inputs.inc(note["inputs"])
    model_series = _get_model_series(model)
    if "tokens" in note:
        model_series.tokens.inc(note["tokens"])
        model_series.truncated.inc(note["truncated"])
    if endpoint == "embeddings":
        model_series.request_us.observe(seconds * 1e6)


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
    for counter in _OVMS_COUNTERS:
        # Untyped, because prometheus_client appends _total to the name of a counter, and OVMS does not.
        labels = ["api", "interface", "method", "name"] + ["version"] * counter.versioned
        family = UnknownMetricFamily(counter.name, counter.text, labels=labels)
        for model in models:
            of_model = [sample for sample in samples if sample.labels["model"] == model]
            count = sum(sample.value for sample in of_model if counter.counts_status(sample.labels["status"]))
            family.add_metric(["V3", "REST", "Unary", model] + ["1"] * counter.versioned, count)
        yield family
    gauge = GaugeMetricFamily("ovms_current_requests", "Requests that wait for the broker", labels=["name", "version"])
    for sample in families[PREFIX + "requests_in_flight"].samples:
        gauge.add_metric([sample.labels["model"], "1"], sample.value)
    yield gauge
