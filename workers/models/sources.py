"""Finds the models to serve: one folder, a folder of folders, or OVMS's config.json."""

from pathlib import Path

import msgspec

from workers.models.contents import check_file
from workers.models.default import NAME, find_folder
from workers.models.graph_files import split_graph_path
from workers.models.hub import find_name
from workers.models.json_files import ModelError, is_present, read_json, summarize_error
from workers.models.ovms_config import MODELS, Report, find_version, read_graph_folder, read_ovms_config
from workers.models.source import Found, Overrides, Refused, Source

__all__ = ["Found", "Options", "Overrides", "Refused", "Source", "find_sources"]

#: Files that only a model folder has.
_MARKS = (
    "config.json",
    "graph.pbtxt",
    "modules.json",
    "*.xml",
    "*.onnx",
    "*.safetensors",
    "[1-9]/*.xml",
    "[1-9]/*.onnx",
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Where to look for models. At most one of `model`, `config` and `repository` is set."""

    #: Folder or exported file of a model, or its name on the Hugging Face hub; "": the default model.
    model: str = ""
    #: Name of that model; "": chosen by `choose_model_name`.
    name: str = ""
    #: OVMS's config.json.
    config: str = ""
    #: Folder with model folders.
    repository: str = ""
    #: Settings of the command line, which replace those of every model.
    overrides: Overrides = Overrides()


def find_sources(options: Options, cache: Path, report: Report, progress: Report | None = None) -> Found:
    """Return the models that the options lead to. Raise `ModelError` if there is no list of models at all.

    A model on the Hugging Face hub, and the default model, are fetched to the cache. `report` gets a line about
    each setting that has no effect, and `progress`, or else `report`, about each step.
    """
    if options.config:
        found = read_ovms_config(Path(options.config), report)
    elif options.repository:
        found = _read_repository(Path(options.repository), report)
    else:
        path, file = Path(options.model or NAME), ""
        if options.model and path.is_file():
            path, file = split_graph_path(path)
        folder = find_folder(str(path) if options.model else "", cache, progress or report)
        source = _read_model(options.name or choose_model_name(path), folder, folder, report)
        found = Found([_apply_overrides(source, Overrides(file=file))])
    return Found([_apply_overrides(source, options.overrides) for source in found.sources], found.refused)


def choose_model_name(folder: Path) -> str:
    """Return the name to serve a model under if none is set: its name on the hub, or else its folder's name."""
    if fetched := find_name(folder):
        return fetched
    name = folder.resolve().name
    return f"sentence-transformers/{name}" if name == "all-MiniLM-L6-v2" else name


def _read_model(name: str, folder: Path, root: Path, report: Report) -> Source:
    """Return the model of one folder, with or without graph.pbtxt or numbered folders. Raise `ModelError`."""
    if is_present(folder / "graph.pbtxt"):
        return read_graph_folder(name, folder, root, report)
    config = folder / "config.json"
    if is_present(config):
        check_file(config, folder)
    if is_present(config) and isinstance(values := read_json(config), dict) and MODELS in values:
        raise ModelError(f"{config} is a list of models for OVMS; serve it with --config-path {config}")
    return Source(name, find_version(folder) if not is_present(config) else folder)


def _read_repository(root: Path, report: Report) -> Found:
    """Return the models in the folders of a folder, or one level deeper as in OWNER/MODEL. Raise `ModelError`."""
    if not root.is_dir():
        raise ModelError(
            f"the model repository {root} does not exist; set --model-repository-path to a folder of models"
        )
    found = Found([])
    try:
        for folder in _find_folders(root):
            if _is_model(folder):
                _add_model(found, root, folder, report)
                continue
            for inner in _find_folders(folder):
                if _is_model(inner):
                    _add_model(found, root, inner, report)
    except OSError as error:
        raise ModelError(f"could not read the model repository {root}: {summarize_error(error)}") from None
    if not found.sources and not found.refused:
        raise ModelError(
            f"the model repository {root} has no model folders such as {root}/OWNER/MODEL; for one model, set --model"
        )
    return found


def _find_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_model(folder: Path) -> bool:
    return any(True for mark in _MARKS for _ in folder.glob(mark))


def _add_model(found: Found, root: Path, folder: Path, report: Report) -> None:
    name = folder.relative_to(root).as_posix()
    if not folder.resolve().is_relative_to(root.resolve()):
        found.refused.append(Refused(name, f"{folder} is a link that leads out of {root}; serve it with --model"))
        return
    try:
        found.sources.append(_read_model(name, folder, root, report))
    except ModelError as error:
        found.refused.append(Refused(name, str(error)))
    except (OSError, RuntimeError, ValueError) as error:
        found.refused.append(Refused(name, f"could not read {folder}: {summarize_error(error)}"))


def _apply_overrides(source: Source, overrides: Overrides) -> Source:
    """Return a source with other settings, as far as they are given."""
    given = {name: value for name, value in msgspec.structs.asdict(overrides).items() if value not in (None, "", {})}
    given["properties"] = source.overrides.properties | overrides.properties
    return msgspec.structs.replace(source, overrides=msgspec.structs.replace(source.overrides, **given))
