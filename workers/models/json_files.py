"""Values of the JSON files in a model folder, and the errors for invalid ones."""

import json
import os
import reprlib
import textwrap
from pathlib import Path
from typing import Any

from broker.shared.files import explain, read_small_file

#: What to do about a file with an invalid value.
REMEDY = "correct the file, or download the model again"
#: What to do about a model that Vecmill cannot build from its weights.
EXPORT = "convert the model with scripts/export_model --allow_optimum"
#: Largest number of rows, layers and so on. Token ids are int32.
MAX_COUNT = 2**31 - 1
#: Most layers of a model, so that a wrong number does not fill the memory.
MAX_LAYERS = 1000
#: Largest JSON file in bytes. The largest known tokenizer.json has 33 MB (Gemma 3).
MAX_BYTES = 128 << 20


class ModelError(Exception):
    """The model cannot be served. The text is one sentence for the operator."""


def summarize_error(error: BaseException) -> str:
    """Return an exception's text as part of a sentence: without line ends, and not long."""
    return textwrap.shorten(explain(error), 200, placeholder="…")


def get_last_line(error: RuntimeError) -> RuntimeError:
    """Return why OpenVINO failed: the last line of its text, which begins with its own source lines."""
    return RuntimeError(str(error).strip().rpartition("\n")[2])


def read_json(path: Path, remedy: str = REMEDY) -> Any:
    """Return a file's JSON value. Raise `ModelError` with the remedy if the file cannot be read."""
    try:
        return parse_json(read_small_file(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"could not read {path}: {summarize_error(error)}; {remedy}") from None


def parse_json(content: bytes | str) -> Any:
    """Return a JSON value. Raise `ValueError` or `RecursionError` if the content is not valid JSON."""
    value = json.loads(content)
    # JSON can hold half of a surrogate pair, which can be neither hashed nor sent.
    json.dumps(value, ensure_ascii=False).encode()
    return value


def read_object(path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """Return a file's JSON object.

    Raise `ModelError` with the remedy if the file cannot be read or holds something else.
    """
    value = read_json(path, remedy)
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object; {remedy}")
    return value


def read_number(
    path: Path, values: dict[str, Any], key: str, lowest: float, highest: float, default: float | None, *, whole: bool
) -> float:
    """Return a number of a file's JSON object, or `default` if the number is absent or null.

    Raise `ModelError` if the value is not a number from `lowest` to `highest`, or not a whole number if `whole`.
    """
    value: Any = default if values.get(key) is None else values[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and lowest <= value <= highest
    if not is_number or (whole and value != int(value)):
        found = f"is {reprlib.repr(value)}" if key in values else "is missing"
        kind = "a whole number" if whole else "a number"
        raise ModelError(f"{path}: {key} {found}, but must be {kind} from {lowest} to {highest}; {REMEDY}")
    return float(value)


def read_count(
    path: Path, values: dict[str, Any], key: str, lowest: int = 1, highest: int = MAX_COUNT, default: int | None = None
) -> int:
    """Return a whole number of a file's JSON object, as `read_number` does."""
    return int(read_number(path, values, key, lowest, highest, default, whole=True))


def read_flag(path: Path, values: dict[str, Any], key: str, default: bool = False) -> bool:
    """Return true or false of a file's JSON object, or `default` if the key is absent or null.

    Raise `ModelError` if the value is something else.
    """
    value = values.get(key)
    if not isinstance(value, bool | None):
        raise ModelError(f"{path}: {key} is {reprlib.repr(value)}, but must be true or false; {REMEDY}")
    return default if value is None else value


def is_present(path: Path) -> bool:
    """Return whether a folder has an optional file, also if the file is a link to a file that is missing."""
    return os.path.lexists(path)
