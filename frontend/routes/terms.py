"""What a request's headers and its key say of how it is to be served."""

from sanic import Request

from broker.protocol import Origin
from frontend.config import Config
from frontend.schemas import Terms, parse_headers


def terms_of(request: Request) -> Terms:
    """Its terms; ApiError 400 for a header with a bad value."""
    config: Config = request.app.ctx.config
    terms = parse_headers(request.headers, config.deadline_s)
    return terms._replace(origin=Origin(request.ctx.request_id, request.ctx.traceparent))
