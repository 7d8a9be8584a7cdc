"""A worker's configuration; see `broker.shared.settings`."""

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker.shared import settings
from broker.shared.ovms_flags import translate_flags
from broker.shared.settings import LogFormat, LogLevel, SettingsError
from broker.wire.columns import MAX_NAME_LENGTH
from workers.models.json_files import parse_json
from workers.models.source import Overrides, Precision
from workers.models.sources import Options


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a worker."""

    broker: Annotated[str, Meta(description="the broker's endpoint for workers")] = "tcp://127.0.0.1:7411"
    model: Annotated[
        str, Meta(description="model folder, or OWNER/NAME on the Hugging Face hub; empty: all-MiniLM-L6-v2")
    ] = ""
    model_name: Annotated[
        str,
        Meta(
            max_length=MAX_NAME_LENGTH,
            description="name to serve the model under; empty: that on the hub, or of its folder",
        ),
    ] = ""
    config_path: Annotated[str, Meta(description="config.json of OVMS with the models to serve; empty: none")] = ""
    model_repository_path: Annotated[
        str, Meta(description="folder with a folder for each model, MODEL or OWNER/MODEL; empty: none")
    ] = ""
    device: Annotated[
        str,
        Meta(
            description="OpenVINO device, such as CPU, GPU.1, NPU or AUTO:GPU,CPU; empty: target_device of the model's "
            "configuration, or CPU"
        ),
    ] = ""
    precision: Annotated[
        Precision,
        Meta(
            description="what models are computed in; auto: bf16 or f16 if it is native to the device and its vectors "
            "agree with f32, else f32"
        ),
    ] = "auto"
    mix_floats: Annotated[
        bool,
        Meta(
            description="whether workers with different floats may serve one model together; false: the precision is "
            "part of the revision"
        ),
    ] = True
    streams: Annotated[
        int,
        Meta(ge=0, description="number of inferences that run in parallel; 0: one for each CPU, or what a GPU prefers"),
    ] = 0
    host_workers: Annotated[
        int,
        Meta(ge=1, description="number of workers on this host, each of which runs on an equal part of its CPUs"),
    ] = 1
    share_quota: Annotated[
        bool,
        Meta(
            description="whether the workers of this host divide the CPU quota of their container or service; false: "
            "each has a quota of its own"
        ),
    ] = False
    plugin_config: Annotated[
        str, Meta(description='JSON object of OpenVINO properties, such as {"PERFORMANCE_HINT": "LATENCY"}')
    ] = ""
    pooling: Annotated[
        Literal["", "CLS", "MEAN", "LAST"],
        Meta(description="pooling of every model; empty: as the model's files specify"),
    ] = ""
    normalize: Annotated[
        Literal["", "true", "false"],
        Meta(description="whether vectors are scaled to length 1; empty: as the model's files specify"),
    ] = ""
    max_length: Annotated[int, Meta(ge=0, description="longest input in tokens; 0: as the model's files specify")] = 0
    aliases: Annotated[
        str, Meta(description="other names of models, such as text-embedding-3-small=MODEL,other=MODEL; empty: none")
    ] = ""
    config_poll_s: Annotated[
        float, Meta(ge=0, description="seconds between two looks for changed models and configurations; 0: never")
    ] = 1.0
    unload_idle_s: Annotated[
        float, Meta(ge=0, description="unload a model from memory after this many seconds without a request; 0: never")
    ] = 0.0
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
    """Return the configuration. Raise SettingsError if a value is invalid. OVMS's names of flags are accepted, too."""
    known = {field.replace("_", "-") for field in Config.__struct_fields__}
    arguments, sentences = translate_flags(arguments, known)
    for sentence in sentences:
        print(f"python -m workers: warning: {sentence}", file=sys.stderr)
    config = settings.load(Config, "VECMILL_WORKER_", "python -m workers", "A Vecmill worker.", arguments, environ)
    chosen = [name for name in ("model", "config_path", "model_repository_path") if getattr(config, name)]
    if len(chosen) > 1:
        flags = " and ".join("--" + name.replace("_", "-") for name in chosen)
        raise SettingsError(f"{flags} exclude each other; set one of them")
    make_options(config)
    parse_aliases(config)
    return config


def parse_aliases(config: Config) -> dict[str, str]:
    """Return the name of the model for each alias. Raise SettingsError if one is incomplete."""
    aliases = {}
    for pair in filter(None, config.aliases.split(",")):
        alias, _, name = (part.strip() for part in pair.partition("="))
        if not alias or not name:
            raise SettingsError(f"--aliases has {pair!r}, but must be a list of ALIAS=MODEL, separated by commas")
        if len(alias) > MAX_NAME_LENGTH or not alias.isprintable():
            raise SettingsError(f"--aliases has {alias[:80]!r}, but a name has at most {MAX_NAME_LENGTH} characters")
        aliases[alias] = name
    return aliases


def make_options(config: Config) -> Options:
    """Return where the models are, and the settings for all of them. Raise SettingsError if a value is invalid."""
    try:
        properties = parse_json(config.plugin_config or "{}")
    except (ValueError, RecursionError):
        properties = None
    if not isinstance(properties, dict):
        raise SettingsError(f"--plugin-config is {config.plugin_config!r}, but must be a JSON object")
    flags = {"": None, "true": True, "false": False}
    overrides = Overrides(
        pooling=config.pooling,
        normalize=flags[config.normalize],
        max_tokens=config.max_length or None,
        device=config.device,
        precision=config.precision,
        properties=properties,
    )
    return Options(
        model=config.model,
        name=config.model_name,
        config=config.config_path,
        repository=config.model_repository_path,
        overrides=overrides,
    )
