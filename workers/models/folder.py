"""Reads a model folder as sentence-transformers and Hugging Face write it. Converts nothing.

A folder holds `config.json`, `model.safetensors` and `tokenizer.json`; `modules.json` with the folders that it names,
`sentence_bert_config.json` and `tokenizer_config.json` are read when they are there.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

EXPORT_HINT = "export it with: optimum-cli export openvino --task feature-extraction -m MODEL FOLDER"
#: Pooling modes of sentence-transformers that Vecmill has, by the key that switches each on in 1_Pooling/config.json.
_POOLING = {
    "pooling_mode_cls_token": "CLS",
    "pooling_mode_mean_tokens": "MEAN",
    "pooling_mode_lasttoken": "LAST",
}
#: A length above this is transformers' way to say that there is no limit.
_NO_LIMIT = 10**9


class ModelError(Exception):
    """The model cannot be served; the text is one sentence for the person who chose it."""


class ModelFolder(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder says of its model."""

    path: Path
    config: dict[str, Any]
    family: str
    #: CLS, MEAN or LAST.
    pooling: str
    #: Whether vectors are scaled to length 1.
    normalize: bool
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
    if not path.is_dir():
        raise ModelError(f"the model folder {path} does not exist")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (path / name).is_file():
            raise ModelError(f"{path} has no {name}, so it is not a model folder that Vecmill reads; {EXPORT_HINT}")
    config = _read_json(path / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str):
        raise ModelError(f"{path / 'config.json'} names no model_type")
    pooling, normalize = _modules(path)
    return ModelFolder(
        path=path,
        config=config,
        family=family,
        pooling=pooling,
        normalize=normalize,
        max_tokens=_max_tokens(path, config),
    )


def _read_json(path: Path) -> Any:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if path.name != "modules.json" and not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def _modules(path: Path) -> tuple[str, bool]:
    """Pooling and normalisation by modules.json. Without it: mean and none, as sentence-transformers does."""
    if not (path / "modules.json").is_file():
        return "MEAN", False
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
    return _pooling(kinds["Pooling"] / "config.json"), "Normalize" in kinds


def _pooling(path: Path) -> str:
    config = _read_json(path)
    on = sorted(key for key, value in config.items() if key.startswith("pooling_mode") and value is True)
    if len(on) != 1 or on[0] not in _POOLING:
        raise ModelError(f"{path} asks for pooling by {' and '.join(on) or 'nothing'}; Vecmill has CLS, MEAN and LAST")
    return _POOLING[on[0]]


def _max_tokens(path: Path, config: dict[str, Any]) -> int:
    """The model's own length, then the tokenizer's, never above the number of positions."""
    lengths = [config.get("max_position_embeddings")]
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (path / name).is_file():
            lengths.append(_read_json(path / name).get(key))
    limits = [int(length) for length in lengths if isinstance(length, int | float) and 0 < length < _NO_LIMIT]
    if not limits:
        raise ModelError(f"{path / 'config.json'} has no max_position_embeddings, so the longest input is unknown")
    return min(limits)
