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
from workers.models.json_files import ModelError, is_present, read_count, read_flag, read_object
from workers.models.modules import Modules, Normalize, Pooling, read_modules
from workers.models.transformer import TransformerSettings, choose_max_tokens, read_length, read_transformer
from workers.models.weight_files import FILE

#: What Vecmill loads, for errors about other folders.
SUPPORTED = (
    "Vecmill loads folders with config.json, model.safetensors and tokenizer.json, as the Hugging Face hub has them"
)
#: Settings of the tokenizer that replace those of tokenizer.json.
_TOKENIZER_FILES = ("tokenizer_config.json",)
_SETTINGS = "config_sentence_transformers.json"
#: Longest input of a static model, in tokens: sentence-transformers sets no limit, but an inference needs one.
_STATIC_MAX_TOKENS = 32_768
#: Limit of model2vec for a model that sets none (model2vec 0.10, `DEFAULT_MAX_LENGTH`).
_MODEL2VEC_MAX_TOKENS = 512

#: sentence-transformers' names of OVMS's pooling modes.
_OVMS_POOLING = {"CLS": "cls", "MEAN": "mean", "LAST": "lasttoken"}

Kind = Literal["huggingface", "static", "ir", "onnx"]


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that replace those of a model folder."""

    #: CLS, MEAN or LAST, as OVMS names them; "": as the folder declares.
    pooling: str = ""
    #: Whether to scale vectors to length 1; None: as the folder declares.
    normalize: bool | None = None
    #: Longest input in tokens; the folder's own limit holds if it is lower.
    max_tokens: int | None = None


class ModelFolder(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a model, read from its folder."""

    path: Path
    kind: Kind
    config: dict[str, Any]
    #: `model_type` of config.json, such as "bert"; "static" for sentence-transformers' token table.
    family: str
    modules: Modules
    #: Files of the weights, those of modules included, and of what lists them.
    weights: tuple[Path, ...]
    #: Content of config_sentence_transformers.json.
    settings: dict[str, Any]
    #: Longest input in tokens, special tokens included.
    max_tokens: int
    #: Whether texts are lower-cased before the tokenizer's own normalization.
    lower_case: bool = False

    @property
    def base(self) -> Path:
        """Folder of config.json, the weights and the tokenizer."""
        return self.modules.base

    @property
    def config_path(self) -> Path:
        """File of the configuration."""
        return self.base / contents.CONFIG

    @property
    def tokenizer_path(self) -> Path:
        """File of the tokenizer."""
        return self.base / contents.TOKENIZER

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
        optional = [self.base / name for name in _TOKENIZER_FILES if is_present(self.base / name)]
        return [*self.weights, self.tokenizer_path, *optional]


def read_folder(path: Path, overrides: Overrides | None = None) -> ModelFolder:
    """Return the settings of a folder. Raise `ModelError` if something is missing or not supported."""
    overrides = overrides or Overrides()
    try:
        _check_folder(path)
        modules = read_modules(path)
        base = modules.base if modules else path
        if not base.is_dir():
            raise ModelError(f"{path / 'modules.json'} names the folder {base.name}, which does not exist")
        kind, config, weights = _read_base(base, modules)
    except OSError as error:
        raise ModelError(f"could not read the model folder {path}: {explain(error)}") from None
    family = config.get("model_type")
    if not isinstance(family, str):
        raise ModelError(f"{base / contents.CONFIG} has no model_type; {SUPPORTED}")
    settings = read_object(path / _SETTINGS) if is_present(path / _SETTINGS) else {}
    transformer, limit = TransformerSettings(), _STATIC_MAX_TOKENS
    if kind != "static":
        transformer = read_transformer(base)
        config = config | transformer.config
        limit = choose_max_tokens(base, config, transformer.max_tokens)
    elif modules:
        family = "static"
    elif "max_length" not in config:
        limit = _MODEL2VEC_MAX_TOKENS
    else:
        limit = min(limit, read_length(base / contents.CONFIG, config, "max_length") or limit)
    modules = modules or _choose_modules(base, config)
    for folder in modules.weight_folders:
        weights += contents.require_weights(folder)
    return ModelFolder(
        path=path,
        kind=kind,
        config=config,
        family=family,
        modules=_apply_settings(modules, path / _SETTINGS, settings, overrides),
        weights=weights,
        settings=settings,
        max_tokens=min(limit, overrides.max_tokens or limit),
        lower_case=transformer.lower_case,
    )


def _check_folder(path: Path) -> None:
    if path.is_file():
        raise ModelError(f"{path} is a file; set --model to the folder that holds it")
    if not path.is_dir():
        raise ModelError(
            f"the model folder {path} does not exist; set --model to a folder, or to OWNER/NAME on the Hugging Face hub"
        )
    contents.check_folder(path, path)


def _read_base(base: Path, modules: Modules | None) -> tuple[Kind, dict[str, Any], tuple[Path, ...]]:
    """Return the kind of model, the content of config.json, and the files of the weights."""
    is_static = modules is not None and modules.is_static
    weights = contents.find_weights(base)
    required = (contents.TOKENIZER,) if is_static else (contents.CONFIG, contents.TOKENIZER)
    missing = contents.find_missing(base, required)
    if missing or not weights:
        if not weights and (export := contents.find_export(base)):
            raise ModelError(
                f"{base} is an export for OpenVINO, OVMS or ONNX ({export}), which Vecmill cannot load yet; "
                f"{SUPPORTED}; download the model from which the export was made"
            )
        if not weights and not missing:
            contents.refuse_pickles(base)
        names = [*missing, *([] if weights else [FILE])]
        raise ModelError(f"{base} has no {' and no '.join(sorted(names))}; {SUPPORTED}")
    config = read_object(base / contents.CONFIG) if is_present(base / contents.CONFIG) else {}
    if is_static:
        return "static", {"model_type": "static", **config}, weights
    return "static" if config.get("model_type") == "model2vec" else "huggingface", config, weights


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
