"""Files that OVMS needs besides a model: graph.pbtxt, and the model's entry in config.json.

They are those of OVMS 2026's exporter (model_server, demos/common/export_models/export_model.py), to the byte.
"""

import json
import os
from pathlib import Path
from typing import Any

import msgspec

from broker.shared.files import make_scratch_folder, move_into_place
from workers.models.json_files import ModelError, is_present, read_object
from workers.models.ovms_config import GRAPHS, MODELS


class GraphOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the node that computes embeddings."""

    #: CLS, MEAN or LAST.
    pooling: str
    normalize: bool = True
    truncate: bool = False
    target_device: str = "CPU"
    #: Properties of the OpenVINO device, such as NUM_STREAMS.
    plugin_config: dict[str, str] = {}


def format_graph(options: GraphOptions) -> str:
    """Return the content of graph.pbtxt if the model is in the same folder."""
    # JSON needs no escapes between the single quotes of protobuf's text format, except for these two characters.
    config = json.dumps(options.plugin_config).replace("\\", "\\\\").replace("'", "\\'")
    return f"""# OVMS_GRAPH_QUEUE_MAX_SIZE: AUTO
input_stream: "REQUEST_PAYLOAD:input"
output_stream: "RESPONSE_PAYLOAD:output"
node {{
  name: "EmbeddingsExecutor"
  input_side_packet: "EMBEDDINGS_NODE_RESOURCES:embeddings_servable"
  calculator: "EmbeddingsCalculatorOV"
  input_stream: "REQUEST_PAYLOAD:input"
  output_stream: "RESPONSE_PAYLOAD:output"
  node_options: {{
    [type.googleapis.com / mediapipe.EmbeddingsCalculatorOVOptions]: {{
      models_path: "./",
      plugin_config: '{config}',
      normalize_embeddings: {_format_flag(options.normalize)},
      pooling: {options.pooling},
      truncate: {_format_flag(options.truncate)},
      target_device: "{options.target_device}"
    }}
  }}
}}
"""


def _format_flag(flag: bool) -> str:
    return "true" if flag else "false"


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of config.json with a list of models, which is empty if there is none.

    Raise `ModelError` if the file is invalid.
    """
    config = read_object(path) if is_present(path) else {}
    config.setdefault(MODELS, [])
    for key in (MODELS, GRAPHS):
        entries = config.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ModelError(f"{path}: {key} is not a list of objects; correct the file, or set --config_file_path")
    return config


def add_entry(path: Path, name: str, folder: Path) -> None:
    """Add a model to config.json, or set the folder of the model's entry. Everything else in the file stays.

    Raise `ModelError` if the file is invalid, and `OSError` if the file cannot be written.
    """
    config = read_config(path)
    models, graphs = config[MODELS], config.get(GRAPHS, [])
    known = [entry.get("config") for entry in models] + graphs
    entry = next((entry for entry in known if isinstance(entry, dict) and entry.get("name") == name), None)
    if entry is None:
        entry = {"name": name}
        models.append({"config": entry})
    entry["base_path"] = _make_base_path(path.parent, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with make_scratch_folder(path.parent) as scratch:
        written = scratch / path.name
        written.write_text(json.dumps(config, indent=4))
        move_into_place(written, path)


def _make_base_path(start: Path, folder: Path) -> str:
    """Return a folder's path from `start`, or the whole path if it leads up, which OVMS refuses."""
    relative = os.path.relpath(folder, start)
    return str(folder.resolve()) if relative.startswith("..") else Path(relative).as_posix()
