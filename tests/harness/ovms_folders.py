"""Model folders of OVMS in its three layouts, to the byte as its exporters wrote them."""

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
