"""What a folder says of the use of its model: prompts, as sentence-transformers keeps them, and whether vectors may be
cut, by the names that vLLM reads too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from workers.models.folder import ModelError, ModelFolder, read_object

_FILE = "config_sentence_transformers.json"
#: What the wire carries: characters of a name and of a prompt, and the number of prompts.
_NAME, _TEXT, _NUMBER = 512, 4096, 1000


class Prompts(msgspec.Struct, frozen=True):
    """Texts to put before inputs, by name, and the name of the one that inputs get which ask for none."""

    texts: dict[str, str] = {}
    default: str = ""


def read_prompts(folder: ModelFolder, report: Callable[[str], None]) -> Prompts:
    """A folder's prompts, none in older ones; ModelError when they cannot be used."""
    path = folder.path / _FILE
    if not path.is_file():
        return Prompts()
    config = read_object(path)
    texts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(texts, dict) or "" in texts or not all(isinstance(text, str) for text in texts.values()):
        raise ModelError(f"{path}: prompts are not texts by name")
    if default is not None and (not isinstance(default, str) or default not in texts):
        raise ModelError(f"{path}: there is no prompt named {default!r}, the default")
    if len(texts) > _NUMBER or any(len(name) > _NAME or len(text) > _TEXT for name, text in texts.items()):
        raise ModelError(f"{path} has more than {_NUMBER} prompts, or one of more than {_TEXT} characters")
    if folder.pools_prompt or not any(texts.values()):
        return Prompts(texts, default or "")
    # Pooling that leaves the prompt out is not there: rather no prompts than other vectors.
    if texts.get(default or ""):
        raise ModelError(f"{folder.path} leaves its default prompt out of the pooling, which Vecmill does not do")
    report(f"{folder.path} leaves prompts out of the pooling, which Vecmill does not do: none of them is offered")
    return Prompts()


class Matryoshka(msgspec.Struct, frozen=True):
    """Whether a model declares that its vectors may be cut, and the lengths that it names for it, if any."""

    declared: bool
    dimensions: list[int]


def read_matryoshka(path: Path, config: dict[str, Any]) -> Matryoshka:
    """By `is_matryoshka` and `matryoshka_dimensions` of config.json; ModelError when they are ill-typed."""
    declared, dimensions = config.get("is_matryoshka"), config.get("matryoshka_dimensions") or []
    if not isinstance(declared, bool | None):
        raise ModelError(f"{path / 'config.json'}: is_matryoshka is {declared!r}, which is neither true nor false")
    if not isinstance(dimensions, list) or not all(type(one) is int and 0 < one < 2**32 for one in dimensions):
        raise ModelError(f"{path / 'config.json'}: matryoshka_dimensions are not numbers of values")
    return Matryoshka(bool(dimensions) or declared is True, dimensions)
