"""Reads a model folder as sentence-transformers and Hugging Face write it. Converts nothing, imports no OpenVINO.

A folder holds `config.json`, `model.safetensors` and `tokenizer.json`; `modules.json` with the folders that it names,
`sentence_bert_config.json` and `tokenizer_config.json` are read when they are there.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

EXPORT_HINT = "export it with: optimum-cli export openvino --task feature-extraction -m MODEL FOLDER"
#: What Vecmill calls the pooling modes of sentence-transformers that it has.
_POOLING = {"cls": "CLS", "mean": "MEAN", "lasttoken": "LAST"}
#: Until version 5 sentence-transformers wrote one switch for each mode; since then it writes the modes' names.
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
#: A length above this is transformers' way to say that there is no limit.
_NO_LIMIT = 10**9


class ModelError(Exception):
    """The model cannot be served; the text is one sentence for the person who chose it."""


class ModelFolder(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder says of its model."""

    path: Path
    config: dict[str, Any]
    #: `model_type` of config.json, such as "bert".
    family: str
    #: CLS, MEAN or LAST.
    pooling: str
    #: Whether vectors are scaled to length 1.
    normalize: bool
    #: Whether the tokens of a prompt are pooled like the others.
    pools_prompt: bool
    #: Longest input in tokens, special ones included.
    max_tokens: int

    @property
    def weights(self) -> Path:
        """The weights' file."""
        return self.path / "model.safetensors"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.path / "tokenizer.json"


def read_folder(path: Path) -> ModelFolder:
    """Read a folder; ModelError when something that serving needs is missing or not supported."""
    _check_files(path)
    config = read_object(path / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str):
        raise ModelError(f"{path / 'config.json'} names no model_type")
    pooling, normalize, pools_prompt = _modules(path)
    return ModelFolder(
        path=path,
        config=config,
        family=family,
        pooling=pooling,
        normalize=normalize,
        pools_prompt=pools_prompt,
        max_tokens=_max_tokens(path, config),
    )


def _check_files(path: Path) -> None:
    if not path.is_dir():
        raise ModelError(f"the model folder {path} does not exist or is not a folder")
    missing = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (path / name).is_file()]
    if missing == ["model.safetensors"] and (path / "pytorch_model.bin").is_file():
        raise ModelError(
            f"{path} has its weights only as pytorch_model.bin, which needs torch to be read; {EXPORT_HINT}"
        )
    if missing:
        raise ModelError(
            f"{path} has no {' and no '.join(missing)}, and Vecmill reads Hugging Face folders with config.json, "
            f"model.safetensors and tokenizer.json; if it is a model of another form, {EXPORT_HINT}"
        )


def _read_json(path: Path) -> Any:
    try:
        value = json.loads(path.read_bytes())
        # JSON can hold half of a surrogate pair, which could be neither hashed nor sent.
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; ModelError when the file holds none."""
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def _modules(path: Path) -> tuple[str, bool, bool]:
    """By modules.json the pooling, whether it normalises, and whether it pools prompts. Without it: mean, no, and yes,
    as sentence-transformers does."""
    if not (path / "modules.json").is_file():
        return "MEAN", False, True
    modules = _read_json(path / "modules.json")
    try:
        kinds = {str(module["type"]).rsplit(".", 1)[-1]: path / module["path"] for module in modules}
    except (TypeError, KeyError):
        raise ModelError(f"{path / 'modules.json'} is not a list of modules with type and path") from None
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise ModelError(f"{path / 'modules.json'} has a {min(unknown)} module, which Vecmill does not have")
    if "Pooling" not in kinds:
        raise ModelError(f"{path / 'modules.json'} has no Pooling module, so the model makes no sentence embeddings")
    file = kinds["Pooling"] / "config.json"
    config = read_object(file)
    return _pooling(file, config), "Normalize" in kinds, config.get("include_prompt") is not False


def _pooling(path: Path, config: dict[str, Any]) -> str:
    """The one mode that a Pooling module asks for; mean when it names none, as sentence-transformers does."""
    modes = config.get("pooling_mode") or [mode for key, mode in _SWITCHES.items() if config.get(key)] or "mean"
    names = [modes] if isinstance(modes, str) else [str(mode) for mode in modes] if isinstance(modes, list) else []
    if len(names) != 1 or names[0] not in _POOLING:
        asked = " and ".join(names) or repr(modes)
        raise ModelError(f"{path} asks for pooling by {asked}; Vecmill has one of {', '.join(_POOLING)}")
    return _POOLING[names[0]]


def _max_tokens(path: Path, config: dict[str, Any]) -> int:
    """As sentence-transformers: its own setting, else the tokenizer's; never above the number of positions."""
    positions = _length(path / "config.json", config, "max_position_embeddings")
    wanted = None
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if wanted is None and (path / name).is_file():
            wanted = _length(path / name, read_object(path / name), key)
    lengths = [length for length in (positions, wanted) if length is not None]
    if not lengths:
        raise ModelError(f"{path / 'config.json'} has no max_position_embeddings, so the longest input is unknown")
    return min(lengths)


def _length(path: Path, values: dict[str, Any], key: str) -> int | None:
    """A number of tokens; None when it is absent or says that there is no limit."""
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise ModelError(f"{path}: {key} is {value!r}, which is not a number of tokens")
    return int(value) if value < _NO_LIMIT else None
