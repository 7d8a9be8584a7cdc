"""The broker's configuration; see `broker.shared.settings`."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from msgspec import Meta

from broker.core.limits import Limits
from broker.shared import settings
from broker.shared.settings import LogFormat, LogLevel

#: Address of the metrics if none is set.
METRICS_BIND = "127.0.0.1:7412"


class Config(Limits, frozen=True, kw_only=True):
    """The settings of the shell, and those of the scheduler, which are inherited."""

    frontend_bind: Annotated[str, Meta(description="endpoint for frontends")] = "tcp://127.0.0.1:7410"
    worker_bind: Annotated[str, Meta(description="endpoint for workers")] = "tcp://127.0.0.1:7411"
    metrics_bind: Annotated[
        str,
        Meta(description=f"HOST:PORT of /metrics; empty: none; auto: {METRICS_BIND}, or none if that port is taken"),
    ] = "auto"
    keys: Annotated[
        str, Meta(description="folder of CURVE keys made by scripts/keys; required unless both endpoints are local")
    ] = ""
    health_file: Annotated[
        str, Meta(description="file to touch every second while the broker's loop runs; empty: none")
    ] = ""
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Return the configuration. Raise SettingsError if a value is invalid."""
    return settings.load(Config, "VECMILL_BROKER_", "python -m broker", "Vecmill's broker.", arguments, environ)
