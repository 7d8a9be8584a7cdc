"""Description of the API: valid OpenAPI, of the application's paths, types and limits."""

import re

import msgspec
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from frontend.api.openapi import ALIASES, PREFIX, describe_api
from frontend.config import Config
from frontend.rest.api_keys import Keys
from frontend.rest.app import create_app
from frontend.rest.routes.docs import encode_description
from tests.harness.processes import ROOT

DESCRIPTION = describe_api(2048, 300_000)
SCHEMAS = DESCRIPTION["components"]["schemas"]
ROUTES = create_app(Config(), Keys("", "")).router.routes
#: Paths of one route in Sanic: names of models may contain slashes, so that the rest of the path is parsed by hand.
MODEL_PATHS = {
    "/v2/models/<path:path>": [
        f"/v2/models/{{name}}{suffix}" for suffix in ("", "/ready", "/versions/1", "/versions/1/ready")
    ]
}


def test_description_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(DESCRIPTION).validate()


def list_described_paths(path: str) -> list[str]:
    """Return the paths in the description that belong to a route."""
    return MODEL_PATHS.get(path, [re.sub(r"<(\w+)(:\w+)?>", r"{\1}", path)])


def test_described_paths_are_the_applications() -> None:
    """The description has neither aliases nor the files of the page."""
    served = {
        (path, method.lower())
        for route in ROUTES
        for path in list_described_paths(f"/{route.path}")
        for method in route.methods - {"OPTIONS", "HEAD"}
        if not path.startswith(("/docs/", *(f"{alias}/" for alias in ALIASES)))
    }
    described = {(path, method) for path, item in DESCRIPTION["paths"].items() for method in item}
    assert served == described


def test_aliases_are_served_and_mentioned() -> None:
    paths = {f"/{route.path}" for route in ROUTES}
    described = [path for path in paths if path in ("/v1/embeddings", "/v1/models", "/v1/tokenize")]
    assert len(described) == 3
    for alias in ALIASES:
        assert {path.replace(PREFIX, alias, 1) for path in described} < paths
        assert f"`{alias}`" in DESCRIPTION["info"]["description"]


def test_example_is_a_valid_request() -> None:
    schema = SCHEMAS["EmbeddingsRequest"]
    (example,) = schema["examples"]
    OAS31Validator({"components": DESCRIPTION["components"], **schema}).validate(example)
    assert {"model", "input"} <= set(example)


def test_page_and_description_have_relative_links() -> None:
    static = ROOT / "frontend/rest/static"
    links = re.findall(r'(?:href|src|url)[=:] ?"([^"]*)"', (static / "docs.html").read_text())
    links += re.findall(r'url: "([^"]*)"', (static / "start.js").read_text())
    assert links == ["docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/start.js", "openapi.json"]
    assert [server["url"] for server in DESCRIPTION["servers"]] == ["."]


def test_embeddings_request_has_all_fields() -> None:
    body = DESCRIPTION["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = SCHEMAS[body["$ref"].rpartition("/")[2]]["properties"]
    names = {"model", "input", "encoding_format", "dimensions", "user", "truncate", "prompt_name", "input_type"}
    names |= {"normalize", "error_policy", "truncation", "truncation_direction", "truncate_prompt_tokens"}
    assert set(fields) == names
    assert all("description" in field for field in fields.values())


def test_server_describes_its_own_limits() -> None:
    description = encode_description(Config(max_inputs=65_536, max_request_tokens=1_000_000))
    schemas = msgspec.json.decode(description)["components"]["schemas"]
    field = schemas["EmbeddingsRequest"]["properties"]["input"]
    assert [form.get("maxItems") for form in field["anyOf"]] == [None, 65_536, None, 65_536]
    assert "1000000 tokens" in field["description"]
    assert schemas["TokenizeRequest"]["properties"]["text"]["anyOf"][1]["maxItems"] == 65_536
    texts_only = msgspec.json.decode(encode_description(Config(no_token_ids=True)))["components"]["schemas"]
    assert len(texts_only["EmbeddingsRequest"]["properties"]["input"]["anyOf"]) == 2


def test_optional_fields_may_be_empty_strings() -> None:
    for name, required in (("EmbeddingsRequest", {"model", "input", "user"}), ("TokenizeRequest", {"model", "text"})):
        fields = SCHEMAS[name]["properties"]
        optional = [field["anyOf"] for field_name, field in fields.items() if field_name not in required]
        assert optional
        assert all({"const": ""} in forms or {"type": "string"} in forms for forms in optional)


def test_three_headers_may_have_the_key() -> None:
    schemes = DESCRIPTION["components"]["securitySchemes"]
    assert [scheme.get("name") for scheme in schemes.values()] == [None, "api-key", "x-api-key"]
    assert DESCRIPTION["security"] == [*({name: []} for name in schemes), {}]


def test_answer_requires_what_is_always_sent() -> None:
    required = {name: set(schema["required"]) for name, schema in SCHEMAS.items()}
    assert required["EmbeddingsAnswer"] == {"object", "data", "model", "usage"}
    assert required["Embedding"] == {"object", "embedding", "index"}
    assert required["ErrorObject"] == {"message", "type", "param", "code"}
    assert required["ModelObject"] == set(SCHEMAS["ModelObject"]["properties"])


def test_every_path_describes_errors_of_http() -> None:
    operations = [operation for item in DESCRIPTION["paths"].values() for operation in item.values()]
    assert all({"417", "431", "501", "505"} <= operation["responses"].keys() for operation in operations)
    assert all("415" in operation["responses"] for operation in operations if "requestBody" in operation)
