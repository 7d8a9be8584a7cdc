# ruff: noqa: E501  a row is a line where it can be
"""POST /v1/embeddings: forms of the input, and every field."""

import base64
import math
from typing import Any

import httpx
import numpy as np

from tests.acceptance.contract.row import FAKE, REAL, Row, embed, fake
from tests.fake_worker import vector

HELLO = [101, 7592, 2088, 102]
LONG = "hello " * 400
ELEMENTS = "every element in input array should be either string or int"
TYPES = "input should be string, array of strings or array of integers"


def data(answer: httpx.Response) -> list[dict[str, Any]]:
    """The items."""
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def length(answer: httpx.Response, at: int = 0) -> float:
    """Of a vector."""
    return math.sqrt(sum(value * value for value in data(answer)[at]["embedding"]))


def number(answer: httpx.Response) -> int:
    """Of vectors, whose indexes are in order."""
    assert [item["index"] for item in data(answer)] == list(range(len(data(answer))))
    return len(data(answer))


def most_digits(answer: httpx.Response) -> int:
    """Significant digits of the number that has the most, as it is printed: float32 needs 9 at most."""
    numbers = answer.text.partition("[")[2].partition("[")[2].partition("]")[0].split(",")
    return max(len(number.lower().partition("e")[0].lstrip("-").replace(".", "").lstrip("0")) for number in numbers)


def of_text(*texts: str) -> Any:
    """Whether the vectors are those that the fake model has for these texts."""
    return lambda answer: [item["embedding"] for item in data(answer)] == [vector(text).tolist() for text in texts]


def bad(name: str, message: str, param: str | None = "input", **more: Any) -> Row:
    """A 400."""
    return embed(name, 400, message=message, param=param, **more)


BODIES = [
    embed("no body", 400, body=b"", message="The file is not valid json - Cannot parse JSON body", differs="bad JSON"),
    embed("no JSON", 400, body=b"hello", message="The file is not valid json - Cannot parse JSON body", differs="bad JSON"),
    embed("cut JSON", 400, body=b'{"model": ', message="The file is not valid json - Cannot parse JSON body"),
    embed("not UTF-8", 400, body=b'{"model": "m", "input": "\xff"}', message="Cannot parse JSON body"),
    embed("lone surrogate", 400, body=rb'{"model": "m", "input": "\ud800"}', message="Cannot parse JSON body"),
    embed("trailing bytes", 400, body=b'{"model": "m"} x', message="Cannot parse JSON body"),
    embed("an array", 400, body=b"[1]", message="JSON body must be an object", differs="bad JSON"),
    embed("a string", 400, body=b'"x"', message="JSON body must be an object"),
    embed("null", 400, body=b"null", message="JSON body must be an object"),
    embed("a field 101 deep", 400, x=eval("[" * 100 + "]" * 100), message="JSON body exceeds maximum nesting depth"),
    embed("a field 100 deep", x=eval("[" * 99 + "]" * 99)),
    embed("100,000 deep", 400, body=b"[" * 100_000, message="JSON body exceeds maximum nesting depth"),
    embed("input 101 deep", 400, input=eval("[" * 100 + "]" * 100), message="JSON body exceeds maximum nesting depth"),
    embed("body above 8 MiB", 413, input="x" * (9 << 20), code="body_too_large", differs="body limit"),
    embed("no content type", headers={"Content-Type": ""}, differs="Content-Type"),
    embed("form content type", headers={"Content-Type": "application/x-www-form-urlencoded"}, differs="Content-Type"),
    embed("content type with a charset", headers={"Content-Type": "application/json; charset=utf-8"}),
    embed("unknown fields", whatever={"x": [1]}, stream=True),
    embed("every optional field null", encoding_format=None, dimensions=None, user=None, truncate=None, prompt_name=None,
          input_type=None, normalize=None, error_policy=None, differs="null"),
    embed("user", user="somebody"),
    embed("user of another type", user=7),
]  # fmt: skip

MODELS = [
    embed("no model", 400, model=..., message="model field is missing in JSON body", param="model"),
    embed("model null", 400, model=None, message="model field is missing in JSON body", param="model"),
    embed("model a number", 400, model=7, message="model field is not a string", param="model"),
    embed("model a list", 400, model=[REAL], message="model field is not a string", param="model"),
    embed("unknown model", 404, model="other", code="model_not_found", param="model",
          message="Mediapipe graph definition with requested name is not found"),
    embed("unknown model is named", 404, model="other", message="The model 'other' does not exist"),
    embed("empty model", 404, model="", message="Mediapipe graph definition with requested name is not found"),
    embed("model in another case", 404, model=REAL.upper(), code="model_not_found"),
]  # fmt: skip

INPUTS = [
    embed("a string", check=lambda answer: number(answer) == 1),
    embed("an empty string", input="", check=lambda answer: answer.json()["usage"]["prompt_tokens"] == 2),
    embed("a string with a NUL is not cut", input="null\0inside",
          check=lambda answer: answer.json()["usage"]["prompt_tokens"] == 5, differs="NUL"),
    embed("an array of strings", input=["a", "b", "c"], check=lambda answer: number(answer) == 3),
    embed("2,048 strings", input=["a"] * 2048, check=lambda answer: number(answer) == 2048),
    embed("equal strings", input=["a", "a"],
          check=lambda answer: data(answer)[0]["embedding"] == data(answer)[1]["embedding"]),
    embed("token ids", input=HELLO, check=lambda answer: number(answer) == 1),
    embed("arrays of token ids", input=[HELLO, [101, 102]], check=lambda answer: number(answer) == 2),
    embed("token ids are counted as they are", input=[HELLO, [101, 102]],
          json={"usage": {"prompt_tokens": 6, "total_tokens": 6}}),
    fake("token ids and their text have one vector", input=[[104, 105]], check=of_text("hi"), differs="token types"),
    bad("missing", "input field is required", input=...),
    bad("null", "input field is required", input=None),
    bad("an empty array", "input array should not be empty", input=[]),
    bad("an empty inner array", "inner arrays in input should not be empty", input=[[1], []]),
    bad("a number", TYPES, input=7),
    bad("a float", TYPES, input=1.5),
    bad("a boolean", TYPES, input=True),
    bad("an object", TYPES, input={"text": "a"}),
    bad("floats", ELEMENTS, input=[1.5]),
    bad("booleans", ELEMENTS, input=[True]),
    bad("nulls", ELEMENTS, input=[None]),
    bad("objects", ELEMENTS, input=[{}]),
    bad("a string and null", ELEMENTS, input=["a", None]),
    bad("inner floats", ELEMENTS, input=[[1.5]]),
    bad("deeper arrays", ELEMENTS, input=[[[1]]]),
    bad("strings and ids", "input must be homogeneous", input=["a", 1]),
    bad("ids and strings", "input must be homogeneous", input=[1, "a"]),
    bad("strings and arrays", "input must be homogeneous", input=["a", [1]]),
    bad("ids and arrays", "input must be homogeneous", input=[1, [1]]),
    bad("an inner mix", "input must be homogeneous", input=[[1, "a"]]),
    bad("arrays of both kinds", "input must be homogeneous", input=[[1], ["a"]]),
    bad("arrays of strings", "input must be either array of strings or array of array of integers", input=[["a"]]),
    bad("2,049 strings", "input array has 2049 elements, at most 2048 are allowed", input=["a"] * 2049,
        differs="number of inputs"),
    bad("an id outside the vocabulary", "token id 30522 is not in the model's vocabulary of 30522", input=[30522],
        differs="vocabulary"),
    bad("an id of OpenAI's tells LangChain's switch", "check_embedding_ctx_length=False", input=[9906, 100257]),
    bad("a negative id", "token id -1 is not in the model's vocabulary", input=[-1]),
    bad("an id above 64 bits", "", input=[2**70]),
    bad("a text that is too long", "Input length 402 longer than allowed 256", input=LONG, code="context_length_exceeded"),
    bad("a long one among short ones", "Input length 402 longer than allowed 256", input=["a", LONG, "b"]),
    bad("too many ids", "Input length 257 longer than allowed 256", input=[101] * 257, code="context_length_exceeded"),
    embed("as long as the model takes", input=[101] * 256),
    bad("more ids than a request may have", "the request has more than 300000 tokens", input=[[101] * 256] * 1200,
        code="max_tokens_per_request", differs="tokens of a request"),
]  # fmt: skip

ANSWERS = [
    embed("key order", check=lambda answer: list(answer.json()) == ["object", "data", "model", "usage"]
          and list(data(answer)[0]) == ["object", "embedding", "index"]),
    embed("object, model and usage", json={"object": "list", "model": REAL,
          "usage": {"prompt_tokens": 4, "total_tokens": 4}}, differs="model in the answer"),
    embed("JSON", sends={"content-type": "application/json"}),
    embed("special tokens are counted", input=["hello world", "how are you"],
          json={"usage": {"prompt_tokens": 9, "total_tokens": 9}}),
    embed("float by default", check=lambda answer: len(data(answer)[0]["embedding"]) == 384),
    embed("float32 in its shortest text", check=lambda answer: most_digits(answer) <= 9, differs="float text"),
    embed("float", encoding_format="float", check=lambda answer: isinstance(data(answer)[0]["embedding"], list)),
    embed("base64 of little-endian float32", encoding_format="base64",
          check=lambda answer: len(base64.b64decode(data(answer)[0]["embedding"])) == 4 * 384),
    fake("base64 and float are the same", input="abc", encoding_format="base64", check=lambda answer: np.frombuffer(
        base64.b64decode(data(answer)[0]["embedding"]), "<f4").tolist() == vector("abc").tolist()),
    fake("vectors are in the inputs' order", input=["b", "a", "cc"], check=of_text("b", "a", "cc")),
    bad("unknown encoding", "encoding_format should either base64 or float", "encoding_format", encoding_format="hex"),
    bad("encoding in capitals", "encoding_format should either base64 or float", "encoding_format", encoding_format="FLOAT"),
    bad("encoding a number", "encoding_format should be string", "encoding_format", encoding_format=1),
    bad("encoding a list", "encoding_format should be string", "encoding_format", encoding_format=["float"]),
    embed("times", sends={"x-queue-time": ..., "x-inference-time": ..., "x-total-time": ...}),
    embed("request id is the client's", headers={"x-request-id": "my/id"}, sends={"x-request-id": "my/id"}),
    embed("request id of two words is not", headers={"x-request-id": "my id"},
          check=lambda answer: len(answer.headers["x-request-id"]) == 32),
    embed("request id of an error", 400, input=..., headers={"x-request-id": "id"}, sends={"x-request-id": "id"}),
    embed("traceparent", headers={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}),
    embed("a broken traceparent is ignored", headers={"traceparent": "00-x"}),
]  # fmt: skip

DIMENSIONS = [
    embed("fewer are cut and of length 1", dimensions=64, check=lambda answer: len(data(answer)[0]["embedding"]) == 64
          and abs(length(answer) - 1) < 1e-6, differs="dimensions"),
    embed("one", dimensions=1, check=lambda answer: [abs(value) for value in data(answer)[0]["embedding"]] == [1.0]),
    embed("the model's own need no warning", dimensions=384,
          check=lambda answer: "x-vecmill-warning" not in answer.headers),
    embed("fewer than the model declares are warned of", dimensions=64, sends={"x-vecmill-warning": ...}),
    fake("what the model declares needs no warning", dimensions=4, input="abc",
         check=lambda answer: data(answer)[0]["embedding"] == vector("abc")[:4].tolist()
         and "x-vecmill-warning" not in answer.headers),
    fake("another number is warned of", dimensions=3, sends={"x-vecmill-warning": ...}),
    embed("with base64", dimensions=2, encoding_format="base64",
          check=lambda answer: len(base64.b64decode(data(answer)[0]["embedding"])) == 8),
    bad("more than the model has", "dimensions is 385, and the model makes vectors of 384", "dimensions", dimensions=385),
    bad("none", "dimensions should be greater than 0", "dimensions", dimensions=0),
    bad("fewer than none", "dimensions should be greater than 0", "dimensions", dimensions=-1),
    bad("a string", "dimensions should be an integer", "dimensions", dimensions="64"),
    bad("a boolean", "dimensions should be an integer", "dimensions", dimensions=True),
    bad("a float", "dimensions should be an integer", "dimensions", dimensions=64.0),
]  # fmt: skip

X70 = "".join(chr(97 + place % 26) for place in range(70))
TRUNCATE = [
    embed("true", input=["a", LONG], truncate=True, json={"truncated_tokens": 146}, sends={"x-truncated-tokens": "146"},
          differs="truncation"),
    embed("usage is of what is left", input=LONG, truncate="end", json={"usage": {"prompt_tokens": 256, "total_tokens": 256}}),
    embed("cut items say so", input=["a", LONG], truncate="end",
          check=lambda answer: [item.get("truncated_tokens") for item in data(answer)] == [None, 146]),
    embed("nothing to cut", truncate=True, json={"truncated_tokens": 0}, sends={"x-truncated-tokens": "0"}),
    embed("not asked for, not told", check=lambda answer: "truncated_tokens" not in answer.json()
          and "x-truncated-tokens" not in answer.headers),
    fake("end", input=X70, truncate="end", check=of_text(X70[:64])),
    fake("start", input=X70, truncate="start", check=of_text(X70[6:])),
    fake("token ids", input=[ord(letter) for letter in X70], truncate="start", check=of_text(X70[6:])),
    bad("none", "Input length 402 longer than allowed 256", input=LONG, truncate="none"),
    bad("false", "Input length 402 longer than allowed 256", input=LONG, truncate=False),
    bad("another word", "truncate should be boolean or one of none, start, end", "truncate", truncate="middle"),
    bad("a number", "truncate should be boolean or one of none, start, end", "truncate", truncate=1),
]  # fmt: skip

PROMPTS = [
    fake("by name", input="abc", prompt_name="query", check=of_text("query: abc"), differs="prompts"),
    fake("of every text", input=["a", "b"], prompt_name="document", check=of_text("passage: a", "passage: b")),
    fake("is counted", input="abc", prompt_name="query", json={"usage": {"prompt_tokens": 10, "total_tokens": 10}}),
    fake("none unless asked for", input="abc", check=of_text("abc")),
    fake("query", input="abc", input_type="query", check=of_text("query: abc")),
    fake("search_query", input="abc", input_type="search_query", check=of_text("query: abc")),
    fake("document", input="abc", input_type="document", check=of_text("passage: abc")),
    fake("search_document", input="abc", input_type="search_document", check=of_text("passage: abc")),
    fake("passage", input="abc", input_type="passage", check=of_text("passage: abc")),
    embed("a type that the model has no prompt for", input_type="query",
          json={"usage": {"prompt_tokens": 4, "total_tokens": 4}}),
    fake("unknown name", 400, prompt_name="other", message="but the model has query, document", param="prompt_name"),
    bad("a name where there are none", "but the model has none", "prompt_name", prompt_name="query"),
    fake("unknown type", 400, input_type="other", message="must be one of query, search_query", param="input_type"),
    fake("both", 400, prompt_name="query", input_type="query", message="exclude each other"),
    fake("with token ids", 400, prompt_name="query", input=[97], message="prompt_name needs texts", param="prompt_name"),
    fake("type with token ids", 400, input_type="query", input=[97], message="input_type needs texts", param="input_type"),
    bad("a name that is none", "prompt_name should be string", "prompt_name", prompt_name=7),
    bad("a type that is none", "input_type should be string", "input_type", input_type=["query"]),
]  # fmt: skip

NORMALIZE = [
    embed("as the model makes them", check=lambda answer: abs(length(answer) - 1) < 1e-6),
    embed("true", normalize=True, check=lambda answer: abs(length(answer) - 1) < 1e-6),
    embed("false", normalize=False, check=lambda answer: length(answer) > 2, differs="normalize"),
    embed("false, and fewer dimensions", normalize=False, dimensions=8, check=lambda answer: length(answer) != 1),
    fake("a model that does not", input="abc", check=of_text("abc")),
    fake(
        "a model that does not, true", input="abc", normalize=True, check=lambda answer: abs(length(answer) - 1) < 1e-6
    ),
    bad("a string", "normalize should be boolean", "normalize", normalize="yes"),
]


def outcome(*codes: str | None) -> Any:
    """Whether each item has a vector ("ok") or an error of this code, in its place."""

    def check(answer: httpx.Response) -> bool:
        found = [item["error"]["code"] if "error" in item else "ok" for item in data(answer)]
        wholes = [(item["embedding"] is None) == ("error" in item) for item in data(answer)]
        return number(answer) == len(codes) and found == list(codes) and all(wholes)

    return check


PER_ITEM = [
    fake("a long one", input=["a", "x" * 65, "b"], error_policy="per_item", check=outcome("ok", "context_length_exceeded", "ok"),
         differs="one bad input"),
    fake("its message", input=["a", "x" * 65], error_policy="per_item", check=lambda answer: data(answer)[1]["error"] == {
        "message": "Input length 65 longer than allowed 64", "type": "invalid_request_error", "param": "input",
        "code": "context_length_exceeded"}),
    fake("one that the device fails on", input=["a", "raise", "b"], error_policy="per_item",
         check=outcome("ok", "internal_error", "ok")),
    fake("bad token arrays", input=[[97], [], [200_000], [97] * 65], error_policy="per_item",
         check=outcome("ok", None, "invalid_input", "context_length_exceeded")),
    fake("only bad ones", input=[[], [200_000]], error_policy="per_item", check=outcome(None, "invalid_input"),
         json={"usage": {"prompt_tokens": 0, "total_tokens": 0}}),
    fake("only good ones", input=["a", "b"], error_policy="per_item", check=outcome("ok", "ok")),
    fake("base64", input=["a", "x" * 65], error_policy="per_item", encoding_format="base64",
         check=outcome("ok", "context_length_exceeded")),
    fake("usage is of the good ones", input=["a", "x" * 65], error_policy="per_item",
         json={"usage": {"prompt_tokens": 1, "total_tokens": 1}}),
    fake("fail", 400, input=["a", "x" * 65], error_policy="fail", message="Input length 65 longer than allowed 64"),
    embed("of an unknown model", 404, model="other", error_policy="per_item", code="model_not_found"),
    bad("unknown policy", "error_policy should be fail or per_item", "error_policy", error_policy="skip"),
    bad("policy a boolean", "error_policy should be string", "error_policy", error_policy=True),
]  # fmt: skip

HEADERS = [
    embed("lane bulk", headers={"x-vecmill-lane": "bulk"}),
    embed("lane in capitals", headers={"x-vecmill-lane": "INTERACTIVE"}),
    embed(
        "unknown lane",
        400,
        headers={"x-vecmill-lane": "fast"},
        message="must be interactive or bulk",
        param="x-vecmill-lane",
    ),
    embed("deadline", headers={"x-vecmill-deadline-ms": "60000"}),
    embed("deadline of nothing", 400, headers={"x-vecmill-deadline-ms": "0"}, param="x-vecmill-deadline-ms"),
    embed("deadline in words", 400, headers={"x-vecmill-deadline-ms": "soon"}, param="x-vecmill-deadline-ms"),
    fake(
        "deadline that passes", 504, input="slow 1", headers={"x-vecmill-deadline-ms": "100"}, code="deadline_exceeded"
    ),
    fake("fault of the device", 500, input="raise", code="internal_error", message="the device failed on this input"),
    fake("vector that is not finite", 500, input="nan", code="internal_error"),
]

PATHS = [
    embed("on /v3", path="/v3/embeddings"),
    embed("on /v3/v1", path="/v3/v1/embeddings"),
    embed("error on /v3", 400, path="/v3/embeddings", input=[], message="input array should not be empty",
          differs="shape of errors"),
    embed("with a query string", path="/v1/embeddings?api-version=2024-10-21"),
    fake("of a model whose name is not the default's", json={"model": FAKE}, input="a"),
]  # fmt: skip

SECTIONS = {
    "body": BODIES,
    "model": MODELS,
    "input": INPUTS,
    "answer": ANSWERS,
    "dimensions": DIMENSIONS,
    "truncate": TRUNCATE,
    "prompt": PROMPTS,
    "normalize": NORMALIZE,
    "error_policy": PER_ITEM,
    "header": HEADERS,
    "path": PATHS,
}
ROWS = [row._replace(name=f"embeddings, {section}: {row.name}") for section, rows in SECTIONS.items() for row in rows]
