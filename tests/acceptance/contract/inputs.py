# ruff: noqa: E501  a row is a line where it can be
"""POST /v1/embeddings: bodies, models, forms of inputs, headers, paths and limits."""

from tests.acceptance.contract.answers import LONG, count, data, has_vectors_of, invalid, name_rows
from tests.acceptance.contract.row import FAKE, REAL, embed, fake, strict
from tests.harness.fake_worker import vector

HELLO = [101, 7592, 2088, 102]
ELEMENTS = "every element in input array should be either string or int"
TYPES = "input should be string, array of strings or array of integers"

BODIES = [
    embed("no body", 400, body=b"", message="The file is not valid json - Cannot parse JSON body", differs="bad JSON"),
    embed("not JSON", 400, body=b"hello", message="The file is not valid json - Cannot parse JSON body", differs="bad JSON"),
    embed("incomplete JSON", 400, body=b'{"model": ', message="The file is not valid json - Cannot parse JSON body"),
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
    embed("model in capitals", 404, model=REAL.upper(), code="model_not_found"),
]  # fmt: skip

INPUTS = [
    embed("a string", check=lambda answer: count(answer) == 1),
    embed("an empty string", input="", check=lambda answer: answer.json()["usage"]["prompt_tokens"] == 2),
    embed("a string with a NUL is not cut", input="null\0inside",
          check=lambda answer: answer.json()["usage"]["prompt_tokens"] == 5, differs="NUL"),
    embed("an array of strings", input=["a", "b", "c"], check=lambda answer: count(answer) == 3),
    embed("2,048 strings", input=["a"] * 2048, check=lambda answer: count(answer) == 2048),
    embed("equal strings", input=["a", "a"],
          check=lambda answer: data(answer)[0]["embedding"] == data(answer)[1]["embedding"]),
    embed("token ids", input=HELLO, check=lambda answer: count(answer) == 1),
    embed("arrays of token ids", input=[HELLO, [101, 102]], check=lambda answer: count(answer) == 2),
    embed("token ids are counted as they are", input=[HELLO, [101, 102]],
          json={"usage": {"prompt_tokens": 6, "total_tokens": 6}}),
    fake("token ids and their text have one vector", input=[[104, 105]], check=has_vectors_of("hi"), differs="token types"),
    invalid("missing", "input field is required", input=...),
    invalid("null", "input field is required", input=None),
    invalid("an empty array", "input array should not be empty", input=[]),
    invalid("an empty inner array", "inner arrays in input should not be empty", input=[[1], []]),
    invalid("a number", TYPES, input=7),
    invalid("a float", TYPES, input=1.5),
    invalid("a boolean", TYPES, input=True),
    invalid("an object", TYPES, input={"text": "a"}),
    invalid("floats", ELEMENTS, input=[1.5]),
    invalid("booleans", ELEMENTS, input=[True]),
    invalid("nulls", ELEMENTS, input=[None]),
    invalid("objects", ELEMENTS, input=[{}]),
    invalid("a string and null", ELEMENTS, input=["a", None]),
    invalid("inner floats", ELEMENTS, input=[[1.5]]),
    invalid("deeper arrays", ELEMENTS, input=[[[1]]]),
    invalid("strings and ids", "input must be homogeneous", input=["a", 1]),
    invalid("ids and strings", "input must be homogeneous", input=[1, "a"]),
    invalid("strings and arrays", "input must be homogeneous", input=["a", [1]]),
    invalid("ids and arrays", "input must be homogeneous", input=[1, [1]]),
    invalid("an inner mix", "input must be homogeneous", input=[[1, "a"]]),
    invalid("arrays of both kinds", "input must be homogeneous", input=[[1], ["a"]]),
    invalid("arrays of strings", "input must be either array of strings or array of array of integers", input=[["a"]]),
    invalid("2,049 strings", "input array has 2049 elements, at most 2048 are allowed", input=["a"] * 2049,
        differs="number of inputs"),
    invalid("an id outside the vocabulary", "token id 30522 is not in the model's vocabulary of 30522", input=[30522],
        differs="vocabulary"),
    invalid("an id of OpenAI's model names LangChain's switch", "check_embedding_ctx_length=False", input=[9906, 100257]),
    invalid("a negative id", "token id -1 is not in the model's vocabulary", input=[-1]),
    invalid("an id above 64 bits", "is not in the model's vocabulary", input=[2**70]),
    invalid("an id outside the vocabulary among others", "token id 30522 is not", input=[HELLO, [101, 30522, 102]]),
    invalid("arrays of objects", ELEMENTS, input=[[{}]]),
    invalid("arrays of nulls", ELEMENTS, input=[[None]]),
    invalid("ids and null", ELEMENTS, input=[1, None]),
    invalid("ids and floats", ELEMENTS, input=[1, 1.5]),
    invalid("2,049 arrays", "input array has 2049 elements, at most 2048 are allowed", input=[[101]] * 2049),
    embed("texts of any script", input=["für jeden", "日本語", "🙂", "\u202eabc", "\ufeff"],
          check=lambda answer: count(answer) == 5),
    embed("white space", input=" \n\t ", json={"usage": {"prompt_tokens": 2, "total_tokens": 2}}),
    invalid("a text that is too long", "Input length 402 longer than allowed 256", input=LONG, code="context_length_exceeded"),
    invalid("a long one among short ones", "Input length 402 longer than allowed 256", input=["a", LONG, "b"]),
    invalid("too many ids", "Input length 257 longer than allowed 256", input=[101] * 257, code="context_length_exceeded"),
    embed("as long as the model accepts", input=[101] * 256),
    invalid("more ids than a request may have", "the request has more than 300000 tokens", input=[[101] * 256] * 1200,
        code="max_tokens_per_request", differs="tokens of a request"),
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
    embed("deadline of 0", 400, headers={"x-vecmill-deadline-ms": "0"}, param="x-vecmill-deadline-ms"),
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
    fake("of a model other than the default", json={"model": FAKE}, input="a"),
]  # fmt: skip

#: On the server with --max-inputs 3 --max-request-tokens 100 --max-body-bytes 2000 --dimensions-policy refuse.
LIMITS = [
    strict("three inputs", input=["a", "b", "c"], check=lambda answer: count(answer) == 3),
    strict("four inputs", 400, input=["a"] * 4, param="input",
           message="input array has 4 elements, at most 3 are allowed"),
    strict("100 tokens of texts and prompts", input=["x" * 43] * 2,
           json={"usage": {"prompt_tokens": 100, "total_tokens": 100}}),
    strict("101 tokens of texts and prompts", 400, input=["x" * 43, "x" * 44], code="max_tokens_per_request", param="input",
           message="the request has more than 100 tokens"),
    strict("as many token ids", input=[[97] * 50, [97] * 50], json={"usage": {"prompt_tokens": 100, "total_tokens": 100}}),
    strict("101 token ids", 400, input=[[97] * 50, [97] * 51], code="max_tokens_per_request", param="input",
           message="the request has more than 100 tokens"),
    strict("tokens of all inputs count with per_item", 400, input=["x" * 57] * 2, error_policy="per_item",
           code="max_tokens_per_request"),
    strict("tokens that are cut off do not count", input=["x" * 80, "y" * 29], truncate="end",
           json={"usage": {"prompt_tokens": 100, "total_tokens": 100}}),
    strict("a body that is too large", 413, input="x" * 2000, code="body_too_large", message="larger than 2000 bytes"),
    strict("dimensions that the model does not declare", 400, dimensions=3, param="dimensions",
           message="the model does not declare that its vectors may be cut to 3 values"),
    strict("dimensions that the model declares", input=[97], dimensions=4,
           check=lambda answer: data(answer)[0]["embedding"] == vector("a")[:4].tolist()),
    strict("dimensions of the model", dimensions=8, check=lambda answer: len(data(answer)[0]["embedding"]) == 8),
]  # fmt: skip

ROWS = name_rows({"body": BODIES, "model": MODELS, "input": INPUTS, "header": HEADERS, "path": PATHS, "limits": LIMITS})
