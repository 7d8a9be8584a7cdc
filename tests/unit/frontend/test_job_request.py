"""Options of a request, from its headers and its API key."""

from types import SimpleNamespace
from typing import Any

from broker.wire.protocol import Lane, Origin
from frontend.api.schemas import RequestOptions
from frontend.config import Config
from frontend.rest.api_keys import Key
from frontend.rest.routes.job_request import read_request_options


def read(ip: str = "10.0.0.1", key: Key | None = None, **headers: str) -> RequestOptions:
    """Read the options of a request."""
    context = SimpleNamespace(config=Config(deadline_s=60.0))
    request: Any = SimpleNamespace(
        app=SimpleNamespace(ctx=context),
        ctx=SimpleNamespace(request_id="id", traceparent="trace", key=key),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        ip=ip,
    )
    return read_request_options(request)


def test_client_without_key_is_a_hash_of_address_and_authorization() -> None:
    senders = [(ip, f"Bearer {key}") for ip in ("10.0.0.1", "10.0.0.2") for key in ("", "sk-one", "sk-öther")]
    options = [read(ip, authorization=authorization) for ip, authorization in senders]
    assert len({option.client for option in options}) == len(senders)
    assert len({option.address for option in options}) == 2
    assert read("10.0.0.1", authorization="Bearer sk-one").client == options[1].client


def test_key_gives_client_and_limits() -> None:
    key = Key(name="one", sha256="0" * 64, tokens_per_minute=5, jobs_in_flight=7)
    options = read(key=key, x_vecmill_lane="bulk", x_vecmill_deadline_ms="1500")
    assert options == RequestOptions(Lane.BULK, 1.5, "key one", 7, 5, "", Origin("id", "trace"))
