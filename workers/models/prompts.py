"""Prompts and Matryoshka dimensions of a model folder.

sentence-transformers writes the prompts. The names of the Matryoshka settings are those that vLLM reads.
"""

from pathlib import Path
from typing import Any

import msgspec

from broker.wire.columns import MAX_NAME_LENGTH, MAX_TEXT_LENGTH
from workers.models.folder import ModelFolder
from workers.models.json_files import ModelError

#: Most prompts of a model.
_MAX_PROMPTS = 1000


class Prompts(msgspec.Struct, frozen=True):
    """Texts to put before inputs, by name, and the name of the prompt for requests that name no prompt, or ""."""

    texts: dict[str, str] = {}
    default: str = ""


def read_prompts(folder: ModelFolder) -> Prompts:
    """Return a folder's prompts. Raise `ModelError` if they are invalid."""
    path, config = folder.settings_path, folder.settings
    texts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(texts, dict) or "" in texts or not all(isinstance(text, str | None) for text in texts.values()):
        raise ModelError(f"{path}: prompts must be an object with a text for each name")
    texts = {name: text or "" for name, text in texts.items()}
    if default is not None and (not isinstance(default, str) or default not in texts):
        raise ModelError(f"{path}: default_prompt_name is {default!r}, but there is no such prompt")
    if len(texts) > _MAX_PROMPTS or any(
        len(name) > MAX_NAME_LENGTH or len(text) > MAX_TEXT_LENGTH for name, text in texts.items()
    ):
        raise ModelError(
            f"{path} has more than {_MAX_PROMPTS} prompts, a name of more than {MAX_NAME_LENGTH} characters, or a "
            f"prompt of more than {MAX_TEXT_LENGTH} characters"
        )
    return Prompts(texts, default or "")


class Matryoshka(msgspec.Struct, frozen=True):
    """Whether a model declares that its vectors may be shortened, and the dimensions that it recommends."""

    declared: bool
    dimensions: list[int]


def read_matryoshka(path: Path, config: dict[str, Any]) -> Matryoshka:
    """Return `is_matryoshka` and `matryoshka_dimensions` of config.json. Raise `ModelError` if they are invalid."""
    declared, dimensions = config.get("is_matryoshka"), config.get("matryoshka_dimensions") or []
    if not isinstance(declared, bool | None):
        raise ModelError(f"{path / 'config.json'}: is_matryoshka is {declared!r}, but must be true or false")
    if not isinstance(dimensions, list) or not all(type(size) is int and 0 < size < 2**32 for size in dimensions):
        raise ModelError(f"{path / 'config.json'}: matryoshka_dimensions must be a list of positive numbers")
    return Matryoshka(bool(dimensions) or declared is True, dimensions)
