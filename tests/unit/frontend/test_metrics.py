"""Metrics that are written once for each turn of the event loop."""

import asyncio
import random
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from sanic import Request
from sanic.response import raw

from frontend.rest import metrics


def read_value(sample: str, /, **labels: str) -> float:
    """Return the value of a sample of this process."""
    return metrics._registry.get_sample_value(sample, labels) or 0.0


def test_values_observed_together_count_alike() -> None:
    values = [0.0, 0.001, 0.0011, 60.0, 61.0, *(random.expovariate(10) for _ in range(100))]
    exposed = []
    for together in (True, False):
        registry = CollectorRegistry()
        histogram = Histogram("seconds", "text", buckets=metrics._SECONDS, registry=registry)
        if together:
            metrics._observe_all(histogram, values)
        else:
            for value in values:
                histogram.observe(value)
        lines = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
        exposed.append([line for line in lines if "_sum" not in line])
        assert registry.get_sample_value("seconds_sum") == pytest.approx(sum(values))
    assert exposed[0] == exposed[1]


def test_answers_of_a_turn_are_written_at_its_end() -> None:
    context = SimpleNamespace(log={"model": "m", "inputs": 2, "tokens": 7, "truncated": 1})
    request = cast(Request, SimpleNamespace(route=SimpleNamespace(name="vecmill.openai.embeddings_v1"), ctx=context))

    async def answer() -> list[float]:
        with metrics.InFlight(request, "m"):
            await asyncio.sleep(0)
            waiting = read_value("vecmill_requests_in_flight", model="m")
        metrics.observe_times("m", 3, 5)
        for status in (200, 200, 400):
            metrics.count_answer(request, raw(b"", status=status), 0.5)
        await asyncio.sleep(0)
        return [waiting, read_value("vecmill_requests_in_flight", model="m")]

    assert asyncio.run(answer()) == [1.0, 0.0]
    assert read_value("vecmill_requests_total", endpoint="embeddings", status="200", model="m") == 2
    assert read_value("vecmill_requests_total", endpoint="embeddings", status="400", model="m") == 1
    assert read_value("vecmill_request_seconds_sum", endpoint="embeddings") == pytest.approx(1.5)
    assert read_value("vecmill_inputs_total", endpoint="embeddings", model="m") == 4
    assert read_value("vecmill_prompt_tokens_total", model="m") == 14
    assert read_value("ovms_inference_time_us_sum", name="m", version="1") == 5


def test_client_that_leaves_is_counted_once() -> None:
    request = cast(Request, SimpleNamespace(route=None, ctx=SimpleNamespace(log={})))

    async def leave() -> None:
        with metrics.InFlight(request, "left"):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(leave())
    metrics.count_answer(request, raw(b"", status=200), 0.5)
    assert read_value("vecmill_requests_total", endpoint="unknown", status="499", model="left") == 1
