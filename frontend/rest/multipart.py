"""Forms of multipart/form-data, parsed as they arrive (RFC 7578)."""

from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from frontend.api.errors import ApiError

#: Most parts of a form.
MAX_PARTS = 100


class PartBegin(NamedTuple):
    """Begin of a part."""

    name: str
    #: None if the part is a field.
    filename: str | None


class PartData(NamedTuple):
    """Bytes of the part that has begun."""

    content: bytes


class FormReader:
    """Parser of one form. Errors are `ApiError` 400."""

    def __init__(self, content_type: str) -> None:
        """`content_type` is the header of the request, which has the boundary."""
        kind, parameters = parse_options_header(content_type)
        boundary = parameters.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise _refuse("the body is not a form; send multipart/form-data with a boundary")
        self._events: list[PartBegin | PartData] = []
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = b"", b""
        self._parts = 0
        self._complete = False
        callbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        except FormParserError:
            raise _refuse("the boundary of the form is too long") from None

    def feed(self, content: bytes) -> list[PartBegin | PartData]:
        """Parse more bytes of the body, and return what they contain."""
        try:
            self._parser.write(content)
        except FormParserError:
            raise _refuse("the form cannot be parsed; send multipart/form-data as RFC 7578 defines it") from None
        events, self._events = self._events, []
        return events

    def finish(self) -> None:
        """Raise `ApiError` if the end of the form is missing."""
        if not self._complete:
            raise _refuse("the form has no end; send the boundary with -- behind it after the last part")

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _refuse(f"the form has more than {MAX_PARTS} parts")
        self._headers = {}

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _end_headers(self) -> None:
        kind, parameters = parse_options_header(self._headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in parameters:
            raise _refuse("a part of the form has no name; send Content-Disposition: form-data with a name")
        name, filename = parameters[b"name"], parameters.get(b"filename")
        self._events.append(PartBegin(_decode(name), None if filename is None else _decode(filename)))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartData(data[start:end]))

    def _end(self) -> None:
        self._complete = True


def _decode(text: bytes) -> str:
    return text.decode(errors="replace")


def _refuse(text: str) -> ApiError:
    return ApiError(400, text, code="invalid_form")
