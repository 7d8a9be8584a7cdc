"""Names of the files with a model's weights."""

import reprlib
from pathlib import Path

from workers.models.json_files import REMEDY, ModelError, read_object

FILE = "model.safetensors"
#: Names the file of each tensor if there are several files.
INDEX = "model.safetensors.index.json"


def find_weight_files(folder: Path) -> list[Path]:
    """Return the files with a folder's weights, sorted. Raise `ModelError` if the index is invalid."""
    index = folder / INDEX
    if (folder / FILE).exists() or not index.exists():
        return [folder / FILE]
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index} has no weight_map with the file of each tensor; {REMEDY}")
    files = sorted(set(names.values()))
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors") or not name.isprintable():
            raise ModelError(
                f"{index}: weight_map has {reprlib.repr(name)}, which is no file in the model folder; {REMEDY}"
            )
        if not (folder / name).is_file():
            raise ModelError(f"{folder} has no {name}, which {INDEX} names; download the model again")
    return [folder / name for name in files]
