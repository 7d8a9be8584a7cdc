"""Parsing of a request's JSON body, and of the forms that inputs may have. Pure. Error texts use OVMS's wording."""

from typing import Any

import msgspec
import numpy as np

from frontend.api.errors import ApiError

#: OVMS's limit on nested arrays and objects.
MAX_DEPTH = 100
#: Most arrays, objects and fields in a body: above the largest `--max-inputs`, and about 0.1 s of parsing.
MAX_PARTS = 100_000

# Numbers with a fraction stay text, as bytes, which no field accepts: converting one to a float can take 10 µs.
_decode = msgspec.json.Decoder(float_hook=str.encode).decode

#: An input is a text, or the token ids of one document. Elements of a list are all of one kind.
Inputs = list[str | list[int]]


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object and drop fields that are null.

    Raise `ApiError` 400 if the body is not a JSON object.
    """
    _check_structure(body)
    try:
        fields = _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ApiError(400, f"The file is not valid json - Cannot parse JSON body: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "JSON body must be an object")
    return {name: value for name, value in fields.items() if value is not None}


def _check_structure(body: bytes) -> None:
    """Reject a body of too many or too deeply nested parts before it is decoded.

    Decoding two million parts in 8 MB took seconds, during which no other request was served. The time of this check
    depends on the body's length alone. Raise `ApiError` 400.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH and body.count(b":") <= MAX_PARTS - MAX_DEPTH:
        return
    # Once escaped backslashes and quotes are removed, every other quote begins a string.
    text = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    outside = ~np.bitwise_xor.accumulate(text == ord('"'))
    begins = outside & ((text == ord("[")) | (text == ord("{")))
    ends = outside & ((text == ord("]")) | (text == ord("}")))
    if np.count_nonzero(begins) + np.count_nonzero(outside & (text == ord(":"))) > MAX_PARTS:
        raise ApiError(400, f"JSON body has more than {MAX_PARTS} arrays, objects and fields")
    steps = begins.astype(np.int8) - ends
    if np.cumsum(steps[steps != 0], dtype=np.int32).max(initial=0) > MAX_DEPTH:
        raise ApiError(400, "JSON body exceeds maximum nesting depth")


def read_string(fields: dict[str, Any], name: str) -> str | None:
    """Return an optional string field. Raise `ApiError` 400 if the field has another type."""
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise ApiError(400, f"{name} should be string", param=name)


def read_boolean(fields: dict[str, Any], name: str) -> bool | None:
    """Return an optional boolean field. Raise `ApiError` 400 if the field has another type."""
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise ApiError(400, f"{name} should be boolean", param=name)


def read_model_name(fields: dict[str, Any]) -> str:
    """Return the field `model`. Raise `ApiError` 400 if it is missing or is not a string."""
    if "model" not in fields:
        raise ApiError(400, "model field is missing in JSON body", param="model")
    if not isinstance(fields["model"], str):
        raise ApiError(400, "model field is not a string", param="model")
    return fields["model"]


def read_inputs(fields: dict[str, Any], name: str, max_inputs: int) -> Inputs:
    """Return the inputs in a field, between one and `max_inputs`. Raise `ApiError` 400 for any other form.

    Inner arrays may be empty: `build_submission` handles them, because it depends on `error_policy` what they fail.
    """
    value = fields.get(name)
    match value:
        case None:
            raise ApiError(400, f"{name} field is required", param=name)
        case str():
            return [value]
        case []:
            raise ApiError(400, f"{name} array should not be empty", param=name)
        case list():
            inputs = _read_array(value, name, max_inputs)
        case _:
            raise ApiError(400, f"{name} should be string, array of strings or array of integers", param=name)
    return inputs


def _read_array(values: list[Any], name: str, max_inputs: int) -> Inputs:
    types = set(map(type, values))
    if len(values) > max_inputs and int not in types:
        raise ApiError(400, f"{name} array has {len(values)} elements, at most {max_inputs} are allowed", param=name)
    if types == {str}:
        return values
    if types == {int}:
        return [values]
    if not types <= {str, int, list}:
        raise ApiError(400, f"every element in {name} array should be either string or int", param=name)
    if types != {list}:
        raise ApiError(400, f"{name} must be homogeneous", param=name)
    inner_types = [set(map(type, value)) for value in values]
    if any(not each <= {str, int} for each in inner_types):
        raise ApiError(400, f"every element in {name} array should be either string or int", param=name)
    if len(set().union(*inner_types)) > 1:
        raise ApiError(400, f"{name} must be homogeneous", param=name)
    if any(str in each for each in inner_types):
        text = f"{name} must be either array of strings or array of array of integers"
        raise ApiError(400, text, param=name)
    return values
