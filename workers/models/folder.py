"""Settings of a model folder as sentence-transformers and Hugging Face write it. Does not import OpenVINO.

A folder holds `config.json`, `model.safetensors` and `tokenizer.json`. Optional files are `modules.json` with the
folders that it names, `sentence_bert_config.json` and `tokenizer_config.json`.
"""

import reprlib
from pathlib import Path
from typing import Any

import msgspec

from broker.shared.files import explain
from workers.models.json_files import REMEDY, ModelError, is_present, read_count, read_json, read_object

#: What Vecmill loads today, for errors about other folders.
SUPPORTED = (
    "Vecmill loads BERT models (model_type bert, such as MiniLM, bge, gte and English e5) from folders with "
    "config.json, model.safetensors and tokenizer.json, as the Hugging Face hub has them"
)
#: Files of OpenVINO, OVMS and ONNX, whose folders Vecmill cannot load.
_EXPORTS = ("*.xml", "*.onnx", "graph.pbtxt", "subconfig.json", "*/*.xml", "*/*.onnx", "*/1/*.xml", "*/*/1/*.xml")
#: First bytes of the file that `git clone` writes instead of a large file if Git LFS is not installed.
_LFS_POINTER = b"version https://git-lfs"
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
    try:
        _check_files(path)
    except OSError as error:
        raise ModelError(f"could not read the model folder {path}: {explain(error)}") from None
    config = read_object(path / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str):
        raise ModelError(f"{path / 'config.json'} has no model_type; {SUPPORTED}")
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
    if path.is_file():
        raise ModelError(f"{path} is a file; set --model to the folder that holds it")
    if not path.is_dir():
        raise ModelError(f"the model folder {path} does not exist; {_describe_download(path)}")
    required = ("config.json", "model.safetensors", "tokenizer.json")
    missing = [name for name in required if not (path / name).is_file()]
    if missing == ["model.safetensors"] and (path / "pytorch_model.bin").is_file():
        raise ModelError(
            f"{path} has its weights only as pytorch_model.bin, which Vecmill does not read because such a file can "
            "run code; where torch is installed, load the folder with transformers.AutoModel and save it again, which "
            "writes model.safetensors"
        )
    if missing and (exports := [found.name for pattern in _EXPORTS for found in path.glob(pattern)]):
        raise ModelError(
            f"{path} is an export for OpenVINO, OVMS or ONNX ({exports[0]}), which Vecmill cannot load yet; "
            f"{SUPPORTED}; download the model from which the export was made"
        )
    if missing:
        raise ModelError(f"{path} has no {' and no '.join(missing)}; {SUPPORTED}")
    for name in required:
        with (path / name).open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ModelError(f"{path / name} is a pointer of Git LFS; fetch the file itself with: git lfs pull")


def _describe_download(path: Path) -> str:
    """Return how to get a model. `path` looks like a name on the hub if only its last two parts are missing."""
    is_name = len(path.parts) > 1 and not path.parent.exists() and path.parent.parent.is_dir()
    name = "/".join(path.parts[-2:]) if is_name else "OWNER/MODEL"
    return (
        "--model takes a folder and not a name on the Hugging Face hub, so download the model with: "
        f"hf download {name} --local-dir FOLDER"
    )


def _read_modules(path: Path) -> tuple[str, bool, bool]:
    """Return the pooling, whether to normalize, and whether pooling includes prompts, as modules.json declares.

    Without modules.json, return mean, no and yes, as sentence-transformers does. Raise `ModelError` for modules that
    Vecmill does not support.
    """
    file = path / "modules.json"
    if not is_present(file):
        return "MEAN", False, True
    modules = read_json(file)
    try:
        kinds = {module["type"].rsplit(".", 1)[-1]: Path(module["path"]) for module in modules}
    except (TypeError, KeyError, AttributeError):
        raise ModelError(f"{file} is not a list of modules with type and path; {REMEDY}") from None
    for inside in kinds.values():
        if inside.is_absolute() or ".." in inside.parts:
            raise ModelError(f"{file}: path {reprlib.repr(str(inside))} leads out of the model folder; {REMEDY}")
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown:
        raise ModelError(f"{file} has a module {reprlib.repr(min(unknown))}, which Vecmill does not support")
    if "Pooling" not in kinds:
        raise ModelError(f"{file} has no Pooling module, so the model has no sentence embeddings")
    file = path / kinds["Pooling"] / "config.json"
    config = read_object(file)
    return _read_pooling(file, config), "Normalize" in kinds, config.get("include_prompt") is not False


def _read_pooling(path: Path, config: dict[str, Any]) -> str:
    """Return the mode of a Pooling module; mean if the module names no mode, as sentence-transformers does."""
    modes = config.get("pooling_mode") or [mode for key, mode in _SWITCHES.items() if config.get(key)] or "mean"
    names = [modes] if isinstance(modes, str) else [str(mode) for mode in modes] if isinstance(modes, list) else []
    if len(names) != 1 or names[0] not in _POOLING:
        wanted = reprlib.repr(" and ".join(names) or modes)
        raise ModelError(f"{path} has the pooling mode {wanted}, but Vecmill supports one of {', '.join(_POOLING)}")
    return _POOLING[names[0]]


def _read_max_tokens(path: Path, config: dict[str, Any]) -> int:
    """Return the setting of sentence-transformers or else the tokenizer's, but at most the number of positions."""
    positions = _read_length(path / "config.json", config, "max_position_embeddings")
    wanted = None
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if wanted is None and is_present(path / name):
            wanted = _read_length(path / name, read_object(path / name), key)
    lengths = [length for length in (positions, wanted) if length is not None]
    if not lengths:
        raise ModelError(
            f"{path / 'config.json'} has no max_position_embeddings, so the length of the longest input is unknown; "
            f"{REMEDY}"
        )
    return min(lengths)


def _read_length(path: Path, values: dict[str, Any], key: str) -> int | None:
    """Return a number of tokens, or None if the number is absent or means that there is no limit."""
    value = values.get(key)
    if value is None or (isinstance(value, int | float) and value >= _NO_LIMIT):
        return None
    return read_count(path, values, key)
