"""Lines of a batch's input and output."""

import json

import pytest

from frontend.api.errors import ApiError
from frontend.batches.lines import (
    LineError,
    make_request_id,
    parse_line,
    render_answer,
    render_error,
    render_unsent,
    strip_line,
)

ENDPOINT = "/v1/embeddings"


def line(**fields: object) -> bytes:
    known = {"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": {"model": "m", "input": "x"}}
    return json.dumps({name: value for name, value in (known | fields).items() if value != "absent"}).encode()


def test_body_is_kept_byte_for_byte() -> None:
    content = (
        b'{"body": {"input" :"\\u00e9 x",  "model":"m"}, "custom_id":"\\u00e9", "method":"POST","url":"/v1/embeddings"}'
    )
    assert parse_line(content, ENDPOINT) == ("é", b'{"input" :"\\u00e9 x",  "model":"m"}')


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (b"no json", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b'"text"', "invalid_json_line", None),
        (b"\x00", "invalid_json_line", None),
        (b'{"custom_id": "a\x00"}', "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None),
        (line() + line(), "invalid_json_line", None),
        (b'{"body":' + b"[" * 100_000, "invalid_json_line", None),
        (b'{"custom_id": 1e999}', "invalid_json_line", None),
        (line(custom_id="absent"), "missing_required_parameter", "custom_id"),
        (line(custom_id=1), "missing_required_parameter", "custom_id"),
        (line(custom_id=""), "missing_required_parameter", "custom_id"),
        (line(method="absent"), "missing_required_parameter", "method"),
        (line(url=None), "missing_required_parameter", "url"),
        (line(body="absent"), "missing_required_parameter", "body"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/chat/completions"), "url_mismatch", "url"),
    ],
)
def test_invalid_line_has_a_code(content: bytes, code: str, param: str | None) -> None:
    with pytest.raises(LineError) as raised:
        parse_line(content, ENDPOINT)
    assert (raised.value.code, raised.value.param) == (code, param)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (line(body={"input": "caf?"}).replace(b"?", b"\xe9"), "byte {} of the line is not UTF-8"),
        (line(custom_id="caf?").replace(b"?", b"\xe9"), "byte {} of the line is not UTF-8"),
        (line(body={"input": "\xe9?"}).replace(b"?", b"\xe9"), "byte {} of the line is not UTF-8"),
        (line().decode().encode("utf-16"), "byte 3 of the line is NUL"),
        (line().decode().encode("utf-16-le"), "byte 1 of the line is NUL"),
    ],
)
def test_line_of_another_encoding_is_explained(content: bytes, reason: str) -> None:
    with pytest.raises(LineError) as raised:
        parse_line(content, ENDPOINT)
    assert raised.value.code == "invalid_json_line"
    assert str(raised.value).startswith(reason.format(content.find(b"\xe9")))
    assert str(raised.value).endswith("save the file as UTF-8")


def test_lone_surrogates_are_replaced() -> None:
    content = line().replace(b'"x"', b'"\\ud800"')
    assert parse_line(content, ENDPOINT).body == b'{"model": "m", "input": "\\ufffd"}'


def test_windows_line_and_mark_are_stripped() -> None:
    assert strip_line(b"\xef\xbb\xbf{} \r", 1) == b"{}"
    assert strip_line(b"\t\r", 2) == b""
    assert strip_line(b"\xef\xbb\xbf{}", 2) == b"\xef\xbb\xbf{}"


def test_answer_holds_the_body_unchanged() -> None:
    request_id = make_request_id("batch_1", 7)
    text = render_answer(request_id, 'a"\n', 200, b'{"data": [1.0]}')
    assert b'"body":{"data": [1.0]}}' in text
    assert json.loads(text) == {
        "id": f"batch_req_{request_id}",
        "custom_id": 'a"\n',
        "response": {"status_code": 200, "request_id": request_id, "body": {"data": [1.0]}},
        "error": None,
    }
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1


def test_refused_request_has_its_error_object() -> None:
    found = json.loads(render_error("1", "a", ApiError(400, "too long", param="input", code="c")))
    assert found["error"] is None
    assert found["response"]["status_code"] == 400
    assert found["response"]["body"]["error"]["message"] == "too long"


def test_unsent_request_has_no_response() -> None:
    found = json.loads(render_unsent("1", "a", "batch_expired", "too late"))
    assert found["response"] is None
    assert found["error"] == {"code": "batch_expired", "message": "too late"}


def test_request_ids_are_stable_and_distinct() -> None:
    ids = {make_request_id(batch, number) for batch in ("b", "c") for number in range(100)}
    assert len(ids) == 200
    assert make_request_id("b", 1) == make_request_id("b", 1)
