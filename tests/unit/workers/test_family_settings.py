"""Readers of settings that model families share: rotary frequencies, layer types, choices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.models.family_settings import FULL, SLIDING, read_choice, read_frequencies, read_layer_types
from workers.models.json_files import ModelError

PATH = Path("config.json")
#: Frequencies of heads of 4 values with the base 100.
PLAIN = [1, 0.1]
SCALED = {"type": "ntk", "factor": 4}
LLAMA3 = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_theta": 100}, PLAIN),
        ({}, [1, 0.01]),
        ({"rope_theta": 100, "rope_scaling": None}, PLAIN),
        ({"rope_theta": 100, "rope_scaling": {"type": "linear", "factor": 4}}, [0.25, 0.025]),
        ({"rope_theta": 25, "rope_scaling": SCALED}, [0.5, 0.05]),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 100}}, PLAIN),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 100, "factor": 2}}, [0.5, 0.05]),
        # The new spelling repeats the old one, so that both together would scale twice.
        ({"rope_theta": 25, "rope_scaling": SCALED, "rope_parameters": {"rope_theta": 100}}, PLAIN),
        ({"rope_theta": 100, "rope_parameters": {"rope_type": "default"}}, PLAIN),
        # 64 positions hold 10.2 waves of the first frequency, which stays, and 1.02 of the second one.
        (
            {"rope_theta": 100, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            [1, 0.1 * (1 / 8 + 7 / 8 * (6.4 / (2 * np.pi) - 1) / 3)],
        ),
    ],
)
def test_frequencies_of_both_spellings(config: dict[str, Any], expected: list[float]) -> None:
    np.testing.assert_allclose(read_frequencies(PATH, config, 4), expected, rtol=1e-12)


def test_layer_types_have_their_own_frequencies() -> None:
    config = {"rope_parameters": {FULL: {"rope_theta": 100}, SLIDING: None}}
    np.testing.assert_allclose(read_frequencies(PATH, config, 4, layer_type=FULL), PLAIN)
    np.testing.assert_allclose(read_frequencies(PATH, config, 4, layer_type=SLIDING, theta=1e6), [1, 1e-3])


def test_old_spelling_scales_only_full_attention() -> None:
    config = {"rope_theta": 1e6, "local": 100, "rope_scaling": {"rope_type": "linear", "factor": 8}}
    local = read_frequencies(PATH, config, 4, layer_type=SLIDING, theta_key="local", is_scaled=False)
    np.testing.assert_allclose(local, PLAIN)


@pytest.mark.parametrize(
    ("config", "size", "named"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, 4, "yarn"),
        ({"rope_scaling": {"type": "linear"}}, 4, "factor"),
        ({"rope_scaling": {"type": "ntk", "factor": 2, "mixed_b": 0.5}}, 4, "mixed_b"),
        ({"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 1}}, 4, "low_freq_factor"),
        ({"rope_scaling": [1]}, 4, "rope_scaling"),
        ({"rope_theta": "10000"}, 4, "rope_theta"),
        ({"rope_parameters": {FULL: {"rope_theta": 1}}}, 4, "rope_parameters"),
        ({"partial_rotary_factor": 0.5}, 4, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, 4, "partial_rotary_factor"),
        ({}, 5, "5 values"),
        ({}, 2**31 - 2, "2147483646 values"),
    ],
)
def test_unknown_rotary_settings_are_refused(config: dict[str, Any], size: int, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        read_frequencies(PATH, config, size)


def test_flat_parameters_are_refused_for_layer_types() -> None:
    with pytest.raises(ModelError, match="each layer type"):
        read_frequencies(PATH, {"rope_parameters": {"rope_theta": 1}}, 4, layer_type=FULL)


def test_layer_types_are_checked() -> None:
    assert read_layer_types(PATH, {}, 2) is None
    assert read_layer_types(PATH, {"layer_types": [FULL, SLIDING]}, 2) == [FULL, SLIDING]
    for types in ([FULL], [FULL, "conv"], FULL):
        with pytest.raises(ModelError, match="layer_types"):
            read_layer_types(PATH, {"layer_types": types}, 2)


def test_choices_are_checked() -> None:
    assert read_choice(PATH, {}, "act", {"gelu": 1}, "gelu") == "gelu"
    for value in ("mish", 1, ["gelu"]):
        with pytest.raises(ModelError, match="act"):
            read_choice(PATH, {"act": value}, "act", {"gelu": 1}, "gelu")
