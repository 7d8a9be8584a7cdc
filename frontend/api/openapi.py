"""The HTTP API as OpenAPI 3.1 has it. Written by hand: what a field means stands in no type. Pure.

A test compares its paths with the application's, and the contract test what servers take and answer with it.
"""

from collections.abc import Iterable
from typing import Any

from broker.shared.version import VERSION

Schema = dict[str, Any]
PREFIXES = ("/v1", "/v3", "/v3/v1")
_TITLES = {
    200: "As asked for",
    201: "As asked for, and something is new",
    400: "The request is wrong; the message says what",
    401: "An API key is needed",
    403: "The API key is not an operator's",
    404: "There is no such model or path",
    408: "The rest of the body did not come",
    413: "The body is too large",
    422: "The input ended the worker that ran it, each time",
    429: "This caller's quota is used up",
    431: "The request's headers are too large",
    500: "A fault of the server's",
    503: "The server cannot serve this now",
    504: "The deadline passed",
}


def specification() -> Schema:
    """The whole of it."""
    paths: Schema = {}
    for prefix in PREFIXES:
        paths[f"{prefix}/embeddings"] = {"post": _embeddings(prefix)}
        paths[f"{prefix}/models"] = {"get": _operation(prefix, "List the models that can be asked", _ref("Models"))}
        model = _operation(
            prefix, "Describe a model", _ref("Model"), [404], [_name("name", "Its id, which may hold slashes")]
        )
        paths[f"{prefix}/models/{{name}}"] = {"get": model}
        paths[f"{prefix}/tokenize"] = {"post": _tokenize(prefix)}
    paths |= _operations()
    return {
        "openapi": "3.1.0",
        "info": {"title": "Vecmill", "version": VERSION, "description": "Embeddings behind OpenAI's API."},
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # Where no key is configured none is needed.
        "security": [{"key": []}, {}],
    }


def _operations() -> Schema:
    """Paths that have no prefix."""
    config, text = _ref("Config"), {"type": "string"}
    reload = _operation("", "Read the API keys anew", config, [403, 408, 413, 500])
    reload["responses"]["201"] = _response(201, config)
    return _kserve() | {
        "/v1/config": {"get": _operation("", "How every known model is doing", config)},
        "/v1/config/reload": {"post": reload},
        "/health": {"get": _operation("", "The state of everything, for people", _ref("Health"))},
        "/metrics": {"get": _operation("", "Metrics for Prometheus", text, content="text/plain")},
        "/openapi.json": {"get": _open("This description", {"type": "object"})},
        "/docs": {"get": _open("This description, for people", text, content="text/html")},
        "/docs/start.js": {"get": _open("A part of that page", text, content="text/javascript")},
        "/docs/swagger-ui-bundle.js": {"get": _open("A part of that page", text, content="text/javascript")},
        "/docs/swagger-ui.css": {"get": _open("A part of that page", text, content="text/css")},
    }


def _kserve() -> Schema:
    name = [_name("name", "Its id, which may hold slashes")]
    paths: Schema = {
        "/v2": {"get": _operation("", "KServe's description of the server", _ref("ServerMetadata"))},
        "/v2/health/live": {"get": _open("Whether this process answers", _ref("Live"))},
        "/v2/health/ready": {"get": _open("Whether an embedding would be answered", _ref("Ready"), [503])},
    }
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/1"):
        metadata = _operation("", "KServe's description of a model", _ref("ModelMetadata"), [404, 503], name)
        ready = _operation("", "Whether a model can be asked", _ref("ModelReady"), [404, 503], name)
        paths |= {model: {"get": metadata}, f"{model}/ready": {"get": ready}}
    return paths


def _embeddings(prefix: str) -> Schema:
    operation = _job(prefix, "Turn texts into vectors", "EmbeddingsRequest", "Embeddings")
    headers = operation["responses"]["200"]["headers"]
    for name, text in (
        ("x-queue-time", "Longest wait of its inputs in the queue, in ms"),
        ("x-inference-time", "Longest inference of its inputs, in ms"),
        ("x-total-time", "The whole of it, in ms"),
        ("x-truncated-tokens", "Tokens cut off, if that was allowed"),
        ("x-vecmill-warning", "What the caller should know of the vectors"),
    ):
        headers[name] = {"description": text, "schema": {"type": "string"}}
    return operation


def _tokenize(prefix: str) -> Schema:
    return _job(prefix, "Turn texts into token ids", "TokenizeRequest", "Tokens")


def _job(prefix: str, summary: str, body: str, answer: str) -> Schema:
    """What workers do."""
    statuses = [400, 404, 408, 413, 422, 429, 500, 503, 504]
    operation = _operation(prefix, summary, _ref(answer), statuses, [
        _header("x-vecmill-lane", "Which queue it waits in; by its size if absent", {"enum": ["interactive", "bulk"]}),
        _header("x-vecmill-deadline-ms", "How long it may take", _integer(1, 999_999_999)),
        _header("x-request-id", "An id for logs, which the answer has too", {"type": "string"}),
        _header("traceparent", "W3C Trace Context, for logs", {"type": "string"}),
    ])  # fmt: skip
    return operation | {"requestBody": _body(_ref(body))}


def _operation(
    prefix: str,
    summary: str,
    schema: Schema,
    statuses: Iterable[int] = (),
    parameters: Iterable[Schema] = (),
    content: str = "application/json",
) -> Schema:
    responses = {"200": _response(200, schema, content)}
    responses |= {str(status): _response(status, _ref("Error")) for status in sorted({401, 431, *statuses})}
    tag = prefix or "operations"
    return {"summary": summary, "tags": [tag], "parameters": list(parameters), "responses": responses}


def _open(summary: str, schema: Schema, statuses: Iterable[int] = (), content: str = "application/json") -> Schema:
    """An operation that needs no key."""
    operation = _operation("", summary, schema, statuses, content=content)
    del operation["responses"]["401"]
    return operation | {"security": [{}]}


def _response(status: int, schema: Schema, content: str = "application/json") -> Schema:
    headers = {"x-request-id": {"description": "The request's id", "schema": {"type": "string"}}}
    if status in (429, 503):
        headers["Retry-After"] = {"description": "When to ask again, in seconds", "schema": {"type": "integer"}}
    if status == 401:
        headers["WWW-Authenticate"] = {"description": "How a key is to be sent", "schema": {"const": "Bearer"}}
    return {"description": _TITLES[status], "headers": headers, "content": {content: {"schema": schema}}}


def _integer(minimum: int, maximum: int) -> Schema:
    return {"type": "integer", "minimum": minimum, "maximum": maximum}


def _body(schema: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _header(name: str, text: str, schema: Schema) -> Schema:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}


def _name(name: str, text: str) -> Schema:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": text,
        "schema": {"type": "string", "minLength": 1},
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: Iterable[str], properties: Schema, **more: Any) -> Schema:
    return {"type": "object", "required": list(required), "properties": properties, **more}


def _all(properties: Schema) -> Schema:
    """An object that has all of its fields."""
    return _object(properties, properties)


def _optional(kind: str, text: str, **more: Any) -> Schema:
    """A field that may be null."""
    return {"type": [kind, "null"], "description": text, **more}


def _choice(values: list[str], text: str) -> Schema:
    return {"enum": [*values, None], "description": text}


_TEXT = {"type": "string"}
_INTEGER = {"type": "integer"}
_STRINGS = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2048}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "minItems": 1}
_ID_ARRAYS = {"type": "array", "items": _IDS, "minItems": 1, "maxItems": 2048}
_INPUT = {"anyOf": [{"type": "string"}, _STRINGS, _IDS, _ID_ARRAYS]}
_USAGE = _object(("prompt_tokens", "total_tokens"), {"prompt_tokens": _INTEGER, "total_tokens": _INTEGER})
_ITEM = _object(["object", "embedding", "index"], {
    "object": {"const": "embedding"},
    "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}, {"type": "null"}]},
    "index": _INTEGER,
    "truncated_tokens": _INTEGER,
    "error": _ref("Fault"),
})  # fmt: skip
_TENSORS = {"type": "array", "items": _object(["name", "datatype", "shape"], {
    "name": _TEXT,
    "datatype": {"enum": ["BYTES", "FP32"]},
    "shape": {"type": "array", "items": _INTEGER},
})}  # fmt: skip
_STATUS = _object(["version", "state", "status"], {
    "version": {"const": "1"},
    "state": {"enum": ["LOADING", "AVAILABLE", "UNLOADING", "END"]},
    "status": _object(["error_code", "error_message"], {"error_code": _TEXT, "error_message": _TEXT}),
})  # fmt: skip

_SCHEMAS: Schema = {
    "EmbeddingsRequest": _object(["model", "input"], {
        "model": _TEXT,
        "input": {"description": "A text, texts, the token ids of one document, or of several", **_INPUT},
        "encoding_format": _choice(["float", "base64"], "float by default; base64 is of little-endian float32"),
        "dimensions": _optional("integer", "The vector's first values, scaled to length 1 again", minimum=1),
        "user": {"description": "Ignored"},
        "truncate": {"enum": [True, False, "none", "start", "end", None], "description": "Where to cut long inputs"},
        "prompt_name": _optional("string", "A prompt of the model, which is put before each text"),
        "input_type": _optional("string", "query or document: for the prompt that the model has for it"),
        "normalize": _optional("boolean", "Whether vectors have length 1; as the model makes them if absent"),
        "error_policy": _choice(["fail", "per_item"], "per_item: bad inputs are reported in their places"),
    }),
    "Embeddings": _object(["object", "data", "model", "usage"], {
        "object": {"const": "list"},
        "data": {"type": "array", "items": _ITEM},
        "model": _TEXT,
        "usage": _USAGE,
        "truncated_tokens": _INTEGER,
    }),
    "TokenizeRequest": _object(["model", "text"], {
        "model": _TEXT,
        "text": {"anyOf": [{"type": "string"}, _STRINGS]},
        "max_length": _optional("integer", "Longest answer", minimum=1, maximum=8192),
        "pad_to_max_length": _optional("boolean", "Fill the answer up to it"),
        "padding_side": _choice(["left", "right"], "On which side; right by default"),
        "add_special_tokens": _optional("boolean", "true by default"),
    }),
    "Tokens": _object(["tokens"], {
        "tokens": {"type": "array", "items": {"anyOf": [_INTEGER, {"type": "array", "items": _INTEGER}]}},
    }),
    "Model": _all({
        "id": _TEXT,
        "object": {"const": "model"},
        "created": _INTEGER,
        "owned_by": {"const": "vecmill"},
        "dimension": {"description": "Values in a vector", **_INTEGER},
        "max_tokens": {"description": "Longest input, special tokens included", **_INTEGER},
        "revision": {"description": "Changes with whatever changes its vectors", **_TEXT},
        "prompts": {"type": "object", "additionalProperties": _TEXT},
        "default_prompt": {"type": ["string", "null"], "description": "A name among its prompts"},
        "matryoshka_dimensions": {"type": ["array", "null"], "items": _INTEGER,
                                  "description": "Dimensions that it declares; null: none, empty: all"},
    }),
    "Models": _object(["object", "data"], {
        "object": {"const": "list"},
        "data": {"type": "array", "items": _ref("Model")},
    }),
    "Config": {"type": "object", "additionalProperties": _object(
        ["model_version_status"], {"model_version_status": {"type": "array", "items": _STATUS}}
    )},
    "ServerMetadata": _all({"name": {"const": "vecmill"}, "version": _TEXT, "extensions": {"type": "array"}}),
    "Live": _all({"live": {"const": True}}),
    "Ready": _all({"ready": {"const": True}}),
    "ModelReady": _all({"name": _TEXT, "ready": {"const": True}}),
    "ModelMetadata": _all({
        "name": _TEXT,
        "versions": {"const": ["1"]},
        "platform": {"const": "OpenVINO"},
        "inputs": _TENSORS,
        "outputs": _TENSORS,
    }),
    "Health": _all({
        "status": {"enum": ["ready", "not ready"]},
        "broker": {"enum": ["connected", "away"]},
        "workers": _INTEGER,
        "models": {"type": "object"},
        "open_jobs": _INTEGER,
        "queued_jobs": _INTEGER,
        "counters": {"type": "object", "additionalProperties": _INTEGER},
        "worker_list": {"type": "array", "items": {"type": "object"}},
    }),
    "Error": _all({"error": _ref("Fault")}),
    "Fault": _all({
        "message": _TEXT,
        "type": {"enum": ["invalid_request_error", "rate_limit_error", "server_error"]},
        "param": {"type": ["string", "null"], "description": "The field at fault"},
        "code": {"type": ["string", "null"]},
    }),
}  # fmt: skip
