"""Parsing of a request's JSON body, and of the forms that inputs may have. Pure. Error texts use OVMS's wording."""

import codecs
import re
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import numpy as np

from frontend.api.errors import ApiError, describe_served

#: OVMS's limit on nested arrays and objects.
MAX_DEPTH = 100
#: Most arrays, objects and fields in a body: above the largest `--max-inputs`, and about 0.1 s of parsing.
MAX_PARTS = 100_000

#: Fields of required content, in which an empty string is a value. Elsewhere it counts as absent.
_CONTENT = ("model", "input", "text")
#: Names that other servers have for the field with the inputs.
_OTHER_NAMES = ("input", "inputs", "text", "texts", "prompt", "content", "documents", "query")
_TYPE_NAMES = {str: "a string", int: "an integer", list: "an array", dict: "an object", bool: "a boolean"}
#: Half of a character above U+FFFF, as JavaScript escapes it after it has cut a text between the halves.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)

# Numbers with a fraction stay text, as bytes, which no field accepts: converting one to a float can take 10 µs.
_decode = msgspec.json.Decoder(float_hook=str.encode).decode

#: An input is a text, or the token ids of one document. Elements of a list are all of one kind.
Inputs = list[str | list[int]]


def parse_object(body: bytes) -> tuple[dict[str, Any], str]:
    """Parse a JSON object, and drop fields that are null, and optional fields that are an empty string.

    Return the fields, and a warning if lone surrogates were replaced. Raise `ApiError` 400 if the body is not a JSON
    object.
    """
    body, warning = body.removeprefix(codecs.BOM_UTF8), ""
    _check_structure(body)
    try:
        try:
            fields = _decode(body)
        except (msgspec.MsgspecError, ValueError):
            body, count = replace_lone_surrogates(body)
            if not count:
                raise
            fields, warning = _decode(body), f"lone surrogates (halves of characters) were replaced by U+FFFD: {count}"
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = _explain_invalid(body) or str(error)
        raise ApiError(400, f"The file is not valid json - Cannot parse JSON body: {reason}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "JSON body must be an object")
    present = {name: value for name, value in fields.items() if value is not None and (value != "" or name in _CONTENT)}
    return present, warning


def _explain_invalid(body: bytes) -> str:
    """Return why an invalid body is not JSON, if the parser's own reason would be misleading."""
    if not body.strip():
        return "it is empty; send a JSON object"
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} is not UTF-8; encode the body as UTF-8"
    return ""


def replace_lone_surrogates(body: bytes) -> tuple[bytes, int]:
    """Return the body with U+FFFD in the place of lone surrogates, and their number."""
    # Once escaped backslashes are escaped by number, every other backslash begins an escape.
    return _LONE_SURROGATE.subn(rb"\\ufffd", body.replace(b"\\\\", rb"\u005c"))


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


def read_model_name(fields: dict[str, Any], served: Collection[str]) -> str:
    """Return the field `model`. Raise `ApiError` 400, which lists `served`, if it is missing or is not a string."""
    if "model" not in fields:
        raise ApiError(400, f"model field is missing in JSON body{describe_served(served)}", param="model")
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
            found = next((other for other in _OTHER_NAMES if other in fields), None)
            hint = f'; the body has "{found}" instead, rename it to "{name}"' if found else ""
            raise ApiError(400, f"{name} field is required{hint}", param=name)
        case str():
            return [value]
        case []:
            raise ApiError(400, f"{name} array should not be empty", param=name)
        case list():
            inputs = _read_array(value, name, max_inputs)
        case _:
            text = f"{name} should be string, array of strings or array of integers; it is {_describe_type(value)}"
            # OVMS's words, which are those of embeddings, although only texts can be tokenized.
            hint = "; send a text or texts, not token ids" if name == "text" else ""
            raise ApiError(400, text + hint, param=name)
    return inputs


def _read_array(values: list[Any], name: str, max_inputs: int) -> Inputs:
    types = set(map(type, values))
    if len(values) > max_inputs and int not in types:
        raise ApiError(400, f"{name} array has {len(values)} elements, at most {max_inputs} are allowed", param=name)
    if types == {str}:
        return values
    if types == {int}:
        return [values]
    _check_types(values, types, {str, int, list}, name)
    if types != {list}:
        raise ApiError(400, f"{name} must be homogeneous;{_describe_mix(values, 'element')}", param=name)
    inner_types = [set(map(type, value)) for value in values]
    for position, (value, each) in enumerate(zip(values, inner_types, strict=True)):
        _check_types(value, each, {str, int}, name, f"input {position}, token")
        if len(each) > 1:
            text = f"{name} must be homogeneous; in input {position},{_describe_mix(value, 'token')}"
            raise ApiError(400, text, param=name)
    if len(set().union(*inner_types)) > 1:
        text = f"{name} must be homogeneous; some inner arrays have strings and others have integers"
        raise ApiError(400, text, param=name)
    if any(str in each for each in inner_types):
        text = f"{name} must be either array of strings or array of array of integers"
        raise ApiError(400, text, param=name)
    return values


def _check_types(
    values: Sequence[Any], types: set[type], allowed: set[type], name: str, place: str = "element"
) -> None:
    """Raise `ApiError` 400 if `types`, those of the values, are not all allowed. `place` names what a value is."""
    if not types <= allowed:
        position, odd = next((position, value) for position, value in enumerate(values) if type(value) not in allowed)
        text = f"every element in {name} array should be either string or int; {place} {position} is"
        raise ApiError(400, f"{text} {_describe_type(odd)}", param=name)


def _describe_mix(values: Sequence[Any], place: str) -> str:
    """Return where a list of several types first has another type than at its start."""
    position = next(position for position, value in enumerate(values) if type(value) is not type(values[0]))
    return f" {place} 0 is {_describe_type(values[0])} and {place} {position} is {_describe_type(values[position])}"


def _describe_type(value: Any) -> str:
    return "null" if value is None else _TYPE_NAMES.get(type(value), "a number with a fraction")
