"""Hidden states of every family against transformers, on the golden models of `tests/data/families`."""

import numpy as np
import pytest

from tests.harness.families import (
    FAMILIES,
    TOLERANCE,
    Graph,
    PackedGraph,
    measure_difference,
    measure_least_cosine,
    pad_texts,
    read_golden,
    summarize_states,
)
from workers.models.prepare import FAMILIES as BUILDERS

NAMES = sorted(path.name for path in FAMILIES.iterdir())
#: Rotary positions are relative, so padding on the left does not change the states.
ROTARY = ["modernbert", "qwen3", "qwen3-bidirectional", "mistral", "gemma3_text", "gemma3_text-causal"]


@pytest.mark.parametrize("graph", [Graph, PackedGraph])
@pytest.mark.parametrize("name", NAMES)
def test_states_equal_those_of_transformers(name: str, graph: type[Graph]) -> None:
    golden = read_golden(name)
    assert measure_difference(golden, graph(golden)) <= TOLERANCE


#: Lowest cosine of a state to that of transformers. OpenVINO computes in float32 if a CPU has no bfloat16.
LEAST_COSINES = {"bf16": 0.9995, "int8": 0.997}


@pytest.mark.parametrize("precision", LEAST_COSINES)
@pytest.mark.parametrize("name", NAMES)
def test_states_are_close_in_other_precisions(name: str, precision: str) -> None:
    golden = read_golden(name)
    assert measure_least_cosine(golden, PackedGraph(golden, precision)) >= LEAST_COSINES[precision]


@pytest.mark.parametrize("name", ROTARY)
def test_left_padding_gives_the_same_states(name: str) -> None:
    golden = read_golden(name)
    states = Graph(golden)(*pad_texts(golden.texts, left=True))
    assert np.isfinite(states).all()
    for row, text, expected in zip(states, golden.texts, golden.states, strict=True):
        np.testing.assert_allclose(summarize_states(row[-len(text) :]), expected, atol=3 * TOLERANCE)


@pytest.mark.parametrize(
    ("name", "is_causal"),
    [
        ("qwen3", True),
        ("qwen3-bidirectional", False),
        ("qwen2", True),
        ("mistral", True),
        ("mistral-bidirectional", False),
        ("llama", True),
        ("gemma3_text", False),
        ("gemma3_text-causal", True),
        ("eurobert", False),
    ],
)
def test_only_bidirectional_models_see_later_tokens(name: str, is_causal: bool) -> None:
    golden = read_golden(name)
    infer, text = Graph(golden), golden.texts[2]
    changed = np.where(np.arange(len(text)) == len(text) - 1, 5 + (text + 1) % 100, text)
    difference = np.abs(infer(*pad_texts([text])) - infer(*pad_texts([changed])))[0, :-1].max()
    assert (difference < TOLERANCE) == is_causal


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "modernbert", "eurobert"])
def test_device_runs_fused_operations(name: str) -> None:
    golden = read_golden(name)
    kinds, layers = PackedGraph(golden).count_operations(), golden.config["num_hidden_layers"]
    assert kinds["RoPE"] == 2 * layers
    assert kinds["RMS" if name != "modernbert" else "MVN"] >= 2 * layers
    assert kinds["Softmax"] == kinds["MatMul"] == 0


def test_every_family_has_a_golden_model() -> None:
    assert {read_golden(name).config["model_type"] for name in NAMES} == set(BUILDERS)
