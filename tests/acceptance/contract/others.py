# ruff: noqa: E501  a row is a line where it can be
"""Tokenize, models, configuration, KServe, API keys, CORS, and unknown paths."""

import httpx

from tests.acceptance.contract.row import FAKE, REAL, Row, get, tokenize

QUOTED = REAL.replace("/", "%2F")
AVAILABLE = {
    "model_version_status": [
        {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": "OK"}}
    ]
}
KEY, ADMIN = {"Authorization": "Bearer vm-contract"}, {"Authorization": "Bearer vm-contract-admin"}


def tokens(*ids: int) -> dict[str, object]:
    """Return the answer for one text."""
    return {"tokens": list(ids)}


TOKENIZE = [
    tokenize("one text is flat", json=tokens(101, 7592, 2088, 102)),
    tokenize("an array of one is flat", text=["hello world"], json=tokens(101, 7592, 2088, 102)),
    tokenize("several are nested", text=["hello", "world"], json={"tokens": [[101, 7592, 102], [101, 2088, 102]]}),
    tokenize("padding is stripped", text=["hello world", "hello"], json={"tokens": [[101, 7592, 2088, 102], [101, 7592, 102]]}),
    tokenize("an empty text", text="", json=tokens(101, 102)),
    tokenize("without special tokens", add_special_tokens=False, json=tokens(7592, 2088)),
    tokenize("with special tokens", add_special_tokens=True, json=tokens(101, 7592, 2088, 102)),
    tokenize("longer than the model accepts", text="hello " * 400,
             check=lambda answer: len(answer.json()["tokens"]) == 402),
    tokenize("max_length truncates", max_length=3, json=tokens(101, 7592, 102)),
    tokenize("max_length without special tokens", max_length=1, add_special_tokens=False, json=tokens(7592)),
    tokenize("max_length above the text", max_length=100, json=tokens(101, 7592, 2088, 102)),
    tokenize("padded", max_length=6, pad_to_max_length=True, json=tokens(101, 7592, 2088, 102, 0, 0)),
    tokenize("padded on the right", max_length=6, pad_to_max_length=True, padding_side="right",
             json=tokens(101, 7592, 2088, 102, 0, 0)),
    tokenize("padded on the left", max_length=6, pad_to_max_length=True, padding_side="left",
             json=tokens(0, 0, 101, 7592, 2088, 102)),
    tokenize("not padded", max_length=6, pad_to_max_length=False, json=tokens(101, 7592, 2088, 102)),
    tokenize("several, truncated and padded", text=["hello world", ""], max_length=3, pad_to_max_length=True,
             json={"tokens": [[101, 7592, 102], [101, 102, 0]]}),
    tokenize("padded to the model's length", pad_to_max_length=True,
             check=lambda answer: len(answer.json()["tokens"]) == 256),
    tokenize("nulls", max_length=None, pad_to_max_length=None, padding_side=None, add_special_tokens=None,
             json=tokens(101, 7592, 2088, 102)),
    tokenize("on /v1", path="/v1/tokenize", json=tokens(101, 7592, 2088, 102)),
    tokenize("on /v3/v1", path="/v3/v1/tokenize", json=tokens(101, 7592, 2088, 102)),
    tokenize("of an unknown model", 404, model="other", code="model_not_found"),
    tokenize("a lone surrogate", body=rb'{"model": "%s", "text": "\ud83d"}' % REAL.encode(),
             sends={"x-vecmill-warning": ...}),
    tokenize("text named input", 400, text=..., input="a", message='the body has "input" instead, rename it to "text"'),
    tokenize("100 ids", model=FAKE, server="strict", text="x" * 100, check=lambda answer: len(answer.json()["tokens"]) == 100),
    tokenize("101 ids", 400, model=FAKE, server="strict", text=["x" * 50, "x" * 51], code="max_tokens_per_request",
             message="the request has more than 100 tokens", differs="tokens of tokenize"),
    tokenize("101 ids with padding", 400, model=FAKE, server="strict", text="x", max_length=101, pad_to_max_length=True,
             code="max_tokens_per_request"),
    tokenize("no model", 400, model=..., message="model field is missing in JSON body"),
    tokenize("no text", 400, text=..., message="text field is required", param="text"),
    tokenize("an empty array", 400, text=[], message="text array should not be empty"),
    tokenize("a number", 400, text=1, message="text should be string, array of strings or array of integers"),
    tokenize("a mix", 400, text=["a", 1], message="text must be homogeneous"),
    tokenize("nulls in it", 400, text=[None], message="every element in text array should be either string or int"),
    tokenize("token ids", 400, text=[1, 2], message="text must be string or array of strings"),
    tokenize("an empty inner array", 400, text=[[]], param="text"),
    tokenize("null", 400, text=None, message="text field is required", param="text"),
    tokenize("an object", 400, text={}, message="text should be string, array of strings or array of integers"),
    tokenize("a boolean", 400, text=True, message="text should be string, array of strings or array of integers"),
    tokenize("arrays of strings", 400, text=[["a"]],
             message="text must be either array of strings or array of array of integers"),
    tokenize("2,049 texts", 400, text=["a"] * 2049, message="text array has 2049 elements, at most 2048 are allowed"),
    tokenize("model a number", 400, model=1, message="model field is not a string", param="model"),
    tokenize("model null", 400, model=None, message="model field is missing in JSON body", param="model"),
    tokenize("a wrong lane", 400, headers={"x-vecmill-lane": "fast"}, param="x-vecmill-lane"),
    Row("tokenize: not JSON", "POST", "/v3/tokenize", 400, b"hello",
        message="The file is not valid json - Cannot parse JSON body"),
    Row("tokenize: an array", "POST", "/v3/tokenize", 400, [], message="JSON body must be an object"),
    tokenize("max_length 0", 400, max_length=0, message="max_length should be greater than 0", param="max_length"),
    tokenize("max_length below 0", 400, max_length=-1, message="max_length should be unsigned integer"),
    tokenize("max_length a float", 400, max_length=2.0, message="max_length should be unsigned integer"),
    tokenize("max_length a boolean", 400, max_length=True, message="max_length should be unsigned integer"),
    tokenize("max_length with no room for special tokens", max_length=1,
             check=lambda answer: len(answer.json()["tokens"]) == 1),
    tokenize("max_length of OVMS's limit", max_length=8192, json=tokens(101, 7592, 2088, 102)),
    tokenize("padded without special tokens", max_length=4, pad_to_max_length=True, add_special_tokens=False,
             json=tokens(7592, 2088, 0, 0)),
    tokenize("a NUL in it", text="null\0inside", check=lambda answer: len(answer.json()["tokens"]) == 5),
    tokenize("max_length a string", 400, max_length="5", message="max_length should be unsigned integer"),
    tokenize("max_length above the limit", 400, max_length=8193,
             message="max_length 8193 exceeds the allowed limit of 8192"),
    tokenize("pad_to_max_length a number", 400, pad_to_max_length=1, message="pad_to_max_length should be boolean"),
    tokenize("add_special_tokens a string", 400, add_special_tokens="no", message="add_special_tokens should be boolean"),
    tokenize("padding_side another word", 400, padding_side="up", message="padding_side should be either left or right"),
    tokenize("padding_side a number", 400, padding_side=1,
             message="padding_side should be string, either left or right"),
]  # fmt: skip


def one_model(answer: httpx.Response) -> bool:
    """Return whether the list has only the default model, as OpenAI's object."""
    (model,) = answer.json()["data"]
    return (model["id"], model["object"], model["owned_by"]) == (REAL, "model", "vecmill") and model["created"] > 0


MODELS = [
    *(get(f"{prefix}/models", json={"object": "list"}, check=one_model) for prefix in ("/v1", "/v3", "/v3/v1")),
    *(get(f"{prefix}/models/{REAL}", json={"id": REAL, "object": "model"}) for prefix in ("/v1", "/v3", "/v3/v1")),
    get(f"/v3/models/{QUOTED}", json={"id": REAL, "dimension": 384, "max_tokens": 256}),
    get("/v1/models/fake", server="fake", json={"prompts": {"query": "query: ", "document": "passage: "}},
        name="has prompts"),
    get("/v1/models/fake", server="fake", json={"matryoshka_dimensions": [4], "default_prompt": None},
        name="has dimensions"),
    get("/v1/models/other", 404, code="model_not_found", message="Model not found", differs="unknown model"),
    get("/v1/models/all-MiniLM-L6-v2", 404, message=f"did you mean '{REAL}'?"),
    get("/v1/models/", json={"object": "list"}, check=one_model),
    get("/v3/models/a/b/c", 404, code="model_not_found", message="The model 'a/b/c' does not exist"),
    get("/v1/config", check=lambda answer: answer.json() == {REAL: AVAILABLE}),
    get("/v1/config", name="is indented as in OVMS", check=lambda answer: answer.text.startswith(
        '{\n "sentence-transformers/all-MiniLM-L6-v2": {\n  "model_version_status": [\n   {\n    "version": "1",')),
    Row("reload", "POST", "/v1/config/reload", 200, check=lambda answer: answer.json() == {REAL: AVAILABLE},
        differs="reload"),
    get("/v2", json={"name": "vecmill", "extensions": []}, check=lambda answer: bool(answer.json()["version"])),
    get("/v2/health/live", json={"live": True}),
    get("/v2/health/ready", json={"ready": True}),
    get(f"/v2/models/{REAL}", json={"name": REAL, "versions": ["1"], "platform": "OpenVINO"}),
    get(f"/v2/models/{REAL}", name="has its tensors", json={
        "inputs": [{"name": "input", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]}]}),
    get(f"/v2/models/{QUOTED}/versions/1", json={"name": REAL}),
    get(f"/v2/models/{REAL}/ready", json={"name": REAL, "ready": True}),
    get(f"/v2/models/{REAL}/versions/1/ready", json={"ready": True}),
    get(f"/v2/models/{REAL}/versions/2", 404),
    get("/v2/models/other", 404, code="model_not_found", message="Model with requested name is not found"),
    get("/v2/models/other/ready", 404, code="model_not_found"),
    get("/v2/models//ready", 404),
    get("/health", json={"status": "ready", "broker": "connected", "workers": 1}),
    get("/metrics", check=lambda answer: "# TYPE vecmill_requests_total counter" in answer.text, differs="metrics"),
    *(get("/metrics", name=f"in an invalid version: {accept}", headers={"accept": accept},
          sends={"content-type": "text/plain; version=0.0.4; charset=utf-8"})
      for accept in ("text/plain; version=abc", "application/openmetrics-text; version=x.y")),
    get("/", json={"name": "vecmill", "docs": "docs", "embeddings": "v1/embeddings"}),
    get("/openapi.json", json={"openapi": "3.1.0", "servers": [{"url": "."}]}),
    get("/openapi.json", server="strict", name="has the server's limits", check=lambda answer: answer.json()
        ["components"]["schemas"]["EmbeddingsRequest"]["properties"]["input"]["anyOf"][1]["maxItems"] == 3),
    get("/docs", sends={"content-type": "text/html; charset=utf-8", "content-security-policy": ...}),
    get("/docs/", 302, sends={"location": "../docs"}),
    get("/docs/swagger-ui.css", sends={"content-encoding": "gzip"}),
    get("/v1/models/fake", server="strict", name="has the default prompt", json={
        "default_prompt": "topic", "prompts": {"query": "query: ", "document": "passage: ", "topic": "topic: "}}),
    Row("reload without API keys", "POST", "/v1/config/reload", 200, b"not read", server="fake"),
    get("/docs/swagger-ui-bundle.js", sends={"content-encoding": "gzip"}),
]  # fmt: skip

PREFLIGHT = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
EDGES = [
    get("/nothing", 404, message="Invalid request URL", code="unknown_url", differs="unknown path"),
    get("/v1", 404, message="Invalid request URL"),
    get("/v1/embeddings/", 405),
    *(Row(f"POST {path}", "POST", path, 404, {"model": REAL, "input": "a"}, message="send the request to /v1/embeddings",
          code="unknown_url") for path in ("/embeddings", "//v1/embeddings", "/v1/v1/embeddings", "/embed", "/api/embed",
                                           "/openai/deployments/m/embeddings")),
    get("/models", 404, message="send the request to /v1/models"),
    get("/v3/../v1/nothing", 404),
    get("/v1/embeddings", 405, message="Unsupported method", sends={"allow": "POST"}, differs="wrong method"),
    Row("DELETE", "DELETE", f"/v1/models/{REAL}", 405, message="Unsupported method", sends={"allow": ...}),
    Row("POST of models", "POST", "/v1/models", 405, {}, message="Unsupported method"),
    Row("PUT", "PUT", "/v3/tokenize", 405, {}, message="Unsupported method"),
    Row("OPTIONS", "OPTIONS", "/v3/embeddings", 204, sends={"allow": "OPTIONS, POST"}, differs="OPTIONS"),
    Row("OPTIONS of an unknown path", "OPTIONS", "/nothing", 404),
    Row("preflight", "OPTIONS", "/v1/embeddings", 204, headers=PREFLIGHT, sends={
        "access-control-allow-origin": "*", "access-control-allow-headers": "authorization,content-type",
        "access-control-allow-methods": "OPTIONS, POST"}, differs="CORS"),
    get("/v1/models", name="of another origin", headers={"Origin": "https://a.example"},
        sends={"access-control-allow-origin": "*", "access-control-expose-headers": ...}),
    get("/v1/models", 431, name="with headers too large", headers={"x": "y" * 20_000}, code="headers_too_large"),
    *(get(path, 401, server="locked", message="Unauthorized request due to invalid or missing api-key",
          code="invalid_api_key", sends={"www-authenticate": "Bearer"}, name="without a key", differs="wrong key")
      for path in ("/v1/models", "/v3/models/fake", "/v1/config", "/v2", "/v2/models/fake", "/health", "/metrics", "/x")),
    Row("embeddings without a key", "POST", "/v1/embeddings", 401, {"model": FAKE, "input": "a"}, server="locked"),
    Row("embeddings with a wrong key", "POST", "/v1/embeddings", 401, {"model": FAKE, "input": "a"},
        {"Authorization": "Bearer x"}, "locked"),
    Row("embeddings with a key", "POST", "/v1/embeddings", 200, {"model": FAKE, "input": "a"}, KEY, "locked"),
    *(get(path, server="locked", name="needs no key") for path in
      ("/", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs", "/docs/start.js")),
    Row("embeddings with a key and any dimensions allowed", "POST", "/v1/embeddings", 200,
        {"model": FAKE, "input": "a", "dimensions": 3}, KEY, "locked",
        check=lambda answer: "x-vecmill-warning" not in answer.headers),
    Row("embeddings without a key names the header", "POST", "/v1/embeddings", 401, {"model": FAKE, "input": "a"},
        server="locked", message="send the header Authorization: Bearer KEY"),
    *(Row(f"a key in {name}", "POST", "/v1/embeddings", 200, {"model": FAKE, "input": "a"}, {name: "vm-contract"},
          "locked", differs="headers of the key") for name in ("api-key", "X-Api-Key")),
    Row("a wrong key in api-key", "GET", "/v1/models", 401, headers={"api-key": "x"}, server="locked"),
    Row("a key behind two blanks", "GET", "/v1/models", 200, headers={"Authorization": "Bearer  vm-contract"},
        server="locked"),
    Row("a long text with --truncate end", "POST", "/v1/embeddings", 200, {"model": FAKE, "input": "x" * 70}, KEY, "locked",
        json={"truncated_tokens": 6}, sends={"x-truncated-tokens": "6"}),
    Row("a long text with --truncate end and NONE", "POST", "/v1/embeddings", 400,
        {"model": FAKE, "input": "x" * 70, "truncate": "NONE"}, KEY, "locked", message="longer than allowed 64"),
    Row("token ids with --no-token-ids", "POST", "/v1/embeddings", 400, {"model": FAKE, "input": [97]}, KEY, "locked",
        message="check_embedding_ctx_length=False", param="input"),
    Row("tokenize without a key", "POST", "/v3/tokenize", 401, {"model": FAKE, "text": "a"}, server="locked"),
    Row("tokenize with a key", "POST", "/v3/tokenize", 200, {"model": FAKE, "text": "a"}, KEY, "locked",
        json={"tokens": [97]}),
    Row("the scheme of a key in lower case", "GET", "/v1/models", 200, headers={"Authorization": "bearer vm-contract"},
        server="locked"),
    Row("a key of another scheme", "GET", "/v1/models", 401, headers={"Authorization": "Basic vm-contract"},
        server="locked"),
    Row("an invalid body without a key", "POST", "/v1/embeddings", 401, b"hello", server="locked"),
    Row("preflight needs no key", "OPTIONS", "/v1/embeddings", 204, headers=PREFLIGHT, server="locked"),
    Row("reload without a key", "POST", "/v1/config/reload", 401, server="locked", differs="guarded paths"),
    Row("reload with a user's key", "POST", "/v1/config/reload", 403, headers=KEY, server="locked", code="forbidden"),
    Row("reload with an operator's key", "POST", "/v1/config/reload", 200, headers=ADMIN, server="locked"),
    Row("more inputs than a key may have open", "POST", "/v1/embeddings", 400,
        {"model": FAKE, "input": ["a"] * 11}, KEY, "locked", message="its key may have 10 open at once"),
]  # fmt: skip

#: Parts of messages on a server where `fake` has lost its worker, `broken` failed to load, and the default is loading.
UNSERVED = {FAKE: "", "broken": "could not be loaded by any worker", REAL: "is still being loaded"}
STATES = [
    get("/v1/config", server="states", check=lambda answer: {
        name: (one["model_version_status"][0]["state"], one["model_version_status"][0]["status"]["error_code"])
        for name, one in answer.json().items()
    } == {FAKE: ("END", "OK"), "broken": ("LOADING", "FAILED_PRECONDITION"), REAL: ("LOADING", "OK")}),
    get("/v1/config", name="has the reason of a failure", server="states", check=lambda answer: "does not exist or is not a folder"
        in answer.json()["broken"]["model_version_status"][0]["status"]["error_message"]),
    get("/v1/models", json={"data": []}, server="states"),
    get("/v2/health/ready", 503, message="Server is not ready", server="states"),
    get(f"/v2/models/{FAKE}", json={"name": FAKE, "versions": ["1"]}, server="states"),
    get("/v2/models/broken", 503, server="states"),
    get("/v2/models/other/ready", 404, server="states"),
    *(get(f"/v2/models/{name}/ready", 503, sends={"retry-after": ...}, server="states") for name in UNSERVED),
    *(get(f"/v1/models/{name}", 404, code="model_not_found", server="states") for name in UNSERVED),
    *(Row(f"embeddings of {name}", "POST", "/v1/embeddings", 503, {"model": name, "input": "a"}, server="states",
          code="no_worker", message=message, sends={"retry-after": ...}) for name, message in UNSERVED.items()),
    *(Row(f"tokenize of {name}", "POST", "/v1/tokenize", 503, {"model": name, "text": "a"}, server="states",
          code="no_worker", message=message, sends={"retry-after": ...}) for name, message in UNSERVED.items()),
    Row("an invalid input is found first", "POST", "/v1/embeddings", 400, {"model": FAKE, "input": []}, server="states"),
]  # fmt: skip

#: On a server to which no worker has connected.
EMPTY = [
    get("/v2/health/ready", 503, message="Server is not ready", sends={"retry-after": ...}, server="empty"),
    get("/v2/health/live", json={"live": True}, server="empty"),
    get("/v1/models", json={"data": []}, server="empty"),
    get("/v1/config", check=lambda answer: answer.json() == {}, server="empty"),
    get("/v1/models/fake", 404, server="empty"),
    get("/health", json={"status": "not ready", "broker": "connected", "workers": 0}, server="empty"),
    Row("embeddings without a worker", "POST", "/v1/embeddings", 503, {"model": FAKE, "input": "a"}, server="empty",
        code="no_worker", sends={"retry-after": ...}),
    Row("tokenize without a worker", "POST", "/v1/tokenize", 503, {"model": FAKE, "text": "a"}, server="empty",
        code="no_worker", sends={"retry-after": ...}),
    Row("an invalid input without a worker", "POST", "/v1/embeddings", 400, {"model": FAKE}, server="empty"),
]  # fmt: skip

ROWS = [
    *TOKENIZE,
    *MODELS,
    *EDGES,
    *(row._replace(name=f"states: {row.name}") for row in STATES),
    *(row._replace(name=f"no worker: {row.name}") for row in EMPTY),
]
