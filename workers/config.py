"""A worker's configuration: flags over VECMILL_WORKER_* variables over the defaults here."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PREFIX = "VECMILL_WORKER_"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One field a setting; its description is also the help of its flag."""

    broker: Annotated[str, Meta(description="the broker's endpoint for workers")] = "tcp://127.0.0.1:7411"
    model: Annotated[str, Meta(description="model folder; empty: all-MiniLM-L6-v2, fetched when missing")] = ""
    model_name: Annotated[
        str, Meta(max_length=512, description="name to serve the model under; empty: the folder's name")
    ] = ""
    device: Annotated[str, Meta(description="OpenVINO device, such as CPU, GPU, GPU.1 or NPU")] = "CPU"
    streams: Annotated[
        int, Meta(ge=0, description="inferences that run side by side on the device; 0: as OpenVINO finds best")
    ] = 0
    batch_ms: Annotated[
        int, Meta(gt=0, description="how long one batch should run, in milliseconds; sets the batch size")
    ] = 100
    cache: Annotated[str, Meta(description="folder for converted models and compiled blobs")] = "~/.cache/vecmill"
    keys: Annotated[str, Meta(description="folder with worker.key_secret and broker.key; empty: no CURVE")] = ""
    health_file: Annotated[str, Meta(description="file touched every second while the broker knows this worker")] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="debug, info, warning or error")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="lines of text, or a JSON object a line")] = "text"


def load(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Read the configuration; msgspec.ValidationError names a field that is unknown or ill-typed."""
    parser = argparse.ArgumentParser(prog="python -m workers", description="A Vecmill worker.", allow_abbrev=False)
    for name, field in msgspec.json.schema(Config)["$defs"]["Config"]["properties"].items():
        text = f"{field['description']} (default: {field['default']!r}; {PREFIX}{name.upper()})"
        parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=text.replace("%", "%%"))
    given = {name.removeprefix(PREFIX).lower(): text for name, text in environ.items() if name.startswith(PREFIX)}
    return msgspec.convert(given | vars(parser.parse_args(arguments)), Config, strict=False)
