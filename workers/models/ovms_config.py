"""OVMS's config.json: models and graphs for embeddings, in the three layouts that OVMS has had.

- From 2025.2: the entry's folder has graph.pbtxt, and `models_path` in it leads to the model, usually "./".
- 2024.5 to 2025.3, and the preview of 2024-10: graph.pbtxt names two entries of subconfig.json. Their folders have the
  model and the tokenizer in numbered folders, one for each version.
- An entry without graph.pbtxt is a model folder, with or without numbered folders.
"""

import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from broker.wire.columns import MAX_NAME_LENGTH
from workers.models.contents import check_file
from workers.models.graph_files import split_graph_path
from workers.models.json_files import ModelError, is_present, read_object, summarize_error
from workers.models.ovms_graph import Graph, Servable, parse_properties, read_graph
from workers.models.source import Found, Overrides, Refused, Source

MODELS, GRAPHS = "model_config_list", "mediapipe_config_list"
#: What to do about a configuration that cannot be read.
_REMEDY = "correct the file"
#: Other keys of config.json, which have no effect.
_OTHER_KEYS = {
    "custom_loader_config_list",
    "custom_node_library_config_list",
    "monitoring",
    "pipeline_config_list",
}
#: Keys of an entry, and those that have no effect.
_ENTRY_KEYS = {
    "base_path",
    "graph_path",
    "model_version_policy",
    "name",
    "plugin_config",
    "subconfig",
    "target_device",
}
_OTHER_ENTRY_KEYS = {
    "allow_cache",
    "batch_size",
    "custom_loader_options",
    "idle_sequence_cleanup",
    "layout",
    "low_latency_transformation",
    "max_sequence_number",
    "nireq",
    "shape",
    "stateful",
}
#: Files in a model folder that specify the pooling.
_POOLING_FILES = ("modules.json", "1_Pooling/config.json")

Report = Callable[[str], None]


def read_ovms_config(path: Path, report: Report) -> Found:
    """Return the models of a config.json. Raise `ModelError` if the file itself is invalid.

    `report` gets a line about each setting that has no effect. A model that cannot be served does not affect the
    others. Entries that are parts of a graph are not models of their own.
    """
    values = read_object(path, _REMEDY)
    if "model_type" in values and MODELS not in values:
        raise ModelError(f"{path} is the configuration of one model; set --model to its folder {path.parent}")
    if unknown := sorted(set(values) - _OTHER_KEYS - {MODELS, GRAPHS}):
        raise ModelError(f"{path} has the unknown key {reprlib.repr(unknown[0])}; correct its name, or remove it")
    if MODELS not in values:
        raise ModelError(f'{path} has no {MODELS}, which OVMS requires; add "{MODELS}": []')
    for key in sorted(set(values) & _OTHER_KEYS):
        report(f"{path}: {key} has no effect in Vecmill")
    root = path.parent.resolve()
    entries: dict[str, _Entry] = {}
    for entry in _read_entries(path, values):
        if entry.name in entries:
            report(f"{path} has the name {reprlib.repr(entry.name)} twice; the first entry is served")
        entries.setdefault(entry.name, entry)
    sources: list[Source] = []
    refused: list[Refused] = []
    for entry in entries.values():
        try:
            _check_name(path, entry.name)
            sources.append(_read_source(entry, root, entries, report))
        except ModelError as error:
            refused.append(Refused(shorten_name(entry.name), str(error)))
        except (OSError, RuntimeError, ValueError) as error:
            refused.append(Refused(entry.name, f"could not read {entry.name} of {path}: {summarize_error(error)}"))
    parts = {part for source in sources for part in source.parts}
    return Found(
        [source for source in sources if source.name not in parts],
        [model for model in refused if model.name not in parts],
    )


def shorten_name(name: str) -> str:
    """Return a name that the wire allows."""
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[:80]}…"


def _check_name(path: Path, name: str) -> None:
    """Raise `ModelError` if the name of a model or a part is longer than the wire allows."""
    if len(name) > MAX_NAME_LENGTH:
        raise ModelError(
            f"{path}: the name {name[:80]}… has {len(name)} characters, but at most {MAX_NAME_LENGTH} are allowed; "
            "shorten it"
        )


def read_graph_folder(name: str, folder: Path, root: Path, report: Report) -> Source:
    """Return the model of a folder that has graph.pbtxt. Paths in its files must not leave the folder and `root`.

    Raise `ModelError` if the folder is invalid.
    """
    return _follow_graph(name, folder / "graph.pbtxt", [folder / "subconfig.json"], root.resolve(), {}, report)


def find_version(folder: Path, wanted: Iterable[int] = ()) -> Path:
    """Return the folder of the latest of the wanted versions, or of all; or `folder` itself if it has no versions.

    Raise `ModelError` if there is no wanted version.
    """
    versions = {int(path.name): path for path in folder.glob("[1-9]*") if path.name.isdecimal() and path.is_dir()}
    if wanted := list(wanted):
        if not set(wanted) & set(versions):
            raise ModelError(f"{folder} has no folder for version {' or '.join(map(str, wanted))}")
        versions = {number: versions[number] for number in wanted if number in versions}
    return versions[max(versions)] if versions else folder


class _Entry(msgspec.Struct, frozen=True):
    """An entry of a configuration file."""

    #: The configuration file.
    file: Path
    name: str
    values: dict[str, Any]
    #: Folder that paths out of the configuration must not leave, or None if an operator wrote the configuration.
    limit: Path | None

    def get_text(self, key: str) -> str:
        """Return a text, or "" if it is absent. Raise `ModelError` if the value is something else."""
        value = self.values.get(key, "")
        if not isinstance(value, str):
            raise ModelError(f"{self.file}: {key} of {self.name} is {reprlib.repr(value)}, but must be a text")
        return value

    def find_base(self) -> Path:
        """Return the folder of the entry: base_path, which starts at the file's folder, or else the name."""
        text = self.get_text("base_path") or self.name
        if ".." in Path(text).parts:
            raise ModelError(f"{self.file}: base_path of {self.name} has '..'; write the whole path")
        if self.limit is None:
            return self.file.parent / text
        return resolve_inside(f"{self.file}: base_path of {self.name}", self.file.parent, text, self.limit)

    def check_keys(self, report: Report) -> None:
        """Report the keys that have no effect. Raise `ModelError` for an unknown key."""
        for key in sorted(set(self.values) - _ENTRY_KEYS):
            if key not in _OTHER_ENTRY_KEYS:
                known = ", ".join(sorted(_ENTRY_KEYS))
                raise ModelError(f"{self.file}: {self.name} has the unknown key {reprlib.repr(key)}; known: {known}")
            report(f"{self.file}: {key} of {self.name} has no effect in Vecmill")

    def read_overrides(self) -> Overrides:
        """Return the device and its properties."""
        what = f"{self.file}: plugin_config of {self.name}"
        properties = parse_properties(what, self.values.get("plugin_config", {}))
        return Overrides(device=self.get_text("target_device"), properties=properties)

    def choose_version(self, folder: Path) -> Path:
        """Return the folder of the version that model_version_policy selects; one version is served."""
        policy = self.values.get("model_version_policy", {})
        specific = policy.get("specific") if isinstance(policy, dict) else None
        if not isinstance(policy, dict) or (set(policy) - {"latest", "all", "specific"}):
            raise ModelError(f'{self.file}: model_version_policy of {self.name} must be {{"latest": {{}}}} or similar')
        versions = specific.get("versions") if isinstance(specific, dict) else []
        if not isinstance(versions, list) or not all(type(number) is int for number in versions):
            raise ModelError(f"{self.file}: versions in model_version_policy of {self.name} must be a list of numbers")
        return find_version(folder, versions)


def resolve_inside(what: str, start: Path, text: str, root: Path) -> Path:
    """Return the path that starts at a folder, without links. Raise `ModelError` if it leaves the folder and `root`."""
    path = (start / text).resolve()
    if not path.is_relative_to(root) and not path.is_relative_to(start.resolve()):
        raise ModelError(f"{what} is {reprlib.repr(text)}, which leads out of {root}; move the model into that folder")
    return path


def _read_entries(path: Path, values: dict[str, Any], limit: Path | None = None) -> list[_Entry]:
    """Return the entries of both lists. Raise `ModelError` if one is no entry or has no name."""
    entries = []
    for key in (MODELS, GRAPHS):
        items = values.get(key, [])
        if key == MODELS and isinstance(items, list):
            items = [item.get("config") if isinstance(item, dict) else item for item in items]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            shape = '{"config": {"name": "…"}}' if key == MODELS else '{"name": "…"}'
            raise ModelError(f"{path}: {key} must be a list of objects like {shape}")
        for item in items:
            if not isinstance(item.get("name"), str) or not item["name"]:
                raise ModelError(f"{path}: an entry of {key} has no name; add one")
            entries.append(_Entry(path, item["name"], item, limit))
    return entries


def _read_source(entry: _Entry, root: Path, entries: dict[str, _Entry], report: Report) -> Source:
    """Return the model of an entry. Raise `ModelError` if it cannot be served."""
    entry.check_keys(report)
    base = entry.find_base()
    if wanted := entry.get_text("graph_path"):
        graphs = [base / wanted]
    else:
        graphs = [base / "graph.pbtxt", base / "1" / "graph.pbtxt"]
    graph = next((path for path in graphs if is_present(path)), None)
    if graph:
        subconfigs = [base / (entry.get_text("subconfig") or "subconfig.json"), base / "config.json"]
        limit = root if base.resolve().is_relative_to(root) else base.resolve()
        return _follow_graph(entry.name, graph, subconfigs, limit, entries, report)
    if wanted:
        raise ModelError(f"{entry.file}: graph_path of {entry.name} is {graphs[0]}, but there is no such file")
    if not base.is_dir():
        raise ModelError(f"{entry.file}: base_path of {entry.name} is {base}, but there is no such folder")
    return Source(entry.name, entry.choose_version(base), entry.read_overrides())


def _follow_graph(
    name: str, path: Path, subconfigs: list[Path], root: Path, entries: dict[str, _Entry], report: Report
) -> Source:
    """Return the model of a graph. `entries` are those that the graph can name besides those of subconfig.json."""
    check_file(path, root, path.parent)
    graph = read_graph(path)
    if graph.embeddings is None or graph.tokenizer is None:
        folder = resolve_inside(f"{path}: models_path", path.parent, graph.models_path, root)
        overrides = _apply_graph(graph, Overrides())
        if folder.is_file():
            folder, file = split_graph_path(folder)
            overrides = msgspec.structs.replace(overrides, file=file)
        if not graph.pooling and not any(is_present(folder / file) for file in _POOLING_FILES):
            report(
                f"warning: neither {path} nor {_POOLING_FILES[-1]} says how {name} pools, so it pools the first "
                "token, as OVMS does; set pooling in graph.pbtxt"
            )
            overrides = msgspec.structs.replace(overrides, pooling="CLS")
        return Source(name, folder, overrides)
    entries = entries | _read_subconfig(subconfigs, root, report)
    folder, overrides = _find_part(path, graph.embeddings, entries)
    tokenizer, _ = _find_part(path, graph.tokenizer, entries)
    overrides = msgspec.structs.replace(_apply_graph(graph, overrides), tokenizer=tokenizer)
    return Source(name, folder, overrides, (graph.embeddings.name, graph.tokenizer.name))


def _read_subconfig(paths: list[Path], root: Path, report: Report) -> dict[str, _Entry]:
    """Return the entries of the first file with a list of models, which Hugging Face's config.json has not."""
    for path in paths:
        if not is_present(path):
            continue
        check_file(path, root, path.parent)
        values = read_object(path, _REMEDY)
        if MODELS in values:
            entries = _read_entries(path, {MODELS: values[MODELS]}, root)
            for entry in entries:
                entry.check_keys(report)
            return {entry.name: entry for entry in reversed(entries)}
    return {}


def _find_part(path: Path, servable: Servable, entries: dict[str, _Entry]) -> tuple[Path, Overrides]:
    """Return the folder and the overrides of the entry that a graph names. Raise `ModelError` if there is none."""
    _check_name(path, servable.name)
    entry = entries.get(servable.name)
    if entry is None:
        raise ModelError(f"{path} names {reprlib.repr(servable.name)}, but subconfig.json has no such entry; add one")
    base = entry.find_base()
    if not base.is_dir():
        raise ModelError(f"{entry.file}: base_path of {entry.name} is {base}, but there is no such folder")
    if not servable.version:
        return entry.choose_version(base), entry.read_overrides()
    if not servable.version.isdecimal():
        raise ModelError(f"{path}: servable_version {reprlib.repr(servable.version)} is not a number")
    return find_version(base, [int(servable.version)]), entry.read_overrides()


def _apply_graph(graph: Graph, overrides: Overrides) -> Overrides:
    """Return the overrides of a graph, with the device and properties of its entry if the graph has none."""
    return msgspec.structs.replace(
        overrides,
        pooling=graph.pooling,
        normalize=graph.normalize,
        truncate=graph.truncate,
        device=graph.device or overrides.device,
        properties=overrides.properties | graph.properties,
    )
