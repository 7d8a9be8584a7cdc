"""Settings of a model folder as sentence-transformers and Hugging Face write it. Does not import OpenVINO.

A folder holds `config.json`, the weights and `tokenizer.json`. Optional files are `modules.json` with the folders that
it names, `sentence_bert_config.json`, `config_sentence_transformers.json` and `tokenizer_config.json`.
"""

import reprlib
from pathlib import Path
from typing import Any, Literal

import msgspec

from broker.shared.files import explain
from workers.models import contents
from workers.models.graph_files import find_graph_file, find_tokenizer_file, list_graph_files, read_model_info
from workers.models.json_files import ModelError, is_present, read_count, read_flag, read_object
from workers.models.modules import Modules, Normalize, Pooling, read_modules, read_pooling
from workers.models.source import Overrides
from workers.models.tokenizer_settings import (
    SETTINGS_FILES,
    find_vocabulary,
    list_tokenizer_files,
    refuse_sentencepiece,
)
from workers.models.transformer import TransformerSettings, choose_max_tokens, read_length, read_transformer
from workers.models.weight_files import FILE

#: What Vecmill loads, for errors about other folders.
SUPPORTED = (
    "Vecmill loads folders with config.json, model.safetensors and tokenizer.json, as the Hugging Face hub has them, "
    "and models exported to OpenVINO IR or ONNX with their tokenizer"
)
_SETTINGS = "config_sentence_transformers.json"
#: Longest input of a static model, in tokens: sentence-transformers sets no limit, but an inference needs one.
_STATIC_MAX_TOKENS = 32_768
#: Limit of model2vec for a model that sets none (model2vec 0.10, `DEFAULT_MAX_LENGTH`).
_MODEL2VEC_MAX_TOKENS = 512

#: Longest input of a model whose files do not limit it, in tokens: the limit of OVMS 2024.5.
_GRAPH_MAX_TOKENS = 512

#: sentence-transformers' names of OVMS's pooling modes.
_OVMS_POOLING = {"CLS": "cls", "MEAN": "mean", "LAST": "lasttoken"}

Kind = Literal["huggingface", "static", "ir", "onnx"]


class ModelFolder(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a model, read from its folder."""

    path: Path
    kind: Kind
    config: dict[str, Any]
    #: `model_type` of config.json, such as "bert"; "static" for sentence-transformers' token table.
    family: str
    modules: Modules
    #: Files of the weights, those of modules included, and of what lists them. An imported model begins with its graph.
    weights: tuple[Path, ...]
    #: tokenizer.json, or a tokenizer in OpenVINO IR.
    tokenizer_path: Path
    #: Content of config_sentence_transformers.json.
    settings: dict[str, Any]
    #: Longest input in tokens, special tokens included.
    max_tokens: int
    #: Whether texts are lower-cased before the tokenizer's own normalization.
    lower_case: bool = False
    #: Pooling modes of the folder that overrides replaced by others; none if they replaced none.
    replaced_pooling: tuple[str, ...] = ()
    #: Whether a graph's own pooling does not count, because overrides set another, or because it includes prompts.
    repool: bool = False

    @property
    def is_imported(self) -> bool:
        """Whether the model is a graph that others have converted."""
        return self.kind in ("ir", "onnx")

    @property
    def base(self) -> Path:
        """Folder of config.json, the weights and the tokenizer."""
        return self.modules.base

    @property
    def config_path(self) -> Path:
        """File of the configuration."""
        return self.base / contents.CONFIG

    @property
    def settings_path(self) -> Path:
        """File of `settings`, which need not exist."""
        return self.path / _SETTINGS

    @property
    def has_special_tokens(self) -> bool:
        """Whether the tokenizer adds special tokens to a text."""
        return self.kind != "static"

    def list_files(self) -> list[Path]:
        """Return the files on which vectors depend, besides those whose settings are in this object."""
        return [*self.weights, *list_tokenizer_files(self.tokenizer_path)]


def read_folder(path: Path, overrides: Overrides | None = None) -> ModelFolder:
    """Return the settings of a folder. Raise `ModelError` if something is missing or not supported."""
    overrides = overrides or Overrides()
    try:
        _check_folder(path)
        modules = read_modules(path)
        base = modules.base if modules else path
        if not base.is_dir():
            raise ModelError(f"{path / 'modules.json'} names the folder {base.name}, which does not exist")
        kind, config, weights = _read_base(path, base, modules, overrides)
        tokenizer = _find_tokenizer(base, overrides)
    except OSError as error:
        raise ModelError(f"could not read the model folder {path}: {explain(error)}") from None
    is_imported = kind in ("ir", "onnx")
    family = config.get("model_type", "" if is_imported else None)
    if not isinstance(family, str):
        raise ModelError(f"{base / contents.CONFIG} has no model_type; {SUPPORTED}")
    settings = read_object(path / _SETTINGS) if is_present(path / _SETTINGS) else {}
    transformer, limit = TransformerSettings(), _STATIC_MAX_TOKENS
    if kind != "static":
        transformer = read_transformer(base)
        config = config | transformer.config
        if is_imported and not _has_limit(base, config, transformer):
            config = config | {"max_position_embeddings": _GRAPH_MAX_TOKENS}
        limit = choose_max_tokens(base, config, transformer.max_tokens)
    elif modules:
        family = "static"
    elif "max_length" not in config:
        limit = _MODEL2VEC_MAX_TOKENS
    else:
        limit = min(limit, read_length(base / contents.CONFIG, config, "max_length") or limit)
    declared = modules or (_read_lone_pooling(base) if is_imported else None)
    modules = declared or _choose_modules(base, config)
    for folder in modules.weight_folders:
        weights += contents.require_weights(folder)
    applied = _apply_settings(modules, path / _SETTINGS, settings, overrides)
    return ModelFolder(
        path=path,
        kind=kind,
        config=config,
        family=family,
        modules=applied,
        weights=weights,
        tokenizer_path=tokenizer,
        settings=settings,
        max_tokens=min(limit, overrides.max_tokens or limit),
        lower_case=transformer.lower_case,
        replaced_pooling=declared.pooling if declared and declared.pooling != applied.pooling else (),
        repool=is_imported and (bool(overrides.pooling) or applied.excludes_prompt),
    )


def _check_folder(path: Path) -> None:
    if path.is_file():
        contents.refuse_gguf(path)
        raise ModelError(f"{path} is a file; set --model to the folder that holds it")
    if not path.is_dir():
        raise ModelError(
            f"the model folder {path} does not exist; set --model to a folder, or to OWNER/NAME on the Hugging Face hub"
        )
    contents.check_folder(path, path)


def _read_base(
    path: Path, base: Path, modules: Modules | None, overrides: Overrides
) -> tuple[Kind, dict[str, Any], tuple[Path, ...]]:
    """Return the kind of model, the content of config.json, and the files of the weights."""
    weights = contents.find_weights(base)
    if overrides.file or not weights:
        graph = find_graph_file(base, overrides.file)
        if graph is not None:
            contents.check_folder(path, graph.parent)
            files = list_graph_files(graph)
            for folder in {file.parent for file in files} - {graph.parent}:
                contents.check_folder(path, folder)
            for file in files:
                contents.check_pointer(file)
            return "onnx" if graph.suffix == ".onnx" else "ir", _read_graph_config(base, graph), files
    is_static = modules is not None and modules.is_static
    missing = contents.find_missing(base, () if is_static else (contents.CONFIG,))
    if not weights:
        if export := contents.find_export(base):
            raise ModelError(f"{base} has no model, but there is {export}; set --model to the folder of the model")
        if not missing:
            contents.refuse_pickles(base)
        contents.refuse_gguf(base)
        missing.append(FILE)
    if missing:
        raise ModelError(f"{base} has no {' and no '.join(sorted(missing))}; {SUPPORTED}")
    config = read_object(base / contents.CONFIG) if is_present(base / contents.CONFIG) else {}
    if is_static:
        return "static", {"model_type": "static", **config}, weights
    return "static" if config.get("model_type") == "model2vec" else "huggingface", config, weights


def _read_graph_config(base: Path, graph: Path) -> dict[str, Any]:
    """Return config.json, or what an IR has of it, or an empty object."""
    if is_present(base / contents.CONFIG):
        return read_object(base / contents.CONFIG)
    return dict(read_model_info(graph)) if graph.suffix == ".xml" else {}


def _find_tokenizer(base: Path, overrides: Overrides) -> Path:
    """Return the file of the tokenizer. Raise `ModelError` if there is none."""
    folders = [base, *([overrides.tokenizer] if overrides.tokenizer else [])]
    for folder in folders[1:]:
        contents.check_folder(folder, folder)
    for folder in folders:
        names = find_vocabulary(folder)
        for name in (*names, *SETTINGS_FILES):
            if (folder / name).is_file():
                contents.check_size(folder / name)
        if names and not contents.find_missing(folder, names):
            return folder / names[0]
    # The model itself may be called like the tokenizer.
    if (found := find_tokenizer_file(folders[-1], alone=len(folders) > 1)) is not None:
        return found
    for folder in folders:
        refuse_sentencepiece(folder)
    raise ModelError(f"{folders[-1]} has no {contents.TOKENIZER}; {SUPPORTED}")


def _has_limit(base: Path, config: dict[str, Any], transformer: TransformerSettings) -> bool:
    """Return whether a folder's files limit the length of an input."""
    is_set = transformer.max_tokens is not None or is_present(base / "tokenizer_config.json")
    return is_set or not {"max_position_embeddings", "n_positions"}.isdisjoint(config)


def _read_lone_pooling(base: Path) -> Modules | None:
    """Return the pooling of a folder that an exporter left without modules.json, or None."""
    path = base / "1_Pooling" / contents.CONFIG
    return Modules(base=base, steps=(read_pooling(path),)) if is_present(path) else None


def _choose_modules(base: Path, config: dict[str, Any]) -> Modules:
    """Return the modules of a folder without modules.json, as sentence-transformers and model2vec choose them."""
    path = base / contents.CONFIG
    if config.get("model_type") == "model2vec":
        steps = (Normalize(),) if read_flag(path, config, "normalize", False) else ()
        return Modules(base=base, is_static=True, steps=steps)
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else ""
    is_causal = isinstance(name, str) and name.endswith("ForCausalLM") and read_flag(path, config, "is_causal", True)
    return Modules(base=base, steps=(Pooling(("lasttoken",) if is_causal else ("mean",)),))


def _apply_settings(modules: Modules, path: Path, settings: dict[str, Any], overrides: Overrides) -> Modules:
    """Return the modules with the settings of config_sentence_transformers.json, and with the overrides."""
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ModelError(
            f"{path}: model_type is {reprlib.repr(kind)}, but Vecmill serves only models of the type "
            "SentenceTransformer, which return one vector for a text"
        )
    if settings.get("truncate_dim") is not None:
        modules = msgspec.structs.replace(modules, truncate_dim=read_count(path, settings, "truncate_dim"))
    if overrides.pooling:
        modules = modules.replace_pooling(_OVMS_POOLING[overrides.pooling])
    if overrides.normalize is not None:
        modules = modules.replace_normalization(overrides.normalize)
    return modules
