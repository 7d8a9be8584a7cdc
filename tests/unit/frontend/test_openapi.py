"""The description of the API: valid, and of the paths that there are."""

import re

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from frontend.api.openapi import specification
from frontend.config import Config
from frontend.rest.api_keys import Keys
from frontend.rest.app import create_app


def test_it_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(specification()).validate()


#: One route of Sanic's, because a model's name may hold slashes, and what can be asked of a model.
OF_A_MODEL = {
    "/v2/models/<path:path>": [
        f"/v2/models/{{name}}{what}" for what in ("", "/ready", "/versions/1", "/versions/1/ready")
    ]
}


def described_as(path: str) -> list[str]:
    """The paths of a route."""
    return OF_A_MODEL.get(path, [re.sub(r"<(\w+):path>", r"{\1}", path)])


def test_its_paths_and_methods_are_the_applications() -> None:
    app = create_app(Config(), Keys("", ""))
    served = {
        (path, method.lower())
        for route in app.router.routes
        for path in described_as(f"/{route.path}")
        for method in route.methods - {"OPTIONS", "HEAD"}
    }
    described = {(path, method) for path, item in specification()["paths"].items() for method in item}
    assert served == described


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v3/embeddings", "/v3/v1/embeddings"])
def test_it_says_what_an_embeddings_request_may_hold(path: str) -> None:
    body = specification()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = specification()["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]
    names = {"model", "input", "encoding_format", "dimensions", "user", "truncate", "prompt_name", "input_type"}
    assert set(fields) == names | {"normalize", "error_policy"}
