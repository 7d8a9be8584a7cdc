"""Files and batches in OpenAI's API: parsing of requests, and their errors. Pure."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta, Struct

from broker.wire.errors import quote
from frontend.api.errors import ApiError
from frontend.api.file_answers import Purpose
from frontend.api.inputs import parse_object

#: Purposes of an upload.
PURPOSES = tuple(purpose for purpose in get_args(Purpose) if purpose != "batch_output")
#: Endpoints whose requests a batch may have.
ENDPOINTS = ("/v1/embeddings",)
#: Seconds until a file expires that a request may ask for, and until an input of a batch expires by default.
MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 30 * 86400
#: Longest page of files and of batches, and the default of each.
MAX_FILES, MAX_BATCHES, DEFAULT_BATCHES = 10_000, 100, 20
#: Limits on a batch's metadata: pairs, and characters of a key and a value.
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512
#: Longest name of a file, in characters.
MAX_FILENAME = 255

_ID = re.compile(r"(file-|batch_)[0-9a-f]{32}")
_WINDOW = re.compile(r"([1-9][0-9]{0,2})([hd])")
_RANGE = re.compile(r"bytes[ \t]*=[ \t]*(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})[ \t]*", re.IGNORECASE)
#: Characters that a file's name loses: control characters and lone surrogates.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=MAX_KEY)], Annotated[str, Meta(max_length=MAX_VALUE)]],
    Meta(max_length=MAX_PAIRS, description=f"At most {MAX_PAIRS} pairs for the client's own use"),
]


class ExpiresAfter(Struct, frozen=True):
    """Time at which a file expires."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)]


class BatchRequest(Struct, frozen=True, kw_only=True):
    """Body of POST /v1/batches."""

    input_file_id: Annotated[str, Meta(description="Id of an uploaded file with the purpose batch")]
    endpoint: Annotated[Literal["/v1/embeddings"], Meta(description="Path that all requests of the file have")]
    completion_window: Annotated[
        str, Meta(description="Time after which the batch expires: 24h, or other hours or days, at most 30d")
    ]
    metadata: _Metadata | None = None
    output_expires_after: Annotated[
        ExpiresAfter | None, Meta(description="When the output files expire; by default never")
    ] = None


class Page(NamedTuple):
    """Page that a client asks for."""

    #: Id of the last object of the previous page; empty for the first page.
    after: str
    limit: int
    ascending: bool = False
    purpose: str = ""


class Upload(NamedTuple):
    """Fields of the form of POST /v1/files."""

    purpose: Purpose
    filename: str
    #: Seconds; None: never.
    expires_after_s: int | None


def parse_upload(fields: Mapping[str, str], filename: str) -> Upload:
    """Return the fields of an upload. Raise `ApiError` 400 if they are invalid."""
    purpose = fields.get("purpose", "")
    if purpose not in PURPOSES:
        fault = f"purpose is {quote(purpose)}" if purpose else "purpose is missing"
        raise _refuse(f"{fault}; send it as a field of the form, as one of: {', '.join(PURPOSES)}", "purpose")
    if purpose == "batch" and not filename.lower().endswith(".jsonl"):
        text = f"Invalid file format for Batch API. Must be .jsonl; the file is named {quote(filename)}, rename it"
        raise _refuse(text, "file")
    expires_after_s = MAX_EXPIRY_S if purpose == "batch" else None
    given = {
        name: fields[f"expires_after[{name}]"] for name in ("anchor", "seconds") if f"expires_after[{name}]" in fields
    }
    if given:
        expires_after_s = _convert_expiry(given, "expires_after")
    return Upload(purpose, filename, expires_after_s)  # type: ignore[arg-type]


def clean_filename(name: str) -> str:
    """Return a client's name of a file without folders and control characters, and not too long."""
    name = _UNSAFE.sub("", name.replace("\\", "/").rpartition("/")[2])
    stem, dot, suffix = name.rpartition(".")
    if len(name) > MAX_FILENAME:
        # A long name keeps its suffix, by which inputs of batches are recognized.
        name = f"{stem[: MAX_FILENAME - len(suffix) - 1]}.{suffix}" if dot and len(suffix) < 16 else name[:MAX_FILENAME]
    return name or "file"


def parse_batch(body: bytes) -> BatchRequest:
    """Parse the body of POST /v1/batches. Raise `ApiError` 400 if it is invalid."""
    fields, _ = parse_object(body)
    for name in ("input_file_id", "endpoint", "completion_window"):
        if name not in fields:
            raise _refuse(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
        if not isinstance(fields[name], str):
            raise _refuse(f"{name} must be a string", name)
    if fields["endpoint"] not in ENDPOINTS:
        values = ", ".join(f"'{endpoint}'" for endpoint in ENDPOINTS)
        raise _refuse(f"Invalid value: {quote(fields['endpoint'])}. Supported values are: {values}.", "endpoint")
    parse_window_s(fields["completion_window"])
    expiry = fields.get("output_expires_after")
    if expiry is not None:
        expiry = ExpiresAfter("created_at", _convert_expiry(expiry, "output_expires_after"))
    return BatchRequest(
        input_file_id=fields["input_file_id"],
        endpoint=fields["endpoint"],
        completion_window=fields["completion_window"],
        metadata=_check_metadata(fields.get("metadata")),
        output_expires_after=expiry,
    )


def parse_window_s(text: str) -> int:
    """Return the seconds of a completion window, such as 24h. Raise `ApiError` 400 if it is invalid."""
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * {"h": 3600, "d": 86400}[match[2]] if match else 0
    if not 0 < seconds <= MAX_EXPIRY_S:
        text = f"Invalid value: {quote(text)}. Send '24h', or other hours or days, at most '30d'."
        raise _refuse(text, "completion_window")
    return seconds


def _convert_expiry(value: Any, name: str) -> int:
    """Return the seconds of an `ExpiresAfter`, which may be text. Raise `ApiError` 400 if it is invalid."""
    try:
        return msgspec.convert(value, ExpiresAfter, strict=False).seconds
    except msgspec.ValidationError:
        text = f'{name} must have "anchor": "created_at", and seconds from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}'
        raise _refuse(text, name) from None


def _check_metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    limits = f"at most {MAX_PAIRS} pairs of strings, with keys of {MAX_KEY} and values of {MAX_VALUE} characters"
    try:
        return msgspec.convert(value, _Metadata)
    except msgspec.ValidationError:
        raise _refuse(f"metadata must be an object of {limits}", "metadata") from None


def parse_page(query: Mapping[str, str], max_limit: int, default_limit: int) -> Page:
    """Return the page that a query asks for. Raise `ApiError` 400 if it is invalid."""
    limit, after, order, purpose = (query.get(name, "") for name in ("limit", "after", "order", "purpose"))
    if limit and not (limit.isascii() and limit.isdigit() and len(limit) < 10 and 1 <= int(limit) <= max_limit):
        raise _refuse(f"limit is {quote(limit)}, but must be an integer from 1 to {max_limit}", "limit")
    if after and not is_id(after):
        raise _refuse(f"after is {quote(after)}, but must be the id of an object", "after")
    if order not in ("", "asc", "desc"):
        raise _refuse(f"order is {quote(order)}, but must be asc or desc", "order")
    if purpose and purpose not in get_args(Purpose):
        raise _refuse(f"purpose is {quote(purpose)}, but must be one of: {', '.join(get_args(Purpose))}", "purpose")
    return Page(after, int(limit or default_limit), order == "asc", purpose)


def is_id(text: str) -> bool:
    """Return whether a text has the form of a file's or a batch's id."""
    return _ID.fullmatch(text) is not None


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the end of a range of a file, or None for the whole file (RFC 9110, section 14.2).

    Several ranges, and ranges that are invalid, are ignored. Raise `ApiError` 416 if the file has no byte of the range.
    """
    match = _RANGE.fullmatch(header)
    if match is None or match["first"] == match["last"] == "":
        return None
    first, last = match["first"], match["last"]
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < begin:
            return None
    if begin >= end:
        text = f"the file has no byte of the range {quote(header)}; its size is {size}"
        headers = {"Content-Range": f"bytes */{size}"}
        raise ApiError(416, text, param="Range", code="range_not_satisfiable", headers=headers)
    return begin, end


def matches_tag(header: str, tag: str) -> bool:
    """Return whether a list of entity tags, as in If-None-Match, has this tag or is `*`."""
    tags = [other.strip().removeprefix("W/") for other in header.split(",")]
    return tag in tags or tags == ["*"]


# --- errors ----------------------------------------------------------------------------------------------------------


def unknown_file(file_id: str, param: str = "id") -> ApiError:
    """Return OpenAI's error for a file that the client does not have."""
    return ApiError(404, f"No such File object: {file_id[:100]}", param=param)


def unknown_batch(batch_id: str) -> ApiError:
    """Return OpenAI's error for a batch that the client does not have."""
    return ApiError(404, f"No batch found with id {quote(batch_id)}.", param="batch_id", code="batch_not_found")


def too_large_file(max_bytes: int) -> ApiError:
    """Return the error for a file of more than `max_bytes`."""
    text = f"the file is larger than {max_bytes} bytes; split it over several files"
    return ApiError(413, text, param="file", code="file_too_large")


def too_many_bytes(max_bytes: int) -> ApiError:
    """Return the error for a file that its owner has no room for."""
    text = f"the files of this key would have more than {max_bytes} bytes; delete some of them first"
    return ApiError(413, text, param="file", code="storage_limit_exceeded")


def too_many_batches(max_open: int) -> ApiError:
    """Return the error for a batch whose owner has as many open batches as allowed."""
    text = f"this key has {max_open} batches that have not ended; send this one again when one of them has"
    return ApiError(429, text, kind="rate_limit_error", code="too_many_batches", retry_after_s=60)


def files_disabled(path: str) -> ApiError:
    """Return the error of all paths of files and batches on a server without `--data`."""
    text = f"Invalid request URL: there is no {path[:100]}, because this server stores no files; start it with --data"
    return ApiError(404, text, code="unknown_url")


def _refuse(text: str, param: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, text, param=param, code=code)
