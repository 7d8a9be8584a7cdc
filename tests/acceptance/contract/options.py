# ruff: noqa: E501  a row is a line where it can be
"""POST /v1/embeddings: the answer, and every optional field."""

import base64

import numpy as np

from tests.acceptance.contract.answers import (
    LONG,
    count_digits,
    data,
    has_outcomes,
    has_times,
    has_vectors_of,
    invalid,
    keys,
    length,
    name_rows,
)
from tests.acceptance.contract.row import FAKE, REAL, embed, fake, strict
from tests.harness.fake_worker import vector

HELLO = [101, 7592, 2088, 102]

ANSWERS = [
    embed("key order", check=lambda answer: keys(answer) == (
        ["object", "data", "model", "usage"], ["object", "embedding", "index"])),
    embed("object, model and usage", json={"object": "list", "model": REAL,
          "usage": {"prompt_tokens": 4, "total_tokens": 4}}, differs="model in the answer"),
    embed("JSON", sends={"content-type": "application/json"}),
    embed("special tokens are counted", input=["hello world", "how are you"],
          json={"usage": {"prompt_tokens": 9, "total_tokens": 9}}),
    embed("float by default", check=lambda answer: len(data(answer)[0]["embedding"]) == 384),
    embed("float32 in its shortest text", check=lambda answer: count_digits(answer) <= 9, differs="float text"),
    embed("float", encoding_format="float", check=lambda answer: isinstance(data(answer)[0]["embedding"], list)),
    embed("base64 of little-endian float32", encoding_format="base64",
          check=lambda answer: len(base64.b64decode(data(answer)[0]["embedding"])) == 4 * 384),
    fake("base64 and float are the same", input="abc", encoding_format="base64", check=lambda answer: np.frombuffer(
        base64.b64decode(data(answer)[0]["embedding"]), "<f4").tolist() == vector("abc").tolist()),
    fake("vectors are in the order of the inputs", input=["b", "a", "cc"], check=has_vectors_of("b", "a", "cc")),
    invalid("unknown encoding", "encoding_format should either base64 or float", "encoding_format", encoding_format="hex"),
    invalid("encoding in capitals", "encoding_format should either base64 or float", "encoding_format", encoding_format="FLOAT"),
    invalid("encoding a number", "encoding_format should be string", "encoding_format", encoding_format=1),
    invalid("encoding a list", "encoding_format should be string", "encoding_format", encoding_format=["float"]),
    embed("times", check=has_times),
    embed("request id of the client", headers={"x-request-id": "my/id"}, sends={"x-request-id": "my/id"}),
    embed("request id with a space is replaced", headers={"x-request-id": "my id"},
          check=lambda answer: len(answer.headers["x-request-id"]) == 32),
    embed("request id of an error", 400, input=..., headers={"x-request-id": "id"}, sends={"x-request-id": "id"}),
    embed("traceparent", headers={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}),
    embed("an invalid traceparent is ignored", headers={"traceparent": "00-x"}),
]  # fmt: skip

DIMENSIONS = [
    embed("fewer are cut and scaled to length 1", dimensions=64, check=lambda answer: len(data(answer)[0]["embedding"]) == 64
          and abs(length(answer) - 1) < 1e-6, differs="dimensions"),
    embed("one", dimensions=1, check=lambda answer: [abs(value) for value in data(answer)[0]["embedding"]] == [1.0]),
    embed("all of the model's need no warning", dimensions=384,
          check=lambda answer: "x-vecmill-warning" not in answer.headers),
    embed("undeclared ones have a warning", dimensions=64, sends={"x-vecmill-warning": ...}),
    fake("declared ones need no warning", dimensions=4, input="abc",
         check=lambda answer: data(answer)[0]["embedding"] == vector("abc")[:4].tolist()
         and "x-vecmill-warning" not in answer.headers),
    fake("undeclared ones have a warning although others are declared", dimensions=3, sends={"x-vecmill-warning": ...}),
    fake("fewer of an unnormalized model are not scaled, with base64", dimensions=4, input="abc",
         encoding_format="base64", check=lambda answer: np.frombuffer(
             base64.b64decode(data(answer)[0]["embedding"]), "<f4").tolist() == vector("abc")[:4].tolist()),
    fake("fewer of an unnormalized model are scaled with normalize", dimensions=4, input="abc", normalize=True,
         check=lambda answer: np.allclose(data(answer)[0]["embedding"],
                                          vector("abc")[:4] / np.linalg.norm(vector("abc")[:4]), atol=1e-6)),
    fake("fewer of token ids", dimensions=4, input=[97, 98, 99],
         check=lambda answer: data(answer)[0]["embedding"] == vector("abc")[:4].tolist()),
    embed("with base64", dimensions=2, encoding_format="base64",
          check=lambda answer: len(base64.b64decode(data(answer)[0]["embedding"])) == 8),
    invalid("more than the model has", "dimensions is 385, but the model's vectors have 384 values", "dimensions", dimensions=385),
    invalid("zero", "dimensions should be greater than 0", "dimensions", dimensions=0),
    invalid("below zero", "dimensions should be greater than 0", "dimensions", dimensions=-1),
    invalid("a string", "dimensions should be an integer", "dimensions", dimensions="64"),
    invalid("a boolean", "dimensions should be an integer", "dimensions", dimensions=True),
    invalid("a float", "dimensions should be an integer", "dimensions", dimensions=64.0),
]  # fmt: skip

X70 = "".join(chr(97 + place % 26) for place in range(70))
TRUNCATE = [
    embed("true", input=["a", LONG], truncate=True, json={"truncated_tokens": 146}, sends={"x-truncated-tokens": "146"},
          differs="truncation"),
    embed("usage counts what is left", input=LONG, truncate="end", json={"usage": {"prompt_tokens": 256, "total_tokens": 256}}),
    embed("truncated items have a count", input=["a", LONG], truncate="end",
          check=lambda answer: [item.get("truncated_tokens") for item in data(answer)] == [None, 146]),
    embed("key order of a truncated item", input=LONG, truncate="end", check=lambda answer: keys(answer) == (
        ["object", "data", "model", "usage", "truncated_tokens"], ["object", "embedding", "index", "truncated_tokens"])),
    embed("key order without truncated items", truncate="end", check=lambda answer: keys(answer) == (
        ["object", "data", "model", "usage", "truncated_tokens"], ["object", "embedding", "index"])),
    embed("special tokens stay", input=[[101, *[7592] * 300, 102], [101, *[7592] * 254, 102]], truncate="end",
          check=lambda answer: np.allclose(data(answer)[0]["embedding"], data(answer)[1]["embedding"], atol=1e-6)),
    fake("a prompt counts and stays", input=X70, truncate="end", prompt_name="query",
         check=has_vectors_of(f"query: {X70}"[:64]), json={"truncated_tokens": 13}),
    fake("with per_item", input=["a", X70], truncate="end", error_policy="per_item", check=has_vectors_of("a", X70[:64]),
         json={"truncated_tokens": 6}),
    embed("null", truncate=None, check=lambda answer: "truncated_tokens" not in answer.json()),
    embed("an empty word", truncate="", check=lambda answer: "truncated_tokens" not in answer.json()),
    fake("Cohere's and NIM's END", input=X70, truncate="END", check=has_vectors_of(X70[:64]), differs="names of truncate"),
    fake("Cohere's and NIM's START", input=X70, truncate="START", check=has_vectors_of(X70[6:])),
    invalid("Cohere's and NIM's NONE", "Input length 402 longer than allowed 256", input=LONG, truncate="NONE"),
    fake("TEI's side", input=X70, truncate=True, truncation_direction="Left", check=has_vectors_of(X70[6:])),
    fake("Voyage's true", input=X70, truncation=True, check=has_vectors_of(X70[:64])),
    invalid("Voyage's false", "Input length 402 longer than allowed 256", input=LONG, truncation=False),
    fake("vLLM's -1", input=X70, truncate_prompt_tokens=-1, check=has_vectors_of(X70[:64])),
    fake("vLLM's number", input=X70, truncate_prompt_tokens=64, check=has_vectors_of(X70[:64])),
    invalid("vLLM's number below the model's", "inputs are only cut to the model's 256 tokens; send -1",
            "truncate_prompt_tokens", truncate_prompt_tokens=128),
    invalid("names that contradict each other", "contradict each other; send only truncate", "truncate", truncate="NONE",
            truncation=True),
    invalid("a list", "truncate should be boolean or one of none, start, end", "truncate", truncate=["end"]),
    embed("nothing to truncate", truncate=True, json={"truncated_tokens": 0}, sends={"x-truncated-tokens": "0"}),
    embed("absent: no counts", check=lambda answer: "truncated_tokens" not in answer.json()
          and "x-truncated-tokens" not in answer.headers),
    fake("end", input=X70, truncate="end", check=has_vectors_of(X70[:64])),
    fake("start", input=X70, truncate="start", check=has_vectors_of(X70[6:])),
    fake("token ids", input=[ord(letter) for letter in X70], truncate="start", check=has_vectors_of(X70[6:])),
    invalid("none", "Input length 402 longer than allowed 256", input=LONG, truncate="none"),
    invalid("false", "Input length 402 longer than allowed 256", input=LONG, truncate=False),
    invalid("another word", "truncate should be boolean or one of none, start, end", "truncate", truncate="middle"),
    invalid("a number", "truncate should be boolean or one of none, start, end", "truncate", truncate=1),
]  # fmt: skip

PROMPTS = [
    fake("by name", input="abc", prompt_name="query", check=has_vectors_of("query: abc"), differs="prompts"),
    embed("in the name of the model", model=f"{FAKE}:query", server="fake", input="abc", check=has_vectors_of("query: abc"),
          differs="model names"),
    embed("an unknown one in the name of the model", 404, model=f"{FAKE}:other", server="fake", code="model_not_found"),
    fake("of every text", input=["a", "b"], prompt_name="document", check=has_vectors_of("passage: a", "passage: b")),
    fake("counts in usage", input="abc", prompt_name="query", json={"usage": {"prompt_tokens": 10, "total_tokens": 10}}),
    fake("none by default", input="abc", check=has_vectors_of("abc")),
    fake("query", input="abc", input_type="query", check=has_vectors_of("query: abc")),
    fake("search_query", input="abc", input_type="search_query", check=has_vectors_of("query: abc")),
    fake("document", input="abc", input_type="document", check=has_vectors_of("passage: abc")),
    fake("search_document", input="abc", input_type="search_document", check=has_vectors_of("passage: abc")),
    fake("passage", input="abc", input_type="passage", check=has_vectors_of("passage: abc")),
    strict("the default", input="abc", check=has_vectors_of("topic: abc")),
    strict("null chooses the default", input="abc", prompt_name=None, input_type=None, check=has_vectors_of("topic: abc")),
    strict("the default yields to a name", input="abc", prompt_name="query", check=has_vectors_of("query: abc")),
    strict("the default yields to a type", input="abc", input_type="document", check=has_vectors_of("passage: abc")),
    strict("the default by its name", input="abc", prompt_name="topic", check=has_vectors_of("topic: abc")),
    strict("a type that is the name of a prompt", input="abc", input_type="topic", check=has_vectors_of("topic: abc")),
    strict("the default is not for token ids", input=[97, 98], check=has_vectors_of("ab")),
    embed("an empty name", prompt_name="", input_type=""),
    embed("a type of another server, but the model has no prompts", input_type="classification", differs="input types",
          sends={"x-vecmill-warning": "input_type was ignored, because the model has no prompts"}),
    fake("Gemini's type", input="abc", input_type="RETRIEVAL_QUERY", check=has_vectors_of("query: abc")),
    embed("a type that the model has no prompt for", input_type="query",
          json={"usage": {"prompt_tokens": 4, "total_tokens": 4}}),
    fake("unknown name", 400, prompt_name="other", message="but the model has the prompts query, document", param="prompt_name"),
    invalid("a name, but the model has no prompts", "but the model has no prompts", "prompt_name", prompt_name="query"),
    fake("unknown type", 400, input_type="other", message="must be one of query, search_query", param="input_type"),
    fake("both", 400, prompt_name="query", input_type="query", message="exclude each other"),
    fake("with token ids", 400, prompt_name="query", input=[97], message="prompt_name needs texts", param="prompt_name"),
    fake("type with token ids", 400, input_type="query", input=[97], message="input_type needs texts", param="input_type"),
    invalid("a name of another type", "prompt_name should be string", "prompt_name", prompt_name=7),
    invalid("a type of another type", "input_type should be string", "input_type", input_type=["query"]),
]  # fmt: skip

NORMALIZE = [
    embed("as the model defines", check=lambda answer: abs(length(answer) - 1) < 1e-6),
    embed("true", normalize=True, check=lambda answer: abs(length(answer) - 1) < 1e-6),
    embed("false", normalize=False, check=lambda answer: length(answer) > 2, differs="normalize"),
    embed("false with fewer dimensions", normalize=False, dimensions=8, check=lambda answer: length(answer) != 1),
    fake("unnormalized model", input="abc", check=has_vectors_of("abc")),
    fake("unnormalized model, true", input="abc", normalize=True, check=lambda answer: abs(length(answer) - 1) < 1e-6),
    fake("unnormalized model, false", input="abc", normalize=False, check=has_vectors_of("abc")),
    embed("null", normalize=None, check=lambda answer: abs(length(answer) - 1) < 1e-6),
    invalid("a string", "normalize should be boolean", "normalize", normalize="yes"),
    invalid("a number", "normalize should be boolean", "normalize", normalize=1),
]

PER_ITEM = [
    fake("a long one", input=["a", "x" * 65, "b"], error_policy="per_item", check=has_outcomes("ok", "context_length_exceeded", "ok"),
         differs="one bad input"),
    fake("message of a long one", input=["a", "x" * 65], error_policy="per_item", check=lambda answer: data(answer)[1]["error"] == {
        "message": 'Input length 65 longer than allowed 64; shorten the input or set "truncate": "end"', "type": "invalid_request_error", "param": "input",
        "code": "context_length_exceeded"}),
    fake("an input on which the device fails", input=["a", "raise", "b"], error_policy="per_item",
         check=has_outcomes("ok", "internal_error", "ok")),
    fake("invalid token arrays", input=[[97], [], [200_000], [97] * 65], error_policy="per_item",
         check=has_outcomes("ok", None, "invalid_input", "context_length_exceeded")),
    fake("only invalid ones", input=[[], [200_000]], error_policy="per_item", check=has_outcomes(None, "invalid_input"),
         json={"usage": {"prompt_tokens": 0, "total_tokens": 0}}),
    fake("key order of an invalid one", input=["x" * 65], error_policy="per_item", check=lambda answer: keys(answer) == (
        ["object", "data", "model", "usage"], ["object", "embedding", "index", "error"])),
    fake("a deadline fails the whole request", 504, input=["a", "slow 1"], error_policy="per_item",
         headers={"x-vecmill-deadline-ms": "100"}, code="deadline_exceeded"),
    fake("a wrong form fails the whole request", 400, input=["a", 1], error_policy="per_item",
         message="input must be homogeneous"),
    fake("only valid ones", input=["a", "b"], error_policy="per_item", check=has_outcomes("ok", "ok")),
    fake("base64", input=["a", "x" * 65], error_policy="per_item", encoding_format="base64",
         check=has_outcomes("ok", "context_length_exceeded")),
    fake("usage counts the valid ones", input=["a", "x" * 65], error_policy="per_item",
         json={"usage": {"prompt_tokens": 1, "total_tokens": 1}}),
    fake("fail", 400, input=["a", "x" * 65], error_policy="fail", message="input 1: Input length 65 longer than allowed 64"),
    fake("fail names the input of a device error", 500, input=["a", "b", "raise"], message="input 2: the device failed"),
    embed("of an unknown model", 404, model="other", error_policy="per_item", code="model_not_found"),
    invalid("unknown policy", "error_policy should be fail or per_item", "error_policy", error_policy="skip"),
    invalid("policy a boolean", "error_policy should be string", "error_policy", error_policy=True),
]  # fmt: skip

SECTIONS = {
    "answer": ANSWERS,
    "dimensions": DIMENSIONS,
    "truncate": TRUNCATE,
    "prompt": PROMPTS,
    "normalize": NORMALIZE,
    "error_policy": PER_ITEM,
}
ROWS = name_rows(SECTIONS)
