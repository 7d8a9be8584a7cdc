"""Description of the HTTP API in OpenAPI 3.1. Pure.

Schemas are generated from the types in answers.py and schemas.py, with the limits of the running configuration. The
list of paths is written here; a test compares it with the application's routes.
"""

from typing import Any

import msgspec
from msgspec import Struct

from broker.shared.version import VERSION
from frontend.api import answers, file_answers, file_requests
from frontend.api.schemas import KEY_HEADERS, MAX_DEADLINE_DIGITS, EmbeddingsRequest, TokenizeRequest
from frontend.api.submission import MAX_TOKEN_ID

Schema = dict[str, Any]
#: Prefixes of the paths of OpenAI's API: OpenAI's, and the two of OVMS.
PREFIXES = ("/v1", "/v3", "/v3/v1")
#: Ends of the names of the routes under each prefix.
ROUTE_NAMES = {prefix: prefix.strip("/").replace("/", "_") for prefix in PREFIXES}
#: The prefix that is described, and those that the description only mentions.
PREFIX, *ALIASES = PREFIXES
_DESCRIPTION = (
    "Embeddings server with OpenAI's API. The paths `/v1/embeddings`, `/v1/models`, `/v1/models/{name}`, "
    "`/v1/tokenize`, and those of `/v1/files` and `/v1/batches`, are also served under "
    f"{' and '.join(f'`{alias}`' for alias in ALIASES)}, "
    "as in OpenVINO Model Server."
)
#: Body that the page's "Try it out" sends unless the user changes it.
_EXAMPLE = {"model": "sentence-transformers/all-MiniLM-L6-v2", "input": ["hello world", "how are you"]}

_STATUSES = {
    200: "OK",
    201: "Reloaded; API keys or models changed",
    206: "A range of the file",
    304: "The file is the one of the header If-None-Match",
    400: "The request is invalid; the message gives the reason",
    401: "The API key is missing or unknown",
    403: "The API key is not an operator's",
    404: "The model or path does not exist",
    408: "The rest of the body did not arrive in time",
    409: "The batch has ended",
    413: "The body is too large",
    415: "The body has a content coding other than gzip",
    416: "The file has no byte of the range",
    417: "The server does not support the expectation in the header Expect",
    422: "The input crashed every worker that processed it",
    429: "The client's quota is used up, or too many of its batches have not ended",
    431: "The request's headers are too large",
    500: "Internal error",
    501: "The transfer coding is not supported",
    503: "The server cannot serve this request now",
    504: "The deadline passed",
    505: "The version of HTTP is not supported",
    507: "The disk for files is full",
}

#: Errors of HTTP itself, which every path can have.
_HTTP_STATUSES = (417, 431, 501, 505)

_TEXT: Schema = {"type": "string"}
#: An empty header counts as absent. Generators of requests send null as an empty header.
_EMPTY: Schema = {"enum": ["", None]}
_TOKEN_ID = {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID}
_TOKEN_IDS: Schema = {"type": "array", "items": _TOKEN_ID, "minItems": 1}
_MODEL_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "Name of the model, which may contain slashes",
    "schema": {"type": "string", "minLength": 1},
}


def describe_api(max_inputs: int, max_request_tokens: int, *, token_ids: bool = True) -> Schema:
    """Return the OpenAPI document of a server with these limits on one request, which may reject token ids."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Vecmill", "version": VERSION, "description": _DESCRIPTION},
        # Relative to this document, so that the paths are right behind a proxy with a path prefix.
        "servers": [{"url": "."}],
        "paths": _describe_paths(),
        "components": {
            "schemas": _describe_types(max_inputs, max_request_tokens, token_ids),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                **{name: {"type": "apiKey", "in": "header", "name": name} for name in KEY_HEADERS},
            },
        },
        # A server without configured keys needs none.
        "security": [{"key": []}, *({name: []} for name in KEY_HEADERS), {}],
    }


# --- types -----------------------------------------------------------------------------------------------------------


def _describe_types(max_inputs: int, max_request_tokens: int, token_ids: bool) -> Schema:
    """Return the schemas of all requests and answers."""
    named = [*vars(answers).values(), *vars(file_answers).values()]
    structs = [answer for answer in named if isinstance(answer, type) and issubclass(answer, Struct)]
    requests = [EmbeddingsRequest, TokenizeRequest, file_requests.BatchRequest]
    types = [*requests, *{struct: None for struct in structs if struct is not Struct}]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    # Inputs are described by hand: no type that msgspec knows is a choice of several kinds of lists, a parsed request
    # has a list where clients may send a text alone, and the limits are those of the configuration.
    texts = {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": max_inputs}
    id_lists = {"type": "array", "items": _TOKEN_IDS, "minItems": 1, "maxItems": max_inputs}
    fields = schemas["EmbeddingsRequest"]["properties"]
    text = f"{fields['input']['description']}; at most {max_inputs} inputs and {max_request_tokens} tokens"
    fields["input"] = {"description": text, "anyOf": [_TEXT, texts, *([_TOKEN_IDS, id_lists] if token_ids else [])]}
    schemas["EmbeddingsRequest"]["examples"] = [_EXAMPLE]
    fields = schemas["TokenizeRequest"]["properties"]
    fields["text"] = {"description": fields["text"]["description"], "anyOf": [_TEXT, texts]}
    for request in ("EmbeddingsRequest", "TokenizeRequest"):
        fields = schemas[request]["properties"]
        del fields["warning"]
        for field in fields.values():
            if {"type": "null"} in field.get("anyOf", ()) and {"type": "string"} not in field["anyOf"]:
                field["anyOf"].append({"const": ""})
    return schemas


def _refer(answer: Any) -> Schema:
    """Return a reference to the schema of a type, or the schema itself if the type has no name."""
    (schema,), _ = msgspec.json.schema_components([answer], ref_template="#/components/schemas/{name}")
    return schema


# --- paths -----------------------------------------------------------------------------------------------------------


def _describe_paths() -> Schema:
    paths: Schema = {
        f"{PREFIX}/embeddings": {"post": _describe_embeddings()},
        f"{PREFIX}/models": _describe_get("List the models that are served", answers.ModelList, tag="OpenAI"),
        f"{PREFIX}/models/{{name}}": _describe_get("Describe a model", answers.ModelObject, 404, tag="OpenAI"),
        f"{PREFIX}/tokenize": {"post": _describe_job("Tokenize texts", TokenizeRequest, answers.TokenizeAnswer)},
    }
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/1"):
        paths |= {
            model: _describe_get("KServe: describe a model", answers.ModelMetadata, 404, 503),
            f"{model}/ready": _describe_get("KServe: check that a model is ready", answers.ModelReady, 404, 503),
        }
    reload = _describe("Reload the API keys", answers.ConfigAnswer, 403, 408, 413, 415, 500)
    reload["responses"]["201"] = _describe_response(201, _refer(answers.ConfigAnswer))
    paths |= {
        "/v2": _describe_get("KServe: describe the server", answers.ServerMetadata),
        **_describe_files(),
        **_describe_batches(),
        "/v1/config": _describe_get("Show the state of all known models", answers.ConfigAnswer),
        "/v1/config/reload": {"post": reload},
        "/health": _describe_get("Show the state of the system", answers.HealthAnswer),
        "/metrics": _describe_get("Metrics for Prometheus", str, content="text/plain"),
    }
    keyless = {
        "/v2/health/live": _describe_get("KServe: check that the process runs", answers.ServerLive),
        "/v2/health/ready": _describe_get("KServe: check that a worker is connected", answers.ServerReady, 503),
        "/": _describe_get("Name and main paths of this server", dict[str, str]),
        "/openapi.json": _describe_get("This description", dict[str, Any]),
        "/docs": _describe_get("This description as a page", str, content="text/html"),
    }
    for item in keyless.values():
        item["get"]["security"] = [{}]
        del item["get"]["responses"]["401"]
    for path, item in paths.items():
        if "{name}" in path:
            item["get"]["parameters"] = [_MODEL_NAME]
    return paths | keyless


def _describe_files() -> Schema:
    """Describe the paths of files, which a server without `--data` answers with 404."""
    form = {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "file": {"type": "string", "format": "binary", "description": "For the purpose batch, named *.jsonl"},
            "purpose": {"enum": list(file_requests.PURPOSES)},
            "expires_after[anchor]": {"const": "created_at"},
            "expires_after[seconds]": {
                "type": "integer",
                "minimum": file_requests.MIN_EXPIRY_S,
                "maximum": file_requests.MAX_EXPIRY_S,
            },
        },
    }
    upload = _describe("Upload a file", file_answers.FileObject, 400, 404, 408, 413, 415, 503, 507, tag="Files")
    upload["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    content = _describe(
        "Download a file", str, 404, 416, 503, content="application/octet-stream", tag="Files", path_id="file_id"
    )
    for status in (200, 206):
        content["responses"][str(status)] = _describe_response(status, {}, "application/octet-stream") | {
            "content": {"application/octet-stream": {}}
        }
    content["responses"]["304"] = _describe_response(304, {}) | {"content": {}}
    ranges = {"Range": "Bytes to return, such as bytes=0-99", "If-Range": "ETag", "If-None-Match": "ETag"}
    content["parameters"] += [{"name": name, "in": "header"} | _describe_header(text) for name, text in ranges.items()]
    page = _describe("List files", file_answers.FileList, 400, 404, 503, tag="Files")
    page["parameters"] = [
        *_describe_page(file_requests.MAX_FILES, file_requests.MAX_FILES),
        {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
        {"name": "purpose", "in": "query", "schema": {"enum": [*file_requests.PURPOSES, "batch_output"]}},
    ]
    errors = {"tag": "Files", "path_id": "file_id"}
    one = _describe("Describe a file", file_answers.FileObject, 404, 503, **errors)
    delete = _describe("Delete a file", file_answers.FileDeleted, 404, 503, 507, **errors)
    return {
        f"{PREFIX}/files": {"post": upload, "get": page},
        f"{PREFIX}/files/{{file_id}}": {"get": one, "delete": delete},
        f"{PREFIX}/files/{{file_id}}/content": {"get": content},
    }


def _describe_batches() -> Schema:
    """Describe the paths of batches, which a server without `--data` answers with 404."""
    batch = file_answers.BatchObject
    create = _describe("Start a batch", batch, 400, 404, 408, 413, 415, 429, 503, 507, tag="Batches")
    content = {"application/json": {"schema": _refer(file_requests.BatchRequest)}}
    create["requestBody"] = {"required": True, "content": content}
    page = _describe("List batches", file_answers.BatchList, 400, 404, 503, tag="Batches")
    page["parameters"] = _describe_page(file_requests.MAX_BATCHES, file_requests.DEFAULT_BATCHES)
    errors = {"tag": "Batches", "path_id": "batch_id"}
    one = _describe("Describe a batch", batch, 404, 503, **errors)
    cancel = _describe("Cancel a batch", batch, 404, 408, 409, 413, 415, 503, 507, **errors)
    return {
        f"{PREFIX}/batches": {"post": create, "get": page},
        f"{PREFIX}/batches/{{batch_id}}": {"get": one},
        f"{PREFIX}/batches/{{batch_id}}/cancel": {"post": cancel},
    }


def _describe_page(max_limit: int, default_limit: int) -> list[Schema]:
    """Describe the query of a list."""
    limit = {"type": "integer", "minimum": 1, "maximum": max_limit, "default": default_limit}
    after = "Id of the last object of the previous page"
    return [
        {"name": "limit", "in": "query", "schema": limit},
        {"name": "after", "in": "query", "description": after, "schema": _TEXT},
    ]


def _describe_embeddings() -> Schema:
    operation = _describe_job("Embed texts", EmbeddingsRequest, answers.EmbeddingsAnswer)
    caching = "no-store: compute every input; no-cache: the same, and use the results for later requests"
    operation["parameters"].append({"name": "cache-control", "in": "header"} | _describe_header(caching))
    operation["responses"]["200"]["headers"] |= {
        "x-vecmill-cache": _describe_header("Inputs answered from memory, with equal ones, and computed"),
        "x-queue-time": _describe_header("Longest time of an input in the queue, in ms"),
        "x-inference-time": _describe_header("Longest inference of an input, in ms"),
        "x-total-time": _describe_header("Time of the whole request, in ms"),
        "x-truncated-tokens": _describe_header("Tokens cut off all inputs, if truncate was set"),
    }
    return operation


def _describe_job(summary: str, body: type, answer: type) -> Schema:
    """Describe an operation that workers perform."""
    lane = {"enum": ["interactive", "bulk"]}
    deadline_ms = {"type": "integer", "minimum": 1, "maximum": 10**MAX_DEADLINE_DIGITS - 1}
    headers = {
        "x-vecmill-lane": _describe_header(
            "Queue of the request; by default chosen by its size", {"anyOf": [lane, _EMPTY]}
        ),
        "x-vecmill-deadline-ms": _describe_header(
            "Longest time that the request may take", {"anyOf": [deadline_ms, _EMPTY]}
        ),
        "x-request-id": _describe_header("Id for logs, which the answer repeats"),
        "traceparent": _describe_header("W3C Trace Context, for logs"),
    }
    operation = _describe(summary, answer, 400, 404, 408, 413, 415, 422, 429, 500, 503, 504, tag="OpenAI")
    warning = _describe_header("What was changed in the request, or is unusual about the vectors")
    operation["responses"]["200"]["headers"]["x-vecmill-warning"] = warning
    operation["parameters"] = [{"name": name, "in": "header"} | header for name, header in headers.items()]
    content = {"application/json": {"schema": _refer(body)}}
    return operation | {"requestBody": {"required": True, "content": content}}


def _describe_get(*arguments: Any, **options: str) -> Schema:
    return {"get": _describe(*arguments, **options)}


def _describe(
    summary: str,
    answer: Any,
    *statuses: int,
    content: str = "application/json",
    tag: str = "operations",
    path_id: str = "",
) -> Schema:
    """Describe an operation; `statuses` are those of its errors beyond those that every path has."""
    error = _refer(answers.ErrorAnswer)
    responses = {"200": _describe_response(200, _refer(answer), content)}
    responses |= {
        str(status): _describe_response(status, error) for status in sorted({401, *_HTTP_STATUSES, *statuses})
    }
    in_path = [{"name": path_id, "in": "path", "required": True, "schema": _TEXT}] if path_id else []
    return {"summary": summary, "tags": [tag], "parameters": in_path, "responses": responses}


def _describe_response(status: int, schema: Schema, content: str = "application/json") -> Schema:
    headers = {"x-request-id": _describe_header("Id of the request")}
    if status in (429, 503):
        headers["Retry-After"] = _describe_header("Seconds to wait before the next attempt", {"type": "integer"})
    if status == 401:
        headers["WWW-Authenticate"] = _describe_header("Scheme of the key", {"const": "Bearer"})
    return {"description": _STATUSES[status], "headers": headers, "content": {content: {"schema": schema}}}


def _describe_header(text: str, schema: Schema = _TEXT) -> Schema:
    return {"description": text, "schema": schema}
