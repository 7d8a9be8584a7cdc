"""Agreement of a server's description of its API (GET /openapi.json) with what it accepts and answers."""

import re
from typing import Any

import httpx
from openapi_schema_validator import OAS31Validator

from frontend.api.openapi import ALIASES, PREFIX
from tests.acceptance.contract.row import Row

#: Start of a path that the description mentions, but does not list.
ALIAS = re.compile("|".join(sorted(ALIASES, key=len, reverse=True)))


def check_description(row: Row, answer: httpx.Response, description: dict[str, Any]) -> None:
    """Check a row's request and answer against the server's description.

    Raise `AssertionError`, or jsonschema's `ValidationError`, if the description does not allow them.
    """
    operation = _find_operation(row, description)
    if operation is None:
        assert answer.status_code >= 400 or row.method == "OPTIONS" or row.path.startswith("/docs/")
        return
    assert str(answer.status_code) in operation["responses"], f"{answer.status_code} is not described"
    response = operation["responses"][str(answer.status_code)]
    names = {name.lower() for name in response["headers"]}
    assert {name for name in answer.headers if name.startswith("x-")} <= names
    content_type = answer.headers["content-type"].partition(";")[0]
    assert content_type in response["content"], content_type
    if content_type == "application/json":
        _validate(answer.json(), response["content"][content_type]["schema"], description)
    # With error_policy, an answer may have the status 200 although inputs are invalid.
    if answer.status_code < 300 and isinstance(row.body, dict) and row.body.get("error_policy") != "per_item":
        _validate(row.body, operation["requestBody"]["content"]["application/json"]["schema"], description)


def _find_operation(row: Row, description: dict[str, Any]) -> dict[str, Any] | None:
    """Return the description of a path's method, if any; the longest template if several match the path.

    A slash at the end of a path is ignored, as by the server.
    """
    if row.path.startswith("/docs/"):
        return None
    path, paths = row.path.partition("?")[0].rstrip("/") or "/", description["paths"]
    path = ALIAS.sub(PREFIX, path)
    templates = [template for template in paths if re.fullmatch(re.sub(r"\\{\w+\\}", ".+", re.escape(template)), path)]
    return paths[max(templates, key=len)].get(row.method.lower()) if templates else None


def _validate(value: Any, schema: dict[str, Any], description: dict[str, Any]) -> None:
    # The validator resolves references within the schema that it is given.
    OAS31Validator({"components": description["components"], **schema}).validate(value)
