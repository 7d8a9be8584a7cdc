"""Model folders of OVMS in its three layouts, to the byte as its exporters wrote them."""

import json
from collections.abc import Mapping
from pathlib import Path

_SESSIONS = """input_stream: "REQUEST_PAYLOAD:input"
output_stream: "RESPONSE_PAYLOAD:output"
node {
  calculator: "OpenVINOModelServerSessionCalculator"
  output_side_packet: "SESSION:tokenizer"
  node_options: {
    [type.googleapis.com / mediapipe.OpenVINOModelServerSessionCalculatorOptions]: {
      servable_name: "%(tokenizer)s"%(version)s
    }
  }
}
node {
  calculator: "OpenVINOModelServerSessionCalculator"
  output_side_packet: "SESSION:embeddings"
  node_options: {
    [type.googleapis.com / mediapipe.OpenVINOModelServerSessionCalculatorOptions]: {
      servable_name: "%(embeddings)s"%(version)s
    }
  }
}
node {
  input_side_packet: "TOKENIZER_SESSION:tokenizer"
  input_side_packet: "EMBEDDINGS_SESSION:embeddings"
  calculator: "EmbeddingsCalculator"
  input_stream: "REQUEST_PAYLOAD:input"
  output_stream: "RESPONSE_PAYLOAD:output"%(options)s
}
"""

#: graph.pbtxt of the seed, 2024-10.
GRAPH_SEED = _SESSIONS % {
    "tokenizer": "tokenizer",
    "embeddings": "embeddings_model",
    "version": '\n      servable_version: "1"',
    "options": "",
}

#: graph.pbtxt of export_model.py from 2024.5 to 2025.3 for the model acme/tiny.
GRAPH_2024_05 = _SESSIONS % {
    "tokenizer": "acme/tiny_tokenizer_model",
    "embeddings": "acme/tiny_embeddings_model",
    "version": "",
    "options": """
  node_options: {
    [type.googleapis.com / mediapipe.EmbeddingsCalculatorOptions]: {
      normalize_embeddings: true,
    }
  }""",
}

#: graph.pbtxt of `export_model.py embeddings_ov`.
GRAPH_TODAY = """# OVMS_GRAPH_QUEUE_MAX_SIZE: AUTO
input_stream: "REQUEST_PAYLOAD:input"
output_stream: "RESPONSE_PAYLOAD:output"
node {
  name: "EmbeddingsExecutor"
  input_side_packet: "EMBEDDINGS_NODE_RESOURCES:embeddings_servable"
  calculator: "EmbeddingsCalculatorOV"
  input_stream: "REQUEST_PAYLOAD:input"
  output_stream: "RESPONSE_PAYLOAD:output"
  node_options: {
    [type.googleapis.com / mediapipe.EmbeddingsCalculatorOVOptions]: {
      models_path: "./",
      plugin_config: '{"NUM_STREAMS": "2"}',
      normalize_embeddings: true,
      pooling: MEAN,
      truncate: true,
      target_device: "CPU"
    }
  }
}
"""

#: config.json of the seed, and of the other layouts.
CONFIG_SEED = {"model_config_list": [], "mediapipe_config_list": [{"name": "acme/tiny-gte", "base_path": "models"}]}
CONFIG = {"model_config_list": [{"config": {"name": "acme/tiny", "base_path": "acme/tiny"}}]}
SUBCONFIG_SEED = {
    "model_config_list": [
        {"config": {"name": "tokenizer", "base_path": "tiny-gte-tokenizer"}},
        {"config": {"name": "embeddings_model", "base_path": "tiny-gte-embeddings", "target_device": "CPU"}},
    ]
}
SUBCONFIG_2024_05 = {
    "model_config_list": [
        {"config": {"name": "acme/tiny_tokenizer_model", "base_path": "tokenizer"}},
        {
            "config": {
                "name": "acme/tiny_embeddings_model",
                "base_path": "embeddings",
                "target_device": "CPU",
                "plugin_config": {"NUM_STREAMS": 1},
            }
        },
    ]
}


def write_files(root: Path, files: Mapping[str, object]) -> None:
    """Write texts, and other values as JSON, to the paths below a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_seed_layout(root: Path) -> Path:
    """Write the layout of the seed, and return the path of config.json. The model files are empty."""
    files = {
        "config.json": CONFIG_SEED,
        "models/graph.pbtxt": GRAPH_SEED,
        "models/subconfig.json": SUBCONFIG_SEED,
        "models/tiny-gte-embeddings/1/openvino_model.xml": "",
        "models/tiny-gte-tokenizer/1/openvino_tokenizer.xml": "",
    }
    write_files(root, files)
    return root / "config.json"


def write_2024_05_layout(root: Path) -> Path:
    """Write the layout of 2024.5 to 2025.3, and return the path of config.json. The model files are empty."""
    files = {
        "config.json": CONFIG,
        "acme/tiny/graph.pbtxt": GRAPH_2024_05,
        "acme/tiny/subconfig.json": SUBCONFIG_2024_05,
        "acme/tiny/embeddings/1/model.xml": "",
        "acme/tiny/tokenizer/1/model.xml": "",
    }
    write_files(root, files)
    return root / "config.json"


def write_today_layout(root: Path) -> Path:
    """Write the layout from 2025.2, and return the path of config.json. The model files are empty."""
    write_files(root, {"config.json": CONFIG, "acme/tiny/graph.pbtxt": GRAPH_TODAY, "acme/tiny/openvino_model.xml": ""})
    return root / "config.json"
