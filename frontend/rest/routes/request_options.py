"""What a request's headers and its key say of how it is to be served."""

from sanic import Request

from broker.wire.protocol import Origin
from frontend.api.schemas import RequestOptions, parse_headers
from frontend.config import Config
from frontend.rest.api_keys import Key


def read_request_options(request: Request) -> RequestOptions:
    """Its terms; ApiError 400 for a header with a bad value."""
    config: Config = request.app.ctx.config
    terms = parse_headers(request.headers, request.ip, config.deadline_s)
    terms = terms._replace(origin=Origin(request.ctx.request_id, request.ctx.traceparent))
    key: Key | None = request.ctx.key
    if key is None:
        return terms
    # A name cannot be mistaken for the hash of a header.
    client = f"key {key.name}"
    return terms._replace(
        client=client, address="", client_jobs=key.jobs_in_flight, client_tokens=key.tokens_per_minute
    )
