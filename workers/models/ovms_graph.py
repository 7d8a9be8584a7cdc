"""Options of an embeddings model in OVMS's graph.pbtxt.

There are two calculators. `EmbeddingsCalculatorOV` (OVMS from 2025.2) holds the path of the model. The older
`EmbeddingsCalculator` gets the model and the tokenizer from two other nodes, which name entries of subconfig.json.
"""

import reprlib
from pathlib import Path
from typing import Any

import msgspec

from broker.shared.files import read_small_file
from workers.models.json_files import ModelError, parse_json, summarize_error
from workers.models.pbtxt import MAX_CHARACTERS, Message, parse_pbtxt

#: Names and numbers of the pooling modes.
_POOLING = {"CLS": "CLS", "LAST": "LAST", "LAST_TOKEN": "LAST", "MEAN": "MEAN", "0": "CLS", "1": "LAST", "2": "MEAN"}
_FLAGS = dict.fromkeys(("true", "True", "t", "1"), True) | dict.fromkeys(("false", "False", "f", "0"), False)
_OV_OPTIONS = {"models_path", "normalize_embeddings", "target_device", "plugin_config", "pooling", "truncate"}


class Servable(msgspec.Struct, frozen=True):
    """Name of an entry of subconfig.json, and its version, or "" for the latest."""

    name: str
    version: str


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a model in its graph.pbtxt."""

    #: Folder of the model, relative to that of the graph; "" if `embeddings` has it.
    models_path: str = ""
    #: Entries of subconfig.json; None if `models_path` has the folder.
    embeddings: Servable | None = None
    tokenizer: Servable | None = None
    #: CLS, MEAN or LAST; "" if the graph does not specify it.
    pooling: str = ""
    normalize: bool = True
    truncate: bool = False
    #: OpenVINO device, or "".
    device: str = ""
    #: OpenVINO properties.
    properties: dict[str, Any] = {}


def read_graph(path: Path) -> Graph:
    """Return the settings of a graph.pbtxt. Raise `ModelError` if it is damaged or has no model for embeddings."""
    try:
        message = parse_pbtxt(read_small_file(path, MAX_CHARACTERS).decode())
    except (OSError, ValueError) as error:
        raise ModelError(f"could not read {path}: {summarize_error(error)}; correct the file") from None
    nodes = [node for node in message.get("node", []) if isinstance(node, dict)]
    calculators = [_get_text(path, node, "calculator") for node in nodes]
    for node, calculator in zip(nodes, calculators, strict=True):
        if calculator == "EmbeddingsCalculatorOV":
            return _read_options(path, _find_options(node, "EmbeddingsCalculatorOVOptions"))
        if calculator == "EmbeddingsCalculator":
            return _read_sessions(path, node, nodes)
    found = ", ".join(sorted(set(calculators))) or "no calculator"
    raise ModelError(
        f"{path} has {found}, but Vecmill serves only embeddings: EmbeddingsCalculatorOV and EmbeddingsCalculator"
    )


def parse_properties(source: str, value: Any) -> dict[str, Any]:
    """Return plugin_config, a JSON object. Raise `ModelError`, which names the source, if it is something else."""
    if not isinstance(value, dict):
        raise ModelError(f"{source} is {reprlib.repr(value)}, but must be a JSON object of OpenVINO properties")
    return value


def _read_options(path: Path, options: Message) -> Graph:
    """Return the options of `EmbeddingsCalculatorOV`."""
    if unknown := sorted(set(options) - _OV_OPTIONS):
        known = ", ".join(sorted(_OV_OPTIONS))
        raise ModelError(
            f"{path} has the option {reprlib.repr(unknown[0])}, which Vecmill does not know; known: {known}"
        )
    pooling = _get_text(path, options, "pooling")
    if pooling and pooling not in _POOLING:
        raise ModelError(f"{path}: pooling is {reprlib.repr(pooling)}, but must be CLS, LAST or MEAN")
    models_path = _get_text(path, options, "models_path")
    if not models_path:
        raise ModelError(f'{path} has no models_path; add models_path: "./" to the options of EmbeddingsCalculatorOV')
    text = _get_text(path, options, "plugin_config")
    try:
        properties = parse_json(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: plugin_config is not JSON: {summarize_error(error)}; correct the file") from None
    return Graph(
        models_path=models_path,
        pooling=_POOLING.get(pooling, ""),
        normalize=_get_flag(path, options, "normalize_embeddings", default=True),
        truncate=_get_flag(path, options, "truncate", default=False),
        device=_get_text(path, options, "target_device"),
        properties=parse_properties(f"{path}: plugin_config", properties),
    )


def _read_sessions(path: Path, node: Message, nodes: list[Message]) -> Graph:
    """Return the options of `EmbeddingsCalculator`, which always pools the first token."""
    packets = dict(_split_tag(packet) for packet in node.get("input_side_packet", []))
    sessions: dict[str, Servable] = {}
    for other in nodes:
        options = _find_options(other, "OpenVINOModelServerSessionCalculatorOptions")
        if name := _get_text(path, options, "servable_name"):
            servable = Servable(name, _get_text(path, options, "servable_version"))
            sessions |= {_split_tag(packet)[1]: servable for packet in other.get("output_side_packet", [])}
    embeddings = sessions.get(packets.get("EMBEDDINGS_SESSION", ""))
    tokenizer = sessions.get(packets.get("TOKENIZER_SESSION", ""))
    if embeddings is None or tokenizer is None:
        missing = "EMBEDDINGS_SESSION" if embeddings is None else "TOKENIZER_SESSION"
        raise ModelError(
            f"{path}: no node with a servable_name provides the side packet of {missing}; correct the file"
        )
    options = _find_options(node, "EmbeddingsCalculatorOptions")
    return Graph(
        embeddings=embeddings,
        tokenizer=tokenizer,
        pooling="CLS",
        normalize=_get_flag(path, options, "normalize_embeddings", default=True),
    )


def _find_options(node: Message, kind: str) -> Message:
    """Return a node's options of a type, which are in `node_options` or, as an extension, in `options`."""
    for holder in [*node.get("node_options", []), *node.get("options", [])]:
        for name, values in holder.items() if isinstance(holder, dict) else ():
            if kind in name.split(".") and isinstance(values[-1], dict):
                found: Message = values[-1]
                return found
    return {}


def _split_tag(packet: Any) -> tuple[str, str]:
    """Return the tag and the name of a side packet, such as "SESSION:tokenizer"."""
    tag, _, name = str(packet).rpartition(":")
    return tag.partition(":")[0], name


def _get_text(path: Path, options: Message, key: str) -> str:
    """Return the last value of a field, as protobuf does, or ""."""
    value = (options.get(key) or [""])[-1]
    if not isinstance(value, str):
        raise ModelError(f"{path}: {key} is a message, but must be a value; correct the file")
    return value


def _get_flag(path: Path, options: Message, key: str, *, default: bool) -> bool:
    text = _get_text(path, options, key)
    if text and text not in _FLAGS:
        raise ModelError(f"{path}: {key} is {reprlib.repr(text)}, but must be true or false")
    return _FLAGS.get(text, default)
