"""Forms of multipart/form-data that arrive in pieces."""

import pytest

from frontend.api.errors import ApiError
from frontend.rest.multipart import MAX_PARTS, FormReader, PartBegin, PartData

TYPE = "multipart/form-data; boundary=b"


def part(content: str, disposition: str) -> str:
    return f"--b\r\nContent-Disposition: {disposition}\r\nContent-Type: x/y\r\n\r\n{content}\r\n"


def parse(body: str, size: int = 10_000) -> list[tuple[str, str | None, bytes]]:
    """Return name, filename and content of each part of a form that arrives in pieces of `size` bytes."""
    reader, parts = FormReader(TYPE), []
    content = body.encode()
    for begin in range(0, len(content), size):
        for event in reader.feed(content[begin : begin + size]):
            if isinstance(event, PartBegin):
                parts.append((event.name, event.filename, b""))
            else:
                name, filename, before = parts[-1]
                parts[-1] = (name, filename, before + event.content)
    reader.finish()
    return parts


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_parts_are_parsed_in_order(size: int) -> None:
    text = 'lines\r\n--b\nwith "--b" inside\r\n\r\n'
    body = part(text, 'form-data; name="file"; filename="ü \\"1\\".jsonl"') + part("batch", "form-data; name=purpose")
    assert parse(body + "--b--\r\n", size) == [
        ("file", 'ü "1".jsonl', text.encode()),
        ("purpose", None, b"batch"),
    ]


def test_empty_parts_have_no_content() -> None:
    assert parse(part("", 'form-data; name="file"; filename=""') + "--b--") == [("file", "", b"")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "^the form has no end"),
        (part("x", "form-data; name=file"), "^the form has no end"),
        ("no form", "^the form cannot be parsed"),
        ("--other\r\n", "^the form cannot be parsed"),
        (part("x", "form-data") + "--b--", "^a part of the form has no name"),
        (part("x", "attachment; name=file") + "--b--", "^a part of the form has no name"),
        ("--b\r\n\r\nx\r\n--b--", "^a part of the form has no name"),
        (part("x", "form-data; name=" + "y" * 10_000) + "--b--", "^the form cannot be parsed"),
        (part("x", "form-data; name=y") * (MAX_PARTS + 1) + "--b--", "^the form has more than 100 parts"),
    ],
)
def test_invalid_form_is_refused(body: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as raised:
        parse(body)
    assert (raised.value.status, raised.value.code) == (400, "invalid_form")


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "text/x; boundary=b"],
)
def test_other_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(ApiError, match=r"^the body is not a form; send multipart/form-data with a boundary$"):
        FormReader(content_type)


def test_long_boundary_is_refused() -> None:
    with pytest.raises(ApiError, match="boundary of the form is too long"):
        FormReader("multipart/form-data; boundary=" + "b" * 1000)


def test_content_after_the_form_is_ignored() -> None:
    reader = FormReader(TYPE)
    events = reader.feed((part("x", "form-data; name=file") + "--b--\r\nmore").encode())
    reader.finish()
    assert events == [PartBegin("file", None), PartData(b"x")]
