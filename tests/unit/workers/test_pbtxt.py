"""Protobuf's text format."""

import pytest

from tests.harness.ovms_folders import GRAPH_2024_05, GRAPH_SEED, GRAPH_TODAY
from workers.models.pbtxt import MAX_CHARACTERS, MAX_DEPTH, PbtxtError, parse_pbtxt


def test_graph_of_the_seed_is_read() -> None:
    graph = parse_pbtxt(GRAPH_SEED)
    assert graph["input_stream"] == ["REQUEST_PAYLOAD:input"]
    assert [node["calculator"] for node in graph["node"]] == [
        ["OpenVINOModelServerSessionCalculator"],
        ["OpenVINOModelServerSessionCalculator"],
        ["EmbeddingsCalculator"],
    ]
    options = graph["node"][1]["node_options"][0]["mediapipe.OpenVINOModelServerSessionCalculatorOptions"][0]
    assert options == {"servable_name": ["embeddings_model"], "servable_version": ["1"]}
    assert graph["node"][2]["input_side_packet"] == ["TOKENIZER_SESSION:tokenizer", "EMBEDDINGS_SESSION:embeddings"]


def test_graph_of_2024_5_is_read() -> None:
    last = parse_pbtxt(GRAPH_2024_05)["node"][-1]
    assert last["node_options"] == [{"mediapipe.EmbeddingsCalculatorOptions": [{"normalize_embeddings": ["true"]}]}]


def test_graph_of_today_is_read() -> None:
    (node,) = parse_pbtxt(GRAPH_TODAY)["node"]
    assert node["node_options"][0]["mediapipe.EmbeddingsCalculatorOVOptions"][0] == {
        "models_path": ["./"],
        "plugin_config": ['{"NUM_STREAMS": "2"}'],
        "normalize_embeddings": ["true"],
        "pooling": ["MEAN"],
        "truncate": ["true"],
        "target_device": ["CPU"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", {}),
        ("# only a comment", {}),
        ('a: "#{" # comment\nb: 1', {"a": ["#{"], "b": ["1"]}),
        ("a: 1, b: 2; c: -3.5f", {"a": ["1"], "b": ["2"], "c": ["-3.5f"]}),
        ("a { b: 1 } a: { b: 2 }", {"a": [{"b": ["1"]}, {"b": ["2"]}]}),
        ("a < b: 1 >", {"a": [{"b": ["1"]}]}),
        ("a: [1, 2] b: [] c [{d: 1}, {d: 2}]", {"a": ["1", "2"], "b": [], "c": [{"d": ["1"]}, {"d": ["2"]}]}),
        ("""a: 'x"y' "z" 'w'""", {"a": ['x"yzw']}),
        (r"a: '\x41\101\n\\\'\u00e9\U0001F600'", {"a": ["AA\n\\'é😀"]}),
        (r"a: '\U99999999'", {"a": ["\ufffd"]}),
        ("[a.b/c.D]: {x: CLS}", {"c.D": [{"x": ["CLS"]}]}),
        ("[ a.b ] {x: t}", {"a.b": [{"x": ["t"]}]}),
        ("a: 'x'b:1", {"a": ["x"], "b": ["1"]}),
    ],
)
def test_every_form_of_a_field_is_read(text: str, message: object) -> None:
    assert parse_pbtxt(text) == message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\n}", "line 2: expected a name or a value, not '}'"),
        ("a {", "line 1: expected a name or a value, not ''"),
        ("a { b: 1 >", "line 1: expected a name or a value, not '>'"),
        ("a: 'x", 'line 1: unexpected "\'"'),
        ("a: 'x\n'", 'line 1: unexpected "\'"'),
        ("a 1", "line 1: expected : or {"),
        ("[a.b: 1", "line 1: expected ]"),
        ("a: [1 2]", "line 1: expected , or ]"),
        ("a: =", "line 1: unexpected '='"),
        ("a:", "line 1: expected a name or a value, not ''"),
        ("'a': 1", "line 1: expected a name or a value, not \"'a'\""),
        ("a {" * (MAX_DEPTH + 1), f"line 1: more than {MAX_DEPTH} nested messages"),
        (" " * (MAX_CHARACTERS + 1), f"longer than {MAX_CHARACTERS} characters"),
    ],
)
def test_error_names_the_line(text: str, reason: str) -> None:
    with pytest.raises(PbtxtError) as error:
        parse_pbtxt(text)
    assert str(error.value) == reason


def test_text_equal_to_closing_sign_is_no_end() -> None:
    with pytest.raises(PbtxtError):
        parse_pbtxt("a { '}' }")


@pytest.mark.parametrize("escape", [r"\x00", r"\0", r"\ud800", r"\U0000dfff"])
def test_text_that_cannot_be_sent_is_refused(escape: str) -> None:
    with pytest.raises(PbtxtError, match="line 1: a text has NUL or half of a surrogate pair"):
        parse_pbtxt(f'a: "{escape}"')
