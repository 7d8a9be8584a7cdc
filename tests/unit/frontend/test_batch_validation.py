"""Validation of a batch's input file."""

import json

import pytest

from frontend.batches.lines import InputLine
from frontend.batches.validation import MAX_ERRORS, Validator

from .test_batch_lines import ENDPOINT, line


def validate(*lines: bytes, max_inputs: int = 10) -> Validator:
    validator = Validator(ENDPOINT, max_inputs, 1000)
    for number, content in enumerate(lines, 1):
        if validator.complete:
            break
        validator.add_line(InputLine(number, 0, content, len(content)))
    validator.finish()
    return validator


def codes(validator: Validator) -> list[tuple[str, int | None]]:
    return [(error.code, error.line) for error in validator.errors]


def test_valid_file_has_counts_and_models() -> None:
    found = validate(
        line(), line(custom_id="b", body={"model": "n", "input": ["x", "y"]}), line(custom_id="c", body={"input": "x"})
    )
    assert (found.errors, found.requests, found.inputs, found.models) == ([], 3, 4, {"m": 1, "n": 2})


def test_empty_file_is_an_error_without_line() -> None:
    assert codes(validate()) == [("empty_file", None)]


def test_errors_have_line_numbers() -> None:
    found = validate(line(), b"{", line(), line(custom_id="b", url="/v1/other"))
    assert codes(found) == [("invalid_json_line", 2), ("duplicate_custom_id", 3), ("url_mismatch", 4)]
    assert found.errors[1].message.startswith("an earlier line")
    assert found.errors[2].param == "url"


def test_too_long_line_is_an_error() -> None:
    validator = Validator(ENDPOINT, 10, 1000)
    validator.add_line(InputLine(1, 2000, None, 2000))
    assert codes(validator) == [("line_too_large", 1)]
    assert "2000 bytes" in validator.errors[0].message


def test_one_line_too_many_ends_the_check() -> None:
    found = validate(*(line(custom_id=str(number)) for number in range(20)), max_inputs=5)
    assert codes(found) == [("too_many_tasks", 6)]


def test_inputs_over_all_lines_are_limited() -> None:
    body = {"model": "m", "input": [[1], [2], [3]]}
    found = validate(*(line(custom_id=str(number), body=body) for number in range(3)), max_inputs=8)
    assert codes(found) == [("too_many_tasks", 3)]


def test_errors_stop_at_their_limit() -> None:
    assert len(validate(*[b"{"] * 200, max_inputs=500).errors) == MAX_ERRORS


@pytest.mark.parametrize("value", ["x", [1, 2], [], {}, None, 3])
def test_other_input_counts_as_one(value: object) -> None:
    assert validate(line(body={"model": "m", "input": value})).inputs == 1


def test_body_that_is_no_object_is_left_to_its_line() -> None:
    assert validate(line(body=json.loads("[]"))).errors == []


def test_many_models_are_forgotten() -> None:
    names = [line(custom_id=str(number), body={"model": str(number)}) for number in range(300)]
    assert len(validate(*names, max_inputs=500).models) == 100
