"""GET /metrics of a frontend: its HTTP requests, also under OVMS's names. The broker serves its own.

Several frontend processes on one port count into files of a common folder (PROMETHEUS_MULTIPROC_DIR, which
prometheus_client reads when it is imported), so that a scrape that any of them answers gives the sums.
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
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from sanic import Request
from sanic.response import BaseHTTPResponse

from frontend.rest.slow_readers import Reason

PREFIX = "vecmill_"
#: From what needs no broker to the longest deadline by default, in seconds.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: OVMS's, in microseconds.
_OVMS_BUCKETS = tuple(float(math.floor(10 * 1.8**power)) for power in range(33))
#: What nginx and others call a request whose client has gone.
CLIENT_GONE = 499
#: The end of a route's name: which of the prefixes it is for.
_VERSION = re.compile(r"_v\d.*$")
#: Labels that no path of ours has.
_UNKNOWN = "unknown"


class _OvmsCounter(NamedTuple):
    """A count of OVMS's of embeddings requests, by the status that they had."""

    name: str
    text: str
    of: Callable[[str], bool]
    #: Whether it has a label for the model's version.
    versioned: bool


#: What has found no room: a quota is used up, or there is nothing that could serve it.
_REJECTIONS = ("429", "503")
_OVMS_COUNTERS = (
    _OvmsCounter("ovms_requests_success", "Answered requests", lambda status: status == "200", versioned=True),
    _OvmsCounter(
        "ovms_requests_fail",
        "Failed requests",
        lambda status: status not in ("200", str(CLIENT_GONE)),
        versioned=True,
    ),
    _OvmsCounter(
        "ovms_requests_accepted",
        "Requests that were taken up",
        lambda status: status not in _REJECTIONS,
        versioned=False,
    ),
    _OvmsCounter(
        "ovms_requests_rejected",
        "Requests that were not, answered 429 or 503",
        lambda status: status in _REJECTIONS,
        versioned=False,
    ),
    _OvmsCounter("ovms_responses", "Answers with vectors", lambda status: status == "200", versioned=False),
)

# A gauge beside each family, of when its series began: several processes cannot tell it.
disable_created_metrics()  # type: ignore[no-untyped-call]
_own = CollectorRegistry()
_requests = Counter(PREFIX + "requests", "HTTP requests", ["endpoint", "status", "model"], registry=_own)
_request_seconds = Histogram(
    PREFIX + "request_seconds", "From a request's head to its answer", ["endpoint"], buckets=_SECONDS, registry=_own
)
_in_flight = Gauge(
    PREFIX + "requests_in_flight",
    "Requests that wait for the broker",
    ["model"],
    multiprocess_mode="livesum",
    registry=_own,
)
_inputs = Counter(PREFIX + "inputs", "Inputs of answered requests", ["endpoint", "model"], registry=_own)
_prompt_tokens = Counter(PREFIX + "prompt_tokens", "Tokens as told in usage", ["model"], registry=_own)
_truncated = Counter(PREFIX + "truncated_tokens", "Tokens cut off inputs", ["model"], registry=_own)
_ovms_time = Histogram(
    "ovms_request_time_us",
    "Time of answered requests",
    ["interface", "name", "version"],
    buckets=_OVMS_BUCKETS,
    registry=_own,
)
_ovms_wait = Histogram(
    "ovms_wait_for_infer_req_time_us",
    "Longest time that an input of a request waited in the queue",
    ["name", "version"],
    buckets=_OVMS_BUCKETS,
    registry=_own,
)
_ovms_inference = Histogram(
    "ovms_inference_time_us",
    "Longest inference among the batches of a request",
    ["name", "version"],
    buckets=_OVMS_BUCKETS,
    registry=_own,
)
unread_bytes = Gauge(
    PREFIX + "unread_bytes",
    "Bytes of answers that clients have not taken yet",
    multiprocess_mode="livesum",
    registry=_own,
)
readers_ended = Counter(
    PREFIX + "readers_ended", "Connections ended because their clients read too slowly", ["reason"], registry=_own
)


def endpoint_of(request: Request) -> str:
    """A label for a request's path."""
    return endpoint_of_name(request.route.name) if request.route else _UNKNOWN


@functools.lru_cache(1000)
def endpoint_of_name(route: str) -> str:
    """The name of a route, the same for all prefixes."""
    return _VERSION.sub("", route.rpartition(".")[2])


class _OfAnswers(NamedTuple):
    """The series of the answers of one kind. prometheus_client takes longer to find them than to count."""

    requests: Counter
    seconds: Histogram
    inputs: Counter


@functools.lru_cache(1000)
def _of_answers(endpoint: str, status: int, model: str) -> _OfAnswers:
    of = _requests.labels(endpoint, str(status), model), _request_seconds.labels(endpoint)
    return _OfAnswers(*of, _inputs.labels(endpoint, model))


class _OfModel(NamedTuple):
    """A model's series."""

    in_flight: Gauge
    tokens: Counter
    truncated: Counter
    microseconds: Histogram
    wait_us: Histogram
    inference_us: Histogram


@functools.lru_cache(1000)
def _of_model(model: str) -> _OfModel:
    return _OfModel(
        in_flight=_in_flight.labels(model),
        tokens=_prompt_tokens.labels(model),
        truncated=_truncated.labels(model),
        microseconds=_ovms_time.labels("REST", model, "1"),
        wait_us=_ovms_wait.labels(model, "1"),
        inference_us=_ovms_inference.labels(model, "1"),
    )


def touch(endpoints: Iterable[str]) -> None:
    """Let the series of these endpoints exist."""
    for endpoint in [*endpoints, _UNKNOWN]:
        _requests.labels(endpoint, "200" if endpoint != _UNKNOWN else "404", "")
        _request_seconds.labels(endpoint)
    for reason in Reason:
        readers_ended.labels(reason.value)


def touch_model(model: str) -> None:
    """Let the series of a model exist."""
    for endpoint in ("embeddings", "tokenize"):
        _of_answers(endpoint, 200, model)
    _of_model(model)


class Waiting:
    """While a request waits for the broker. One whose client goes away meanwhile is counted here: it may get no answer
    that could be counted."""

    __slots__ = ("_model", "_request")

    def __init__(self, request: Request, model: str) -> None:
        self._request, self._model = request, model

    def __enter__(self) -> None:
        _of_model(self._model).in_flight.inc()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _of_model(self._model).in_flight.dec()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            _of_answers(endpoint_of(self._request), CLIENT_GONE, self._model).requests.inc()
            self._request.ctx.counted = True


def observe_times(model: str, queue_us: int, inference_us: int) -> None:
    """Record the times that the broker has measured for an embeddings request, under OVMS's names."""
    series = _of_model(model)
    series.wait_us.observe(queue_us)
    series.inference_us.observe(inference_us)


def count(request: Request, response: BaseHTTPResponse, seconds: float) -> None:
    """A request is answered. What its route has noted of it tells the model, which exists then."""
    if hasattr(request.ctx, "counted"):
        return
    noted = request.ctx.log
    endpoint, model = endpoint_of(request), noted.get("model", "")
    series = _of_answers(endpoint, response.status, model)
    series.requests.inc()
    series.seconds.observe(seconds)
    if not model:
        return
    mine, answered = _of_model(model), response.status == 200
    if answered:
        series.inputs.inc(noted["inputs"])
    if answered and "tokens" in noted:
        mine.tokens.inc(noted["tokens"])
        mine.truncated.inc(noted["truncated"])
    if answered and endpoint == "embeddings":
        mine.microseconds.observe(seconds * 1e6)


class _Collector:
    """The families of this frontend, or of all processes on the port."""

    def __init__(self, *, broker_connected: bool) -> None:
        self._broker_connected = broker_connected

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        families = {metric.name: metric for metric in _own.collect()}
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            # The sums replace the families of this process; a family without a series in any process has no sum.
            summed: Iterable[Metric] = MultiProcessCollector(CollectorRegistry()).collect()  # type: ignore[no-untyped-call]
            families |= {metric.name: metric for metric in summed}
        yield from families.values()
        yield from _collect_ovms_names(families)
        up = GaugeMetricFamily(PREFIX + "broker_up", "Whether this frontend process is connected to the broker")
        up.add_metric([], float(self._broker_connected))
        yield up


def render(accept: str, *, broker_connected: bool) -> tuple[bytes, str]:
    """Return the body of /metrics and its content type, in the format that the Accept header prefers."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(broker_connected=broker_connected))
    return encode(registry), content_type


def _collect_ovms_names(own: dict[str, Metric]) -> Iterator[Metric]:
    """OVMS's names for what frontends count (see docs/metrics.md)."""
    served = [sample for sample in own[PREFIX + "requests"].samples if sample.labels["endpoint"] == "embeddings"]
    models = dict.fromkeys(sample.labels["model"] for sample in served if sample.labels["model"])
    for counter in _OVMS_COUNTERS:
        # Of no type, for a counter's name would end with _total, and OVMS's do not.
        labels = ["api", "interface", "method", "name"] + ["version"] * counter.versioned
        family = UnknownMetricFamily(counter.name, counter.text, labels=labels)
        for model in models:
            counted = (one.value for one in served if one.labels["model"] == model and counter.of(one.labels["status"]))
            family.add_metric(["V3", "REST", "Unary", model] + ["1"] * counter.versioned, sum(counted))
        yield family
    gauge = GaugeMetricFamily("ovms_current_requests", "Requests that are worked on", labels=["name", "version"])
    for sample in own[PREFIX + "requests_in_flight"].samples:
        gauge.add_metric([sample.labels["model"], "1"], sample.value)
    yield gauge
