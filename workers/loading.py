"""Reading a worker's configuration and loading its models, for `workers.session.loader.Loader`."""

import hashlib
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from broker.wire import protocol as wire
from workers.config import Config, make_options, parse_aliases
from workers.engine.device import DeviceError
from workers.engine.engine import TYPICAL_LENGTH, Engine
from workers.engine.precision import check_precision, load_engine
from workers.models.json_files import ModelError
from workers.models.prepare import PreparedModel, prepare_model
from workers.models.sources import Source, find_sources
from workers.session.catalog import Version, repair_text
from workers.session.loader import Loaded, LoadError, Scan

log = logging.getLogger(__name__)

#: Most files of a folder that are looked at for changes.
MAX_FILES = 1000


class SourceVersion(NamedTuple):
    """A source, with the sizes and times of its files."""

    source: Source
    files: tuple[tuple[str, int, int], ...]


def scan_models(config: Config) -> Scan:
    """Return the models that the configuration names. Raise `LoadError` if there is no list of models."""
    remarks: list[str] = []
    try:
        found = find_sources(make_options(config), get_cache(config), remarks.append, log.info)
    except ModelError as error:
        raise LoadError(str(error)) from None
    wanted = {}
    for source in found.sources:
        name = repair_text(source.name)
        wanted[name] = SourceVersion(source, tuple(_list_files(source.folder)))
    refused = {repair_text(refused.name): refused.reason for refused in found.refused}
    remarks += list_dead_aliases(config, {*wanted, *refused})
    return Scan(wanted, refused, remarks=tuple(remarks))


def list_dead_aliases(config: Config, names: Collection[str]) -> list[str]:
    """Return a sentence for each alias of a model that is not configured."""
    return [
        f"the alias {alias} has no effect, because no model is named {name}; choose one of {', '.join(sorted(names))}"
        for alias, name in parse_aliases(config).items()
        if name not in names
    ]


def load_model(config: Config, name: str, version: Version) -> Loaded:
    """Return a model that has completed an inference. Raise `LoadError` if that is not possible."""
    assert isinstance(version, SourceVersion)
    source, cache = version.source, get_cache(config)
    device = source.overrides.device.upper() or "CPU"

    def check(needs_float32: bool) -> None:
        check_precision(device, source.overrides, needs_float32=needs_float32)

    try:
        prepared = prepare_model(source.folder, cache, log.info, source.overrides, check)
        engine, precision = load_engine(prepared, device, config.streams, cache, source.overrides)
        engine.warm_up()
    except (ModelError, DeviceError) as error:
        raise LoadError(str(error)) from None
    info = describe_model(config, name, source, prepared, engine, precision)
    log.info(
        "loaded %s revision %s on %s in %s: %d streams, %.0f tokens/s, batches of %d tokens; an inference takes %.2f "
        "ms and %.4f ms a token",
        name,
        info.revision,
        device,
        precision,
        engine.streams,
        engine.tokens_per_second,
        info.batch_tokens,
        engine.costs.inference_ms,
        engine.costs.token_ms,
    )
    return Loaded(info, engine, device)


def describe_model(
    config: Config, name: str, source: Source, prepared: PreparedModel, engine: Engine, precision: str
) -> wire.ModelInfo:
    """Return the model as the worker announces it. A batch of its size takes `config.batch_ms` on the device."""
    # On a slow device, a batch has at least one input for each infer request.
    least_tokens = engine.requests * min(TYPICAL_LENGTH, engine.max_tokens)
    batch_tokens = max(least_tokens, int(engine.tokens_per_second * config.batch_ms / 1000))
    return wire.ModelInfo(
        name=name,
        revision=prepared.revision if config.mix_floats else separate_revision(prepared.revision, precision),
        dimension=prepared.dimension,
        max_tokens=prepared.max_tokens,
        vocabulary=prepared.vocabulary_size,
        pad_id=prepared.pad_id,
        before=engine.before.tolist(),
        after=engine.after.tolist(),
        normalized=prepared.normalize,
        prompts=prepared.prompts.texts,
        default_prompt=prepared.prompts.default,
        matryoshka=prepared.matryoshka.declared,
        matryoshka_dimensions=prepared.matryoshka.dimensions,
        batch_tokens=min(2**32 - 1, batch_tokens),
        tokens_per_s=max(1, int(engine.tokens_per_second)),
        aliases=[alias for alias, of in parse_aliases(config).items() if of == name],
        truncates=prepared.truncates,
        parts=list(source.parts),
        precision=precision,
        streams=engine.streams,
    )


def separate_revision(revision: str, precision: str) -> str:
    """Return a revision of one precision alone, 32 hexadecimal digits."""
    return hashlib.sha256(f"{revision} {precision}".encode()).hexdigest()[:32]


def get_cache(config: Config) -> Path:
    """Return the folder for converted models."""
    return Path(config.cache).expanduser()


def _list_files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield the path, size and time of change of each file in a model folder, which show when the model changes."""
    try:
        paths = sorted(path for path, _ in zip(folder.rglob("*"), range(MAX_FILES), strict=False))
        for path in paths:
            if path.is_file():
                status = path.stat()
                yield str(path.relative_to(folder)), status.st_size, status.st_mtime_ns
    except OSError as error:
        # The folder is being changed, or the model cannot be loaded, and the error gives the reason.
        yield str(error), 0, 0
