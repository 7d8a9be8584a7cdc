"""The JSON of a request's body, and the forms that its inputs may have. Pure. Messages use OVMS's wording."""

from typing import Any

import msgspec

from frontend.errors import ApiError

#: OVMS's.
MAX_DEPTH = 100

#: One entry for each document: a text, or token ids.
Texts = list[str]
TokenArrays = list[list[int]]


def parse_object(body: bytes) -> dict[str, Any]:
    """A body as JSON object, without the fields that are null; ApiError 400 when it is none."""
    try:
        fields = msgspec.json.decode(body)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise ApiError(400, f"The file is not valid json - Cannot parse JSON body: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "JSON body must be an object")
    _check_depth(fields)
    return {name: value for name, value in fields.items() if value is not None}


def _check_depth(fields: dict[str, Any]) -> None:
    level: list[Any] = [fields]
    for _ in range(MAX_DEPTH):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ApiError:
    return ApiError(400, "JSON body exceeds maximum nesting depth")


def string(fields: dict[str, Any], name: str) -> str | None:
    """An optional string field; ApiError 400 when it is something else."""
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise ApiError(400, f"{name} should be string", param=name)


def boolean(fields: dict[str, Any], name: str) -> bool | None:
    """An optional boolean field; ApiError 400 when it is something else."""
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise ApiError(400, f"{name} should be boolean", param=name)


def model_name(fields: dict[str, Any]) -> str:
    """The field `model`; ApiError 400 without it."""
    if "model" not in fields:
        raise ApiError(400, "model field is missing in JSON body", param="model")
    if not isinstance(fields["model"], str):
        raise ApiError(400, "model field is not a string", param="model")
    return fields["model"]


def documents(fields: dict[str, Any], name: str, most: int) -> Texts | TokenArrays:
    """The documents of a field, at least one and at most `most`; ApiError 400 for every other form. Inner arrays may
    be empty: that is for whoever knows whether one bad document spoils the others."""
    value = fields.get(name)
    match value:
        case None:
            raise ApiError(400, f"{name} field is required", param=name)
        case str():
            return [value]
        case []:
            raise ApiError(400, f"{name} array should not be empty", param=name)
        case list():
            found = _array(value, name)
        case _:
            raise ApiError(400, f"{name} should be string, array of strings or array of integers", param=name)
    if len(found) > most:
        raise ApiError(400, f"{name} array has {len(found)} elements, at most {most} are allowed", param=name)
    return found


def _array(values: list[Any], name: str) -> Texts | TokenArrays:
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return values
    if kinds == {int}:
        return [values]
    if not kinds <= {str, int, list}:
        raise ApiError(400, f"every element in {name} array should be either string or int", param=name)
    if kinds != {list}:
        raise ApiError(400, f"{name} must be homogeneous", param=name)
    inner = [{type(one) for one in value} for value in values]
    if any(not each <= {str, int} for each in inner):
        raise ApiError(400, f"every element in {name} array should be either string or int", param=name)
    if len(set().union(*inner)) > 1:
        raise ApiError(400, f"{name} must be homogeneous", param=name)
    if any(str in each for each in inner):
        text = f"{name} must be either array of strings or array of array of integers"
        raise ApiError(400, text, param=name)
    return values
