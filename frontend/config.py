"""A frontend's configuration: flags over VECMILL_FRONTEND_* variables over the defaults here."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PREFIX = "VECMILL_FRONTEND_"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One field a setting; its description is also the help of its flag."""

    broker: Annotated[str, Meta(description="the broker's endpoint for frontends")] = "tcp://127.0.0.1:7410"
    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535, description="port to listen on")] = 8000
    processes: Annotated[int, Meta(ge=1, description="processes that share the port")] = 1
    listen_fd: Annotated[
        int, Meta(ge=-1, description="descriptor of a listening socket to serve on; -1: bind host and port")
    ] = -1
    keys: Annotated[str, Meta(description="folder with frontend.key_secret and broker.key; empty: no CURVE")] = ""
    deadline_s: Annotated[float, Meta(gt=0, description="how long a request may take, in seconds")] = 60.0
    send_timeout_s: Annotated[
        float, Meta(gt=0, le=86400, description="how long a client may take nothing of an answer, in seconds")
    ] = 60.0
    min_read_rate: Annotated[
        float,
        Meta(ge=0, description="bytes a second that a client takes of a large answer at least, over --send-timeout-s"),
    ] = 16384.0
    max_unread_bytes: Annotated[
        int, Meta(gt=0, description="most bytes of large answers that clients have not read yet, in each process")
    ] = 64 * 1024 * 1024
    request_timeout_s: Annotated[
        float, Meta(gt=0, description="how long a client may stop in the middle of sending a request, in seconds")
    ] = 60.0
    interactive_bytes: Annotated[
        int, Meta(ge=0, description="most bytes of input that a request of the interactive lane has, unless it asks")
    ] = 4096
    interactive_inputs: Annotated[
        int, Meta(ge=0, description="most inputs that a request of the interactive lane has, unless it asks")
    ] = 8
    broker_grace_s: Annotated[
        float, Meta(ge=0, description="how long requests wait for a broker that is away, in seconds")
    ] = 5.0
    api_keys: Annotated[str, Meta(description="file of API keys (see scripts/api-key); empty: none needed")] = ""
    allowed_origins: Annotated[
        str, Meta(description="origins whose pages may use the server in a browser, by commas; *: all; empty: none")
    ] = "*"
    tls_cert: Annotated[str, Meta(description="PEM file of the certificate chain; empty: no TLS")] = ""
    tls_key: Annotated[str, Meta(description="PEM file of its key, which has no pass phrase")] = ""
    # Of 16 MiB of text the token ids just fit a frame (see broker/wire/protocol.py).
    max_body_bytes: Annotated[
        int, Meta(gt=0, le=16 * 1024 * 1024, description="largest request body, 16 MiB at most")
    ] = 8 * 1024 * 1024
    max_inputs: Annotated[int, Meta(gt=0, le=65536, description="most inputs in one request")] = 2048
    max_request_tokens: Annotated[int, Meta(gt=0, description="most tokens in one request, all inputs together")] = (
        300_000
    )
    dimensions_policy: Annotated[
        Literal["allow", "warn", "refuse"],
        Meta(description="fewer dimensions than a model makes, unless it declares them: allow, warn or refuse"),
    ] = "warn"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="debug, info, warning or error")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="lines of text, or a JSON object a line")] = "text"


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Read the configuration; msgspec.ValidationError names a field that is unknown or ill-typed."""
    parser = argparse.ArgumentParser(prog="python -m frontend", description="Vecmill's frontend.", allow_abbrev=False)
    for name, field in msgspec.json.schema(Config)["$defs"]["Config"]["properties"].items():
        text = f"{field['description']} (default: {field['default']!r}; {PREFIX}{name.upper()})"
        parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=text.replace("%", "%%"))
    given = {name.removeprefix(PREFIX).lower(): text for name, text in environ.items() if name.startswith(PREFIX)}
    return msgspec.convert(given | vars(parser.parse_args(arguments)), Config, strict=False)
