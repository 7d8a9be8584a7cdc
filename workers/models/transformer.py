"""Settings that sentence-transformers writes for its Transformer module. Does not import OpenVINO."""

import reprlib
from pathlib import Path
from typing import Any

import msgspec

from workers.models.json_files import REMEDY, ModelError, is_present, read_count, read_flag, read_object

#: Files of the settings, by the versions of sentence-transformers. The first one that exists counts.
_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
#: transformers writes a length above this number if there is no limit.
_NO_LIMIT = 10**9
#: Arguments for the tokenizer that do not change the ids of a text that is short enough.
_HARMLESS_ARGUMENTS = {"model_max_length", "padding_side", "truncation_side", "trust_remote_code", "use_fast"}


class TransformerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a Transformer module."""

    #: Longest input in tokens, special tokens included; None: not set.
    max_tokens: int | None = None
    #: Whether texts are lower-cased before the tokenizer's own normalization.
    lower_case: bool = False
    #: Values that replace those of config.json.
    config: dict[str, Any] = {}


def read_transformer(folder: Path) -> TransformerSettings:
    """Return the settings in a folder. Raise `ModelError` for settings that Vecmill does not support."""
    path = next((folder / name for name in _FILES if is_present(folder / name)), None)
    if path is None:
        return TransformerSettings()
    values = read_object(path)
    _check_outputs(path, values)
    tokenizer = _read_arguments(path, values, "processor_kwargs", "tokenizer_args")
    if strange := sorted(set(tokenizer) - _HARMLESS_ARGUMENTS):
        raise ModelError(
            f"{path} sets {reprlib.repr(strange[0])} of the tokenizer, which Vecmill reads only from "
            "tokenizer_config.json; move the setting to there"
        )
    wanted = read_length(path, values, "max_seq_length")
    return TransformerSettings(
        max_tokens=read_length(path, tokenizer, "model_max_length") if wanted is None else wanted,
        lower_case=read_flag(path, values, "do_lower_case", False),
        config=_read_arguments(path, values, "config_kwargs", "config_args"),
    )


def _check_outputs(path: Path, values: dict[str, Any]) -> None:
    """Raise `ModelError` if the module returns something else than the hidden states of plain texts."""
    expected = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    for key, value in expected.items():
        if values.get(key) not in (None, value):
            raise ModelError(f"{path}: {key} is {reprlib.repr(values[key])}, but Vecmill supports only {value}")
    modalities = values.get("modality_config")
    if modalities is None:
        return
    if not isinstance(modalities, dict) or not isinstance(modalities.get("text"), dict):
        raise ModelError(f"{path}: modality_config has no entry for text; choose a model for texts")
    if "message" in modalities:
        raise ModelError(
            f"{path}: modality_config.message puts each text into a chat template, which Vecmill does not support; "
            "choose a model without a chat template"
        )
    text = modalities["text"]
    for key, value in {"method": "forward", "method_output_name": "last_hidden_state"}.items():
        if text.get(key) not in (None, value):
            raise ModelError(
                f"{path}: modality_config.text.{key} is {reprlib.repr(text[key])}, but Vecmill supports only {value}"
            )


def _read_arguments(path: Path, values: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return an object under the first of these keys that is present, which are names of the same setting."""
    key = next((key for key in keys if values.get(key) is not None), None)
    arguments = {} if key is None else values[key]
    if not isinstance(arguments, dict):
        raise ModelError(f"{path}: {key} is not a JSON object; {REMEDY}")
    return {name: value for name, value in arguments.items() if name != "trust_remote_code"}


def choose_max_tokens(folder: Path, config: dict[str, Any], wanted: int | None) -> int:
    """Return the longest input of a transformer in tokens: `wanted`, or else the tokenizer's limit.

    The number of positions limits both. Raise `ModelError` if there is no limit at all.
    """
    path = folder / "tokenizer_config.json"
    if wanted is None and is_present(path):
        wanted = read_length(path, read_object(path), "model_max_length")
    lengths = [length for length in (_count_positions(folder / "config.json", config), wanted) if length is not None]
    if not lengths:
        raise ModelError(
            f"{folder / 'config.json'} has no max_position_embeddings, so the length of the longest input is unknown; "
            f"{REMEDY}"
        )
    return min(lengths)


def _count_positions(path: Path, config: dict[str, Any]) -> int | None:
    """Return how many tokens have a position; None if there is no limit.

    RoBERTa's positions start behind the padding token's, and MPNet's always at 2. NomicBERT has no positions of its own
    beyond those that it was trained with, or stretches them by a factor that depends on the longest text of a batch.
    """
    rows = read_length(path, config, "max_position_embeddings")
    if rows is None:
        rows = read_length(path, config, "n_positions")
    family = config.get("model_type")
    offset = 0
    if family in ("roberta", "xlm-roberta", "camembert"):
        offset = read_count(path, config, "pad_token_id", 0, default=1) + 1
    elif family == "mpnet":
        offset = 2
    elif family == "nomic_bert":
        trained = read_length(path, config, "max_trained_positions")
        rows = min(length for length in (rows, trained, _NO_LIMIT) if length is not None)
    if rows is None or not offset:
        return rows
    if rows <= offset:
        raise ModelError(f"{path}: max_position_embeddings is {rows}, but must be above {offset}; {REMEDY}")
    return rows - offset


def read_length(path: Path, values: dict[str, Any], key: str) -> int | None:
    """Return a number of tokens, or None if the number is absent or means that there is no limit."""
    value = values.get(key)
    if value is None or (isinstance(value, int | float) and value >= _NO_LIMIT):
        return None
    return read_count(path, values, key)
