"""Settings of decoders and of ModernBERT: what is read from config.json, and what is refused."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.harness.families import TOLERANCE, Graph, measure_difference, read_golden
from workers.models.json_files import ModelError

REMOTE = {"AutoConfig": "a.Config", "AutoModel": "a.Model"}


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("qwen2", {"auto_map": REMOTE}, "is_causal"),
        ("qwen2", {"auto_map": {"AutoModelForCausalLM": "a.B"}}, "AutoModelForCausalLM"),
        ("qwen2", {"auto_map": REMOTE, "is_causal": None}, "unknown whether attention is causal"),
        ("eurobert", {"auto_map": REMOTE}, "auto_map"),
        ("modernbert", {"auto_map": REMOTE}, "auto_map"),
        ("qwen3", {"is_causal": True, "use_bidirectional_attention": True}, "contradict"),
        ("qwen3", {"is_causal": "false"}, "is_causal"),
        ("qwen3", {"num_attention_heads": 3}, "num_key_value_heads"),
        ("qwen3", {"hidden_act": "mish"}, "mish"),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "yarn"),
        ("qwen3", {"head_dim": 16}, "q_proj"),
        ("qwen3", {"num_hidden_layers": 4}, r"layers\.3\."),
        ("qwen3", {"num_hidden_layers": 2**31 - 1}, "num_hidden_layers"),
        ("qwen3", {"head_dim": 2**31 - 2}, "2147483646 values"),
        ("modernbert", {"num_hidden_layers": 2**31 - 1}, "num_hidden_layers"),
        ("modernbert", {"hidden_size": 2**31 - 2, "num_attention_heads": 1}, "2147483646 values"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "use_sliding_window"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("mistral", {"use_bidirectional_attention": True}, "sliding_window"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("modernbert", {"num_attention_heads": 5}, "num_attention_heads"),
        ("modernbert", {"hidden_activation": "mish"}, "mish"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types"),
        ("modernbert", {"norm_bias": True}, r"norm\.bias"),
        ("modernbert", {"local_attention": 0}, "local_attention"),
    ],
)
def test_unsupported_settings_are_named(name: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        Graph(read_golden(name), **changes)


@pytest.mark.parametrize(
    ("name", "other", "changes"),
    [
        ("qwen3", "qwen3", {"auto_map": REMOTE, "is_causal": True}),
        ("qwen3", "qwen3", {"auto_map": {"AutoConfig": "a.Config"}}),
        ("gemma3_text", "gemma3_text", {"auto_map": REMOTE}),
        ("gemma3_text", "gemma3_text", {"layer_types": None}),
        (
            "gemma3_text",
            "gemma3_text",
            {"layer_types": None, "sliding_window_pattern": 3, "_sliding_window_pattern": 2},
        ),
        ("qwen3-bidirectional", "qwen3-bidirectional", {"is_causal": None, "use_bidirectional_attention": True}),
        ("qwen2-window", "qwen2", {"use_sliding_window": False, "layer_types": None}),
        ("qwen2-window", "qwen2-window", {"layer_types": None}),
        ("mistral", "mistral", {"layer_types": ["sliding_attention"] * 3}),
        ("mistral", "mistral", {"sliding_window": 16, "is_causal": True}),
        ("modernbert-biases", "modernbert-biases", {"layer_types": None, "global_attn_every_n_layers": 3}),
    ],
)
def test_spellings_with_the_same_states(name: str, other: str, changes: dict[str, Any]) -> None:
    assert measure_difference(read_golden(other), Graph(read_golden(name), **changes)) <= TOLERANCE


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_windows_can_be_absent(family: str) -> None:
    golden = read_golden(family)
    absent = measure_difference(golden, Graph(golden, sliding_window=None))
    assert (absent > 100 * TOLERANCE) == (family == "mistral")


def test_a_window_as_long_as_the_text_is_none() -> None:
    golden = read_golden("mistral")
    whole = golden._replace(texts=golden.texts[:3], states=golden.states[:3])
    assert measure_difference(whole, Graph(golden, sliding_window=None)) <= TOLERANCE


def test_extra_layers_of_remote_code_are_refused(tmp_path: Path) -> None:
    golden = read_golden("qwen2")
    tensors = load_file(golden.path / "model.safetensors")
    for extra, is_refused in (("lm_head.weight", False), ("linear.weight", True)):
        save_file(tensors | {extra: np.ones((2, 64), np.float32)}, tmp_path / "model.safetensors")
        Graph(golden._replace(path=tmp_path))
        with pytest.raises(ModelError, match=extra) if is_refused else contextlib.nullcontext():
            Graph(golden._replace(path=tmp_path), auto_map=REMOTE, is_causal=False)
