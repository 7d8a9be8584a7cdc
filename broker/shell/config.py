"""The broker's configuration: flags over VECMILL_BROKER_* variables over the defaults here."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PREFIX = "VECMILL_BROKER_"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One field a setting; its description is also the help of its flag."""

    frontend_bind: Annotated[str, Meta(description="endpoint that frontends connect to")] = "tcp://127.0.0.1:7410"
    worker_bind: Annotated[str, Meta(description="endpoint that workers connect to")] = "tcp://127.0.0.1:7411"
    keys: Annotated[str, Meta(description="folder of CURVE keys made by scripts/keys; needed beyond this host")] = ""
    health_file: Annotated[str, Meta(description="file touched every second while the broker's loop runs")] = ""
    metrics_bind: Annotated[str, Meta(description="address of /metrics, HOST:PORT; empty: none")] = "127.0.0.1:7412"
    lease_s: Annotated[float, Meta(gt=0, description="longest time one batch may run, in seconds")] = 20.0
    worker_grace_s: Annotated[
        float, Meta(ge=0, description="how long jobs wait for a worker when their model has none, in seconds")
    ] = 30.0
    max_jobs: Annotated[int, Meta(gt=0, description="most jobs that may be open")] = 100_000
    max_tokens: Annotated[int, Meta(gt=0, description="most tokens that may be open, by the estimate")] = 20_000_000
    max_bytes: Annotated[int, Meta(gt=0, description="most bytes of input that may be open")] = 1 << 30
    max_unread_bytes: Annotated[
        int, Meta(gt=0, description="most bytes of answers that a frontend may have unread when it submits more")
    ] = 1 << 28
    max_client_share: Annotated[
        float, Meta(gt=0, le=1, description="part of max_jobs that one client may have open")
    ] = 0.5
    max_wait_s: Annotated[
        float, Meta(gt=0, description="longest wait that a request may expect when it is admitted, in seconds")
    ] = 30.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="debug, info, warning or error")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="lines of text, or a JSON object a line")] = "text"


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Read the configuration; msgspec.ValidationError names a field that is unknown or ill-typed."""
    parser = argparse.ArgumentParser(prog="python -m broker", description="Vecmill's broker.", allow_abbrev=False)
    for name, field in msgspec.json.schema(Config)["$defs"]["Config"]["properties"].items():
        text = f"{field['description']} (default: {field['default']!r}; {PREFIX}{name.upper()})"
        parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=text.replace("%", "%%"))
    given = {name.removeprefix(PREFIX).lower(): text for name, text in environ.items() if name.startswith(PREFIX)}
    return msgspec.convert(given | vars(parser.parse_args(arguments)), Config, strict=False)
