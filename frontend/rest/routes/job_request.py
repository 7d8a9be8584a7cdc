"""Head of the routes that submit jobs: reads body, headers and API key, and finds the model."""

import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from sanic import Request

from broker.wire.protocol import ModelInfo, Origin
from frontend.api.schemas import (
    EmbeddingsRequest,
    RequestOptions,
    TokenizeRequest,
    hash_client,
    parse_caching,
    parse_deadline_s,
    parse_lane,
)
from frontend.api.submission import apply_prompt_of_name
from frontend.config import Config
from frontend.rest.api_keys import Key
from frontend.session.broker_client import BrokerClient

Body = TypeVar("Body", EmbeddingsRequest, TokenizeRequest)


class JobRequest(NamedTuple, Generic[Body]):
    """A valid request and its model, before its jobs are submitted."""

    body: Body
    options: RequestOptions
    model: ModelInfo
    #: When the request arrived and when its deadline passes, by the monotonic clock.
    started: float
    deadline: float


async def read_job_request(request: Request, parse: Callable[..., Body]) -> JobRequest[Body]:
    """Parse a request, and note its model and number of inputs for the log and the metrics.

    Raise `ApiError` 400 if the request is invalid, and 404 or 503 if its model is not served.
    """
    started = time.monotonic()
    config: Config = request.app.ctx.config
    broker: BrokerClient = request.app.ctx.broker
    body = parse(request.body, config.max_inputs, broker.models)
    options = read_request_options(request)
    model = await broker.find_model(body.model)
    if isinstance(body, EmbeddingsRequest):
        body = apply_prompt_of_name(body, broker.models)
    request.ctx.log |= {"model": model.name, "inputs": len(body.inputs)}
    return JobRequest(body, options, model, started, started + options.deadline_s)


def read_request_options(request: Request) -> RequestOptions:
    """Return the options in a request's headers and API key. Raise `ApiError` 400 for an invalid header."""
    config: Config = request.app.ctx.config
    lane, deadline_s = parse_lane(request.headers), parse_deadline_s(request.headers, config.deadline_s)
    origin = Origin(request.ctx.request_id, request.ctx.traceparent)
    caching = parse_caching(request.headers)
    key: Key | None = request.ctx.key
    if key is None:
        client = hash_client(f"{request.ip} {request.headers.get('authorization', '')}")
        return RequestOptions(lane, deadline_s, client, address=hash_client(request.ip), origin=origin, caching=caching)
    limits = (key.jobs_in_flight, key.tokens_per_minute)
    return RequestOptions(lane, deadline_s, key.client, *limits, origin=origin, caching=caching)
