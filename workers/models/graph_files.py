"""Files of models that others have converted to OpenVINO IR or ONNX. Does not import OpenVINO."""

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from workers.models.contents import refuse_gguf
from workers.models.json_files import REMEDY, ModelError, summarize_error
from workers.models.onnx_files import find_external_files

#: Names that optimum-intel, sentence-transformers, transformers.js and OVMS give to a model that is not quantized, in
#: the order in which they are preferred.
_NAMES = ("openvino_model.xml", "openvino/openvino_model.xml", "model.xml", "model.onnx", "onnx/model.onnx")
#: Folders of graphs, in the order in which they are preferred.
_PATTERNS = ("*.xml", "openvino/*.xml", "*.onnx", "onnx/*.onnx")
#: Names of tokenizers in OpenVINO IR: optimum-intel's, and that of OVMS 2024.5 to 2025.3 in a folder of its own.
_TOKENIZER, _LONE_TOKENIZER = "openvino_tokenizer.xml", "model.xml"
#: Parts of the names of graphs that are no embedding models.
_FOREIGN_PARTS = ("tokenizer", "detokenizer", "decoder", "vision", "language")
#: Parts of the names of quantized graphs, which give other vectors.
_REDUCED_PARTS = ("int8", "uint8", "qint8", "quint8", "quantized", "int4", "q4", "q4f16", "q8", "bnb4", "fp16")

#: Part of an IR that has its first element.
_HEAD_BYTES = 1024


def find_graph_file(folder: Path, named: str = "") -> Path | None:
    """Return the graph of a folder, or None if the folder has no graph. `named` is a path in the folder, or "".

    Raise `ModelError` if the named file is missing, or if it is unclear which file is meant. A quantized file is not
    chosen unless it is named.
    """
    if named:
        if not (folder / named).is_file():
            raise ModelError(f"{folder} has no file {named}")
        return folder / named
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    for pattern in _PATTERNS:
        found = [path for path in sorted(folder.glob(pattern)) if not _has_part(path, _FOREIGN_PARTS)]
        whole = [path for path in found if not _has_part(path, _REDUCED_PARTS)]
        if len(whole) == 1:
            return whole[0]
        if found:
            names = " and ".join(path.name for path in (whole or found)[:3])
            kind = "several models" if whole else "only quantized models"
            raise ModelError(f"{folder} has {kind}, {names}; name the one to serve: --model {(whole or found)[0]}")
    return None


def list_graph_files(path: Path) -> tuple[Path, ...]:
    """Return a graph and the files of its weights. Raise `ModelError` if weights are missing or not in the folder."""
    if path.suffix == ".onnx":
        return (path, *find_external_files(path))
    with path.open("rb") as file:
        if b"<net" not in file.read(_HEAD_BYTES):
            raise ModelError(f"{path} is no OpenVINO model; {REMEDY}")
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelError(f"{path.parent} has no {weights.name}, which belongs to {path.name}; download the model again")
    return (path, weights)


def find_tokenizer_file(folder: Path, *, alone: bool) -> Path | None:
    """Return the tokenizer of a folder in OpenVINO IR, or None. `alone`: the folder holds only a tokenizer."""
    names = [_TOKENIZER, *([_LONE_TOKENIZER] if alone else [])]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_model_info(path: Path) -> dict[str, int | str]:
    """Return the keys of config.json that OVMS 2024.5 to 2025.3 stored in an IR, which has no config.json.

    Raise `ModelError` if the file is damaged.
    """
    info: dict[str, int | str] = {}
    try:
        for _, element in ElementTree.iterparse(path):
            if element.tag == "model_info":
                values = {child.tag: child.get("value", "") for child in element}
                info = {key: _parse_value(text) for key, text in values.items() if text not in ("", "None")}
            elif element.tag in ("layer", "edge"):
                element.clear()
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {summarize_error(error)}; {REMEDY}") from None
    return info


def _parse_value(text: str) -> int | str:
    return int(text) if text.isdecimal() and len(text) < 20 else text


def _has_part(path: Path, parts: Iterable[str]) -> bool:
    return not set(parts).isdisjoint(path.stem.lower().replace("-", "_").split("_"))


def split_graph_path(path: Path) -> tuple[Path, str]:
    """Return the model folder of a graph, and the graph's path in it. Raise `ModelError` if it is no graph."""
    refuse_gguf(path)
    if path.suffix not in (".xml", ".onnx"):
        raise ModelError(f"{path} is a file; set --model to the folder that holds it, or to a file .xml or .onnx")
    folder = path.parent.parent if path.parent.name in ("openvino", "onnx") else path.parent
    return folder, path.relative_to(folder).as_posix()
