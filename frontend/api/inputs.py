"""The JSON of a request's body, and the forms that its inputs may have. Pure. Messages use OVMS's wording."""

from typing import Any

import msgspec
import numpy as np

from frontend.api.errors import ApiError

#: OVMS's.
MAX_DEPTH = 100
#: Above the most inputs that a request may be configured to have, and a tenth of a second's work.
MAX_PARTS = 100_000

#: No field takes a fraction, and reading one can take 10 µs: it stays the text that it is, as bytes, which no field
#: takes either.
_decode = msgspec.json.Decoder(float_hook=str.encode).decode

#: One entry for each document: a text, or token ids.
Texts = list[str]
TokenArrays = list[list[int]]


def parse_object(body: bytes) -> dict[str, Any]:
    """A body as JSON object, without the fields that are null; ApiError 400 when it is none."""
    _check_structure(body)
    try:
        fields = _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ApiError(400, f"The file is not valid json - Cannot parse JSON body: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "JSON body must be an object")
    return {name: value for name, value in fields.items() if value is not None}


def _check_structure(body: bytes) -> None:
    """Refuse a body of too many arrays, objects and fields, or too deep ones, before any of them is made: two million
    in 8 MB took seconds, in which no other request was served. Its own time depends on the body's length alone."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH and body.count(b":") <= MAX_PARTS - MAX_DEPTH:
        return
    # Without escaped backslashes and quotes, every other quote begins a string; one without an end goes to the end.
    text = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    outside = ~np.bitwise_xor.accumulate(text == ord('"'))
    begins = outside & ((text == ord("[")) | (text == ord("{")))
    ends = outside & ((text == ord("]")) | (text == ord("}")))
    if np.count_nonzero(begins) + np.count_nonzero(outside & (text == ord(":"))) > MAX_PARTS:
        raise ApiError(400, f"JSON body has more than {MAX_PARTS} arrays, objects and fields")
    steps = begins.astype(np.int8) - ends
    if np.cumsum(steps[steps != 0], dtype=np.int32).max(initial=0) > MAX_DEPTH:
        raise ApiError(400, "JSON body exceeds maximum nesting depth")


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
            found = _array(value, name, most)
        case _:
            raise ApiError(400, f"{name} should be string, array of strings or array of integers", param=name)
    return found


def _array(values: list[Any], name: str, most: int) -> Texts | TokenArrays:
    kinds = set(map(type, values))
    if len(values) > most and int not in kinds:
        raise ApiError(400, f"{name} array has {len(values)} elements, at most {most} are allowed", param=name)
    if kinds == {str}:
        return values
    if kinds == {int}:
        return [values]
    if not kinds <= {str, int, list}:
        raise ApiError(400, f"every element in {name} array should be either string or int", param=name)
    if kinds != {list}:
        raise ApiError(400, f"{name} must be homogeneous", param=name)
    inner = [set(map(type, value)) for value in values]
    if any(not each <= {str, int} for each in inner):
        raise ApiError(400, f"every element in {name} array should be either string or int", param=name)
    if len(set().union(*inner)) > 1:
        raise ApiError(400, f"{name} must be homogeneous", param=name)
    if any(str in each for each in inner):
        text = f"{name} must be either array of strings or array of array of integers"
        raise ApiError(400, text, param=name)
    return values
