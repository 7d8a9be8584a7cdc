"""Whether the API's description (frontend/api/openapi.py) and what a server takes and answers agree."""

import re
from typing import Any

import httpx
from openapi_schema_validator import OAS31Validator

from frontend.api.openapi import specification
from tests.acceptance.contract.row import Row

SPECIFICATION = specification()


def agree(row: Row, answer: httpx.Response) -> None:
    """AssertionError, or jsonschema's ValidationError, says what the description does not allow."""
    operation = _operation(row)
    if operation is None:
        assert answer.status_code >= 400 or row.method == "OPTIONS"
        return
    assert str(answer.status_code) in operation["responses"], f"{answer.status_code} is not described"
    described = operation["responses"][str(answer.status_code)]
    names = {name.lower() for name in described["headers"]}
    assert {name for name in answer.headers if name.startswith("x-")} <= names
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in described["content"], kind
    if kind == "application/json":
        _validate(answer.json(), described["content"][kind]["schema"])
    # With error_policy an answer of 200 may be one about inputs that are none.
    if answer.status_code < 300 and isinstance(row.body, dict) and row.body.get("error_policy") != "per_item":
        _validate(row.body, operation["requestBody"]["content"]["application/json"]["schema"])


def _operation(row: Row) -> dict[str, Any] | None:
    """The description of a path's method, if it has one; of a path that fits two templates the narrower."""
    path = row.path.partition("?")[0]
    fitting = [one for one in SPECIFICATION["paths"] if re.fullmatch(re.sub(r"\\{name\\}", ".+", re.escape(one)), path)]
    operation: dict[str, Any] | None
    operation = SPECIFICATION["paths"][max(fitting, key=len)].get(row.method.lower()) if fitting else None
    return operation


def _validate(value: Any, schema: dict[str, Any]) -> None:
    # References are looked up in the schema that they stand in.
    OAS31Validator({"components": SPECIFICATION["components"], **schema}).validate(value)
