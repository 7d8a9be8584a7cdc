"""Requests: parsing, and all checks that do not need the model."""

from typing import Literal

import msgspec
import pytest

from broker.wire.errors import ErrorCode
from broker.wire.protocol import Caching, Lane, Option
from frontend.api.errors import (
    MAX_MESSAGE_CHARACTERS,
    ApiError,
    from_failure,
    name_input,
    unknown_model,
    unknown_path,
)
from frontend.api.schemas import (
    TokenizeRequest,
    hash_client,
    list_credentials,
    parse_caching,
    parse_deadline_s,
    parse_embeddings,
    parse_lane,
    parse_tokenize,
)

BAD = [
    (b"", "Cannot parse JSON body: it is empty; send a JSON object"),
    (b" \n", "it is empty; send a JSON object"),
    (b"{", "Cannot parse JSON body"),
    (b'{"model": "m", "input": "\xff"}', "Cannot parse JSON body: byte 25 is not UTF-8; encode the body as UTF-8"),
    ('{"model": "m", "input": "é"}'.encode("latin-1"), "byte 25 is not UTF-8"),
    (
        b'{"model": "m", "input": "a", "truncate": "end", "truncation_direction": "Left"}',
        "is the other side; send only",
    ),
    (b'{"model": "m", "input": "a", "truncate": "start", "truncation_direction": "right"}', "is the other side"),
    (b'{"model": "m", "input": "\\ud800', "Cannot parse JSON body"),
    (b'\xff\xfe{"model": "m", "input": "a"}', "Cannot parse JSON body"),
    (b'{"a":' * 5000 + b"1" + b"}" * 5000, "JSON body exceeds maximum nesting depth"),
    (b"[1]", "JSON body must be an object"),
    (b'{"input": "a"}', "model field is missing in JSON body"),
    (b'{"model": 1, "input": "a"}', "model field is not a string"),
    (b'{"model": "m"}', "input field is required"),
    (b'{"model": "m", "input": null}', "input field is required"),
    (b'{"model": "m", "input": []}', "input array should not be empty"),
    (b'{"model": "m", "input": 1}', "input should be string, array of strings or array of integers"),
    (b'{"model": "m", "input": {"a": 1}}', "array of strings or array of integers; it is an object"),
    (b'{"model": "m", "input": ["a", 1]}', "homogeneous; element 0 is a string and element 1 is an integer"),
    (b'{"model": "m", "input": [[1], "a"]}', "input must be homogeneous"),
    (b'{"model": "m", "input": [1.5]}', "every element in input array should be either string or int"),
    (b'{"model": "m", "input": [true]}', "should be either string or int; element 0 is a boolean"),
    (b'{"model": "m", "input": ["a", "b", null]}', "should be either string or int; element 2 is null"),
    (b'{"model": "m", "input": ["a", {}]}', "should be either string or int; element 1 is an object"),
    (b'{"model": "m", "input": [[1], [2, 1e3]]}', "int; input 1, token 1 is a number with a fraction"),
    (b'{"model": "m", "input": [[1], [2, []]]}', "int; input 1, token 1 is an array"),
    (b'{"model": "m", "input": [["a"]]}', "input must be either array of strings or array of array of integers"),
    (b'{"model": "m", "input": [["a"], [1]]}', "input must be homogeneous; some inner arrays have strings"),
    (b'{"model": "m", "input": [["a", 1]]}', "homogeneous; in input 0, token 0 is a string and token 1 is an integer"),
    (b'{"model": "m", "input": [[1], [1.5]]}', "input 1, token 0 is a number with a fraction"),
    (b'{"model": "m", "input": [[1.5]]}', "every element in input array should be either string or int"),
    (b'{"model": "m", "input": [[[1]]]}', "every element in input array should be either string or int"),
    (b'{"model": "m", "input": "a", "x": ' + b"[" * 100 + b"]" * 100 + b"}", "JSON body exceeds maximum nesting depth"),
    (b'{"model": "m", "input": ' + b"[" * 101 + b"]" * 101 + b"}", "JSON body exceeds maximum nesting depth"),
    (b'{"model": "m", "input": [' + b"[]," * 100_000 + b"[]]}", "JSON body has more than 100000 arrays, objects"),
    (b'{"model": "m", "input": "a"' + b',"x":1' * 100_000 + b"}", "JSON body has more than 100000 arrays, objects"),
    (b'{"model": "m", "input": "a", "dimensions": 1.5}', "dimensions should be an integer"),
    (b'{"model": "m", "input": 1.5}', "input should be string, array of strings or array of integers"),
    (b'{"model": "m", "input": [1, 1e3]}', "every element in input array should be either string or int"),
    (b'{"model": 1.5, "input": "a"}', "model field is not a string"),
    (b'{"model": "m", "input": "a", "normalize": 0.5}', "normalize should be boolean"),
    (b'{"model": "m", "input": "a", "truncate": 0.5}', "truncate should be boolean or one of none, start, end"),
    (b'{"model": "m", "input": "a", "dimensions": 0}', "dimensions should be greater than 0"),
    (b'{"model": "m", "input": "a", "dimensions": true}', "dimensions should be an integer"),
    (b'{"model": "m", "input": "a", "truncate": "middle"}', "truncate should be boolean or one of none, start, end"),
    (b'{"model": "m", "input": "a", "truncate": 1}', "truncate should be boolean or one of none, start, end"),
    (b'{"model": "m", "input": "a", "truncate_prompt_tokens": 0}', "should be -1 or a number of tokens above 0"),
    (b'{"model": "m", "input": "a", "truncate_prompt_tokens": -2}', "should be -1 or a number of tokens above 0"),
    (b'{"model": "m", "input": "a", "truncate_prompt_tokens": true}', "should be -1 or a number of tokens above 0"),
    (b'{"model": "m", "input": "a", "truncation": "end"}', "truncation should be boolean"),
    (b'{"model": "m", "input": "a", "truncation_direction": "up"}', "truncation_direction should be left or right"),
    (b'{"model": "m", "input": "a", "truncate": "NONE", "truncation": true}', "contradict each other"),
    (b'{"model": "m", "input": "a", "truncate": "start", "truncation": false}', "contradict each other"),
    (b'{"model": "m", "inputs": "a"}', 'the body has "inputs" instead, rename it to "input"'),
    (b'{"model": "m", "prompt": ["a"]}', 'the body has "prompt" instead'),
    (b'{"model": "m", "content": "a"}', 'the body has "content" instead'),
    (b'{"model": "m", "text": "", "input": null}', 'the body has "text" instead'),
    (b'{"model": "m", "input": "a", "normalize": "yes"}', "normalize should be boolean"),
    (b'{"model": "m", "input": "a", "prompt_name": 1}', "prompt_name should be string"),
    (b'{"model": "m", "input": "a", "input_type": []}', "input_type should be string"),
    (b'{"model": "m", "input": "a", "input_type": "query", "prompt_name": "q"}', "exclude each other"),
    (b'{"model": "m", "input": "a", "error_policy": "skip"}', "error_policy should be fail or per_item"),
    (b'{"model": "m", "input": "a", "dimensions": "384"}', "dimensions should be an integer"),
    (b'{"model": "m", "input": "\xff"}', "Cannot parse JSON body"),
    (b'{"model": "m", "input": "a", "encoding_format": 1}', "encoding_format should be string"),
    (b'{"model": "m", "input": "a", "encoding_format": "hex"}', "encoding_format should either base64 or float"),
    (b'{"model": "m", "input": ["a", "b", "c", "d"]}', "input array has 4 elements, at most 3 are allowed"),
]


@pytest.mark.parametrize(("body", "message"), BAD, ids=range(len(BAD)))
def test_invalid_request_is_rejected_with_reason(body: bytes, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_embeddings(body, max_inputs=3)
    assert caught.value.status == 400
    assert message in str(caught.value)
    assert set(msgspec.json.decode(caught.value.body())["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("value", "inputs"),
    [
        ("text", ["text"]),
        ("", [""]),
        ("null\0inside", ["null\0inside"]),
        (["a", "é"], ["a", "é"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ([[1], []], [[1], []]),
    ],
)
def test_inputs_become_a_list(value: object, inputs: object) -> None:
    request = parse_embeddings(msgspec.json.encode({"model": "m", "input": value}), max_inputs=3)
    assert request.inputs == inputs


def test_brackets_in_texts_do_not_count_as_nesting() -> None:
    texts = ["[" * 200_000, '"[{' * 1000, "\\" * 999 + '"[' + ":" * 200_000]
    assert parse_embeddings(msgspec.json.encode({"model": "m", "input": texts}), 3).inputs == texts


def test_null_and_unknown_fields_are_ignored() -> None:
    names = (
        "encoding_format",
        "user",
        "dimensions",
        "truncate",
        "prompt_name",
        "input_type",
        "normalize",
        "error_policy",
    )
    plain = {"model": "m", "input": "a"}
    body = msgspec.json.encode(plain | dict.fromkeys(names) | {"new": {"x": [1]}, "stream": True})
    assert parse_embeddings(body, 3) == parse_embeddings(msgspec.json.encode(plain), 3)


def test_empty_optional_strings_count_as_absent() -> None:
    truncation = ("truncate", "truncation", "truncation_direction", "truncate_prompt_tokens")
    names = ("encoding_format", "dimensions", "prompt_name", "input_type", "normalize", "error_policy", *truncation)
    plain = {"model": "m", "input": ""}
    body = msgspec.json.encode(plain | dict.fromkeys(names, ""))
    assert parse_embeddings(body, 3) == parse_embeddings(msgspec.json.encode(plain), 3)
    options = dict.fromkeys(("max_length", "pad_to_max_length", "padding_side", "add_special_tokens"), "")
    assert parse_tokenize(msgspec.json.encode({"model": "m", "text": ""} | options), 3).inputs == [""]


@pytest.mark.parametrize("truncate", ["", "end"])
@pytest.mark.parametrize(
    "fields",
    [
        {"input": "a"},
        {"input": ""},
        {"input": ["a", "", "ü😀"], "encoding_format": "base64"},
        {"input": "a", "encoding_format": None, "model": ""},
    ],
)
def test_plain_body_is_read_like_others(fields: dict[str, object], truncate: Literal["", "end"]) -> None:
    plain = {"model": "m", **fields}
    read = [parse_embeddings(msgspec.json.encode(each), 3, truncate=truncate) for each in (plain, {**plain, "user": 1})]
    assert read[0] == read[1]


def test_byte_order_mark_is_skipped() -> None:
    body = msgspec.json.encode({"model": "m", "input": "\ufeffa"})
    assert parse_embeddings(b"\xef\xbb\xbf" + body, 3) == parse_embeddings(body, 3)


END, START = Option.TRUNCATE_END, Option.TRUNCATE_START


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"truncate": False}, Option(0)),
        ({"truncate": "none"}, Option(0)),
        ({"truncate": "NONE"}, Option(0)),
        ({"truncate": True}, END),
        ({"truncate": "end"}, END),
        ({"truncate": " End "}, END),
        ({"truncate": "start"}, START),
        ({"truncate": "START"}, START),
        ({"truncate": True, "truncation_direction": "Left"}, START),
        ({"truncate": True, "truncation_direction": "Right"}, END),
        ({"truncate": False, "truncation_direction": "Left"}, Option(0)),
        ({"truncation": True}, END),
        ({"truncation": False}, Option(0)),
        ({"truncate_prompt_tokens": -1}, END),
        ({"truncate_prompt_tokens": 512}, END),
        ({"truncate": "start", "truncation": True, "truncate_prompt_tokens": -1}, START),
        ({"truncate": False, "truncation": False}, Option(0)),
    ],
)
def test_truncate_has_the_names_of_other_servers(fields: dict[str, object], option: Option) -> None:
    body = msgspec.json.encode({"model": "m", "input": "a", **fields})
    assert parse_embeddings(body, 3).truncate_option == option
    # The server's default is for requests that choose nothing.
    assert parse_embeddings(body, 3, truncate="start").truncate_option == option


def test_server_default_truncates_requests_without_choice() -> None:
    body = msgspec.json.encode({"model": "m", "input": "a", "truncate": None, "truncation_direction": "Left"})
    assert parse_embeddings(body, 3).truncate_option == Option(0)
    assert parse_embeddings(body, 3, truncate="end").truncate_option == END


@pytest.mark.parametrize(
    ("text", "found", "count"),
    [
        (r"a\ud83d", "a\ufffd", 1),
        (r"\ud83d", "\ufffd", 1),
        (r"\uDE00b", "\ufffdb", 1),
        (r"\ud83d\ud83d\ude00\ude00", "\ufffd\U0001f600\ufffd", 2),
        (r"\ud83d\u0041", "\ufffdA", 1),
        (r"\\ud83d \\\ud83d", "\\ud83d \\\ufffd", 1),
        (r"\"\ud83d\"", '"\ufffd"', 1),
        (r"\ufffd \ud83d\ude00 \\", "\ufffd \U0001f600 \\", 0),
    ],
)
def test_lone_surrogates_become_replacement_characters(text: str, found: str, count: int) -> None:
    request = parse_embeddings(rb'{"model": "m", "input": ["fine", "%s", "\n"]}' % text.encode(), 3)
    assert request.inputs == ["fine", found, "\n"]
    assert request.warning == (f"lone surrogates (halves of characters) were replaced by U+FFFD: {count}" * bool(count))
    request_of_ids = parse_tokenize(rb'{"model": "m", "text": "%s"}' % text.encode(), 3)
    assert (request_of_ids.inputs, request_of_ids.warning) == ([found], request.warning)


def test_missing_model_error_lists_the_models() -> None:
    for parse in (parse_embeddings, parse_tokenize):
        with pytest.raises(ApiError, match=r"^model field is missing in JSON body; this server has 'a/b', 'c'$"):
            parse(b'{"input": "a", "text": "a"}', 3, {"c": 1, "a/b": 2})


def test_token_ids_can_be_rejected() -> None:
    for value in ([1, 2], [[1], [2]]):
        body = msgspec.json.encode({"model": "m", "input": value})
        with pytest.raises(ApiError, match="accepts only texts; LangChain sends texts if check_embedding_ctx_length="):
            parse_embeddings(body, 3, token_ids=False)
    assert parse_embeddings(b'{"model": "m", "input": ["a"]}', 3, token_ids=False).inputs == ["a"]


# --- tokenize --------------------------------------------------------------------------------------------------------

BAD_TOKENIZE = [
    ({}, "model field is missing in JSON body"),
    ({"model": "m"}, "text field is required"),
    ({"model": "m", "text": []}, "text array should not be empty"),
    ({"model": "m", "text": 5}, "text should be string, array of strings or array of integers"),
    ({"model": "m", "text": ["a", 1]}, "text must be homogeneous"),
    ({"model": "m", "text": [None]}, "every element in text array should be either string or int"),
    ({"model": "m", "text": [1]}, "text must be string or array of strings"),
    ({"model": "m", "text": [[1]]}, "text must be string or array of strings"),
    ({"model": "m", "text": list("abcd")}, "text array has 4 elements, at most 3 are allowed"),
    ({"model": "m", "text": "a", "max_length": -1}, "max_length should be unsigned integer"),
    ({"model": "m", "text": "a", "max_length": "5"}, "max_length should be unsigned integer"),
    ({"model": "m", "text": "a", "max_length": True}, "max_length should be unsigned integer"),
    ({"model": "m", "text": "a", "max_length": 0}, "max_length should be greater than 0"),
    ({"model": "m", "text": "a", "pad_to_max_length": 1}, "pad_to_max_length should be boolean"),
    ({"model": "m", "text": "a", "add_special_tokens": "no"}, "add_special_tokens should be boolean"),
    ({"model": "m", "text": "a", "padding_side": 1}, "padding_side should be string, either left or right"),
    ({"model": "m", "text": "a", "padding_side": "up"}, "padding_side should be either left or right"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_TOKENIZE, ids=range(len(BAD_TOKENIZE)))
def test_invalid_tokenize_is_rejected_in_ovms_words(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_tokenize(msgspec.json.encode(fields), max_inputs=3)
    assert (caught.value.status, str(caught.value).partition(";")[0]) == (400, message)


def test_tokenize_has_ovms_defaults_and_options() -> None:
    plain = parse_tokenize(b'{"model": "m", "text": "a", "max_length": null}', 3)
    assert plain == TokenizeRequest(model="m", inputs=["a"])
    options = {"max_length": 9, "pad_to_max_length": True, "padding_side": "left", "add_special_tokens": False}
    other = parse_tokenize(msgspec.json.encode({"model": "m", "text": ["a", "b"]} | options), 3)
    assert other == TokenizeRequest(model="m", inputs=["a", "b"], **options)  # type: ignore[arg-type]


# --- headers, errors -------------------------------------------------------------------------------------------------


def test_unknown_model_is_named_in_ovms_words() -> None:
    error = unknown_model("x")
    assert (error.status, error.param, error.code, error.headers()) == (404, "model", "model_not_found", {})
    assert str(error) == "The model 'x' does not exist - Mediapipe graph definition with requested name is not found"


def test_unknown_model_error_names_similar_and_served() -> None:
    served = ["sentence-transformers/all-MiniLM-L6-v2", "fake"]
    for name in ("all-MiniLM-L6-v2", "all-minilm-l6-v2", "x/all-MiniLM-L6", "x" * 10**6 + "/all-MiniLM-L6-v2"):
        text = str(unknown_model(name, served=served))
        assert "not found (did you mean 'sentence-transformers/all-MiniLM-L6-v2'?); this server has 'fake', 's" in text
        assert len(text) < 400
    assert "did you mean" not in str(unknown_model("text-embedding-3-small", served=served))
    assert str(unknown_model("x", "Model not found", [str(number) for number in range(100, 200)])).endswith(
        "Model not found; this server has " + ", ".join(f"'{number}'" for number in range(100, 110)) + " and others"
    )


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/embeddings", "send the request to /v1/embeddings"),
        ("//v1/embeddings", "send the request to /v1/embeddings"),
        ("/v1/v1/Embeddings/", "send the request to /v1/embeddings"),
        ("/openai/deployments/m/embeddings", "send the request to /v1/embeddings"),
        ("/embed", "send the request to /v1/embeddings"),
        ("/api/embed", "send the request to /v1/embeddings"),
        ("/models/a/b", "send the request to /v1/models"),
        ("/tokenize", "send the request to /v1/tokenize"),
        ("/v1/chat/completions", "/docs lists the paths"),
    ],
)
def test_unknown_path_error_names_the_right_path(path: str, hint: str) -> None:
    error = unknown_path(path)
    assert (error.status, error.code) == (404, "unknown_url")
    assert str(error) == f"Invalid request URL: there is no {path}; {hint}"


def test_input_at_fault_is_named_among_several() -> None:
    def name(position: int, count: int, **options: bool) -> str:
        error = name_input(from_failure(ErrorCode.TOO_LONG, "Input length 9"), position, count, **options)
        assert (error.status, error.code) == (400, "context_length_exceeded")
        return str(msgspec.json.decode(error.body())["error"]["message"])

    assert name(3, 4) == 'input 3: Input length 9; set "error_policy": "per_item" to get the other vectors'
    assert name(3, 4, embeds=False) == "input 3: Input length 9"
    assert name(0, 1) == name(-1, 4) == "Input length 9"


def test_long_message_is_cut() -> None:
    assert len(str(ApiError(400, "x" * 10**6))) == MAX_MESSAGE_CHARACTERS + 1


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_a_status(code: ErrorCode) -> None:
    error = from_failure(code, "text", 1)
    assert error.status in (400, 404, 422, 429, 500, 503, 504)
    assert error.headers() == {"Retry-After": "1"}


def test_long_value_is_quoted_by_its_beginning() -> None:
    assert str(unknown_model("x" * 100)).startswith(f"The model '{'x' * 100}' does not exist")
    assert str(unknown_model("x" * 101)).startswith(f"The model '{'x' * 100}'… does not exist")


def test_message_may_hold_bytes_that_are_not_utf8() -> None:
    body = ApiError(405, "Method PO\udcf0T").body()
    assert msgspec.json.decode(body)["error"]["message"] == r"Method PO\udcf0T"


def test_missing_key_is_answered_with_scheme() -> None:
    error = ApiError(401, "no", headers={"WWW-Authenticate": "Bearer"}, retry_after_s=2)
    assert error.headers() == {"WWW-Authenticate": "Bearer", "Retry-After": "2"}


def test_param_is_the_field_at_fault() -> None:
    at_fault = {code: from_failure(code, "").param for code in ErrorCode}
    assert {code: param for code, param in at_fault.items() if param} == {
        ErrorCode.INVALID_INPUT: "input",
        ErrorCode.TOO_LONG: "input",
        ErrorCode.TOO_MANY_TOKENS: "input",
        ErrorCode.POISON: "input",
        ErrorCode.UNKNOWN_MODEL: "model",
        ErrorCode.NO_WORKER: "model",
        ErrorCode.REPLACED: "model",
    }


def test_retry_after_is_at_most_two_minutes() -> None:
    assert from_failure(ErrorCode.OVERLOADED, "", 10**7).headers() == {"Retry-After": "120"}


def test_number_to_tokenize_names_the_way_out() -> None:
    with pytest.raises(ApiError, match="it is an integer; send a text or texts, not token ids"):
        parse_tokenize(b'{"model": "m", "text": 5}', max_inputs=3)


def test_failure_without_text_gets_the_codes_text() -> None:
    assert str(from_failure(ErrorCode.DRAINING)) == ErrorCode.DRAINING.text
    assert str(from_failure(ErrorCode.DRAINING, "going away")) == "going away"


@pytest.mark.parametrize(
    ("headers", "lane", "deadline_s"),
    [
        ({}, None, 60.0),
        ({"x-vecmill-lane": "Bulk"}, Lane.BULK, 60.0),
        ({"x-vecmill-lane": "interactive", "x-vecmill-deadline-ms": "1500"}, Lane.INTERACTIVE, 1.5),
        ({"x-vecmill-deadline-ms": "999999999"}, None, 60.0),
        ({"x-vecmill-lane": "", "x-vecmill-deadline-ms": " "}, None, 60.0),
        ({"x-vecmill-lane": "\tINTERACTIVE ", "x-vecmill-deadline-ms": " 1500\t"}, Lane.INTERACTIVE, 1.5),
    ],
)
def test_headers_choose_lane_and_deadline(headers: dict[str, str], lane: Lane | None, deadline_s: float) -> None:
    assert parse_lane(headers) == lane
    assert parse_deadline_s(headers, 60.0) == deadline_s


@pytest.mark.parametrize(
    ("text", "caching"),
    [
        (None, Caching.USE),
        ("", Caching.USE),
        ("max-age=0, no-transform", Caching.USE),
        ("no-cache", Caching.REFRESH),
        ("No-Store", Caching.SKIP),
        ("no-cache,\tno-store", Caching.SKIP),
        ("x-no-store", Caching.USE),
    ],
)
def test_cache_control_chooses_how_results_are_used(text: str | None, caching: Caching) -> None:
    assert parse_caching({} if text is None else {"cache-control": text}) == caching


@pytest.mark.parametrize(
    ("headers", "credentials"),
    [
        ({}, [""]),
        ({"authorization": "Bearer a"}, ["Bearer a"]),
        ({"api-key": " a"}, ["", "Bearer  a"]),
        ({"authorization": "Basic b", "x-api-key": "a", "api-key": "c"}, ["Basic b", "Bearer c", "Bearer a"]),
    ],
)
def test_key_is_read_from_three_headers(headers: dict[str, str], credentials: list[str]) -> None:
    assert list_credentials(headers) == credentials


def test_client_hash_hides_the_text() -> None:
    texts = [f"{address} Bearer {key}" for address in ("10.0.0.1", "10.0.0.2") for key in ("", "sk-one", "sk-öther")]
    clients = [hash_client(text) for text in texts]
    assert len(set(clients)) == len(texts)
    assert clients == [hash_client(text) for text in texts]
    assert not any("sk" in client or "10.0" in client for client in clients)


@pytest.mark.parametrize("name", ["fast", "0", "interactive,bulk"])
def test_unknown_lane_is_rejected(name: str) -> None:
    with pytest.raises(ApiError, match="must be interactive or bulk"):
        parse_lane({"x-vecmill-lane": name})


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "1.5", "soon", "\u0663", "9" * 5000, "1" + "0" * 9, "0" * 11 + "1" + "9" * 5000, "0" * 5000],
)
def test_invalid_deadline_is_rejected(text: str) -> None:
    with pytest.raises(ApiError, match="must be a whole number above 0"):
        parse_deadline_s({"x-vecmill-deadline-ms": text}, 60.0)
