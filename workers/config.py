"""A worker's configuration; see `broker.shared.settings`."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from broker.shared import settings
from broker.shared.settings import LogFormat, LogLevel


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a worker."""

    broker: Annotated[str, Meta(description="the broker's endpoint for workers")] = "tcp://127.0.0.1:7411"
    model: Annotated[
        str, Meta(description="model folder, or OWNER/NAME on the Hugging Face hub; empty: all-MiniLM-L6-v2")
    ] = ""
    model_name: Annotated[
        str, Meta(max_length=512, description="name to serve the model under; empty: that on the hub, or of its folder")
    ] = ""
    device: Annotated[str, Meta(description="OpenVINO device, such as CPU, GPU, GPU.1 or NPU")] = "CPU"
    streams: Annotated[
        int,
        Meta(ge=0, description="number of inferences that run in parallel; 0: one for each CPU, or what a GPU prefers"),
    ] = 0
    batch_ms: Annotated[
        int, Meta(gt=0, description="target duration of a batch, in milliseconds; determines its size")
    ] = 100
    cache: Annotated[str, Meta(description="folder for converted and compiled models")] = "~/.cache/vecmill"
    keys: Annotated[str, Meta(description="folder with worker.key_secret and broker.key; empty: no CURVE")] = ""
    health_file: Annotated[
        str, Meta(description="file to touch every second while the worker is connected; empty: none")
    ] = ""
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Return the configuration. Raise SettingsError if a value is invalid."""
    return settings.load(Config, "VECMILL_WORKER_", "python -m workers", "A Vecmill worker.", arguments, environ)
