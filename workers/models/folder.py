"""Settings of a model folder as sentence-transformers and Hugging Face write it. Does not import OpenVINO.

A folder holds `config.json`, `model.safetensors` and `tokenizer.json`. Optional files are `modules.json` with the
folders that it names, `sentence_bert_config.json` and `tokenizer_config.json`.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

EXPORT_HINT = "export it with: optimum-cli export openvino --task feature-extraction -m MODEL FOLDER"
#: Vecmill's names of the pooling modes of sentence-transformers that it supports.
_POOLING = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
#: Switches of the pooling modes in sentence-transformers before version 5, which writes the modes' names.
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
#: transformers writes a length above this number if there is no limit.
_NO_LIMIT = 10**9


class ModelError(Exception):
    """The model cannot be served. The text is one sentence for the operator."""


class ModelFolder(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a model, read from its folder."""

    path: Path
    config: dict[str, Any]
    #: `model_type` of config.json, such as "bert".
    family: str
    #: CLS, MEAN or LAST.
    pooling: str
    #: Whether to scale vectors to length 1.
    normalize: bool
    #: Whether pooling includes the tokens of a prompt.
    pools_prompt: bool
    #: Longest input in tokens, special tokens included.
    max_tokens: int

    @property
    def weights_path(self) -> Path:
        """File of the weights."""
        return self.path / "model.safetensors"

    @property
    def tokenizer_path(self) -> Path:
        """File of the tokenizer."""
        return self.path / "tokenizer.json"


def read_folder(path: Path) -> ModelFolder:
    """Return the settings of a folder. Raise `ModelError` if something is missing or not supported."""
    _check_files(path)
    config = read_object(path / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str):
        raise ModelError(f"{path / 'config.json'} has no model_type")
    pooling, normalize, pools_prompt = _read_modules(path)
    return ModelFolder(
        path=path,
        config=config,
        family=family,
        pooling=pooling,
        normalize=normalize,
        pools_prompt=pools_prompt,
        max_tokens=_read_max_tokens(path, config),
    )


def _check_files(path: Path) -> None:
    if not path.is_dir():
        raise ModelError(f"the model folder {path} does not exist or is not a folder")
    missing = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (path / name).is_file()]
    if missing == ["model.safetensors"] and (path / "pytorch_model.bin").is_file():
        raise ModelError(
            f"{path} has its weights only as pytorch_model.bin, which Vecmill cannot read without torch; {EXPORT_HINT}"
        )
    if missing:
        raise ModelError(
            f"{path} has no {' and no '.join(missing)}, but Vecmill needs config.json, model.safetensors and "
            f"tokenizer.json as Hugging Face writes them; if the model has another form, {EXPORT_HINT}"
        )


def _read_json(path: Path) -> Any:
    try:
        value = json.loads(path.read_bytes())
        # JSON can hold half of a surrogate pair, which can be neither hashed nor sent.
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"could not read {path}: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return a file's JSON object. Raise `ModelError` if the file cannot be read or holds something else."""
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def _read_modules(path: Path) -> tuple[str, bool, bool]:
    """Return the pooling, whether to normalize, and whether pooling includes prompts, as modules.json declares.

    Without modules.json, return mean, no and yes, as sentence-transformers does. Raise `ModelError` for modules that
    Vecmill does not support.
    """
    if not (path / "modules.json").is_file():
        return "MEAN", False, True
    modules = _read_json(path / "modules.json")
    try:
        kinds = {str(module["type"]).rsplit(".", 1)[-1]: path / module["path"] for module in modules}
    except (TypeError, KeyError):
        raise ModelError(f"{path / 'modules.json'} is not a list of modules with type and path") from None
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise ModelError(f"{path / 'modules.json'} has a {min(unknown)} module, which Vecmill does not support")
    if "Pooling" not in kinds:
        raise ModelError(f"{path / 'modules.json'} has no Pooling module, so the model has no sentence embeddings")
    file = kinds["Pooling"] / "config.json"
    config = read_object(file)
    return _read_pooling(file, config), "Normalize" in kinds, config.get("include_prompt") is not False


def _read_pooling(path: Path, config: dict[str, Any]) -> str:
    """Return the mode of a Pooling module; mean if the module names no mode, as sentence-transformers does."""
    modes = config.get("pooling_mode") or [mode for key, mode in _SWITCHES.items() if config.get(key)] or "mean"
    names = [modes] if isinstance(modes, str) else [str(mode) for mode in modes] if isinstance(modes, list) else []
    if len(names) != 1 or names[0] not in _POOLING:
        wanted = " and ".join(names) or repr(modes)
        raise ModelError(f"{path} has the pooling mode {wanted}, but Vecmill supports one of {', '.join(_POOLING)}")
    return _POOLING[names[0]]


def _read_max_tokens(path: Path, config: dict[str, Any]) -> int:
    """Return the setting of sentence-transformers or else the tokenizer's, but at most the number of positions."""
    positions = _read_length(path / "config.json", config, "max_position_embeddings")
    wanted = None
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if wanted is None and (path / name).is_file():
            wanted = _read_length(path / name, read_object(path / name), key)
    lengths = [length for length in (positions, wanted) if length is not None]
    if not lengths:
        raise ModelError(
            f"{path / 'config.json'} has no max_position_embeddings, so the length of the longest input is unknown"
        )
    return min(lengths)


def _read_length(path: Path, values: dict[str, Any], key: str) -> int | None:
    """Return a number of tokens, or None if the number is absent or means that there is no limit."""
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise ModelError(f"{path}: {key} is {value!r}, but must be a number of tokens")
    return int(value) if value < _NO_LIMIT else None
