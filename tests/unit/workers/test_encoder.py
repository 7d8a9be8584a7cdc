"""Settings of encoders: what is read from config.json, and what is refused with the key that asked for it."""

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op
import pytest

from tests.harness.families import TOLERANCE, Graph, measure_difference, read_golden
from workers.models.encoder import find_buckets
from workers.models.json_files import ModelError
from workers.models.layout import PaddedLayout

NEW_CODE = {"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig", "AutoModel": "modeling.NewModel"}
NOMIC_CODE = {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}
JINA_CODE = {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"}
OTHER_CODE = {"AutoModel": "somebody/model--modeling.OtherModel"}
#: nomic_bert's spelling since transformers 5, of which some folders have both.
NOMIC_NEW: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
NOMIC_NEW |= {
    "intermediate_size": 80,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    "layer_norm_eps": 1e-12,
}


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, 'position_embedding_type is "relative_key"'),
        ("bert", {"is_decoder": True}, "is_decoder is true"),
        ("bert", {"hidden_act": "mish"}, "hidden_act 'mish' is not supported; Vecmill supports gelu, "),
        ("bert", {"auto_map": JINA_CODE}, "auto_map asks for code that comes with the model"),
        ("bert", {"auto_map": "x"}, "auto_map asks for code"),
        ("bert", {"auto_map": {"AutoModel": ["a.B", None]}}, "auto_map asks for code"),
        ("bert", {"num_hidden_layers": 2}, None),
        ("xlm-roberta", {"auto_map": OTHER_CODE}, "auto_map asks for code"),
        ("xlm-roberta", {"position_embedding_type": "alibi"}, 'position_embedding_type is "alibi"'),
        ("xlm-roberta", {"pad_token_id": -1}, "pad_token_id is -1"),
        ("xlm-roberta", {"type_vocab_size": 2}, r"token_type_embeddings.weight has the shape \(1, 64\)"),
        ("mpnet", {"relative_attention_num_buckets": 16}, r"relative_attention_bias.weight has the shape \(32, 4\)"),
        ("mpnet", {"auto_map": OTHER_CODE}, "auto_map"),
        ("distilbert", {"activation": "mish"}, "activation 'mish'"),
        ("distilbert", {"n_heads": 3}, "dim 64 is not a multiple of n_heads 3"),
        ("distilbert", {"dim": None}, "dim is None"),
        ("distilbert", {"auto_map": OTHER_CODE}, "auto_map"),
        ("new", {"auto_map": OTHER_CODE}, "auto_map"),
        ("new", {"logn_attention_scale": True}, "logn_attention_scale is true"),
        ("new", {"layer_norm_type": "rms_norm"}, 'layer_norm_type is "rms_norm"'),
        ("new", {"pack_qkv": False}, "pack_qkv is false"),
        ("new", {"position_embedding_type": "absolute"}, 'position_embedding_type is "absolute"'),
        ("new", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ("new", {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 1.0}}, "mixed_b"),
        ("new", {"type_vocab_size": -1}, "type_vocab_size is -1"),
        ("new", {"type_vocab_size": 0}, "embeddings.token_type_embeddings.weight, which other models"),
        ("new-no-types", {"type_vocab_size": 1}, "no tensor embeddings.token_type_embeddings.weight"),
        ("gte", {"head_dim": 32}, "head_dim is 32"),
        ("nomic_bert", {"prenorm": True}, "prenorm is true"),
        ("nomic_bert", {"parallel_block": True}, "parallel_block is true"),
        ("nomic_bert", {"rotary_emb_interleaved": True}, "rotary_emb_interleaved is true"),
        ("nomic_bert", {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction is 0.5"),
        ("nomic_bert", {"rotary_emb_scale_base": 512}, "rotary_emb_scale_base is 512"),
        ("nomic_bert", {"use_rms_norm": True}, "use_rms_norm is true"),
        ("nomic_bert", {"causal": True}, "causal is true"),
        ("nomic_bert", {"qkv_proj_bias": True}, "Wqkv.bias"),
        ("nomic_bert", {"mlp_fc1_bias": "no"}, "mlp_fc1_bias is 'no'"),
        ("nomic_bert", {"activation_function": "glu"}, "activation_function 'glu'"),
        ("nomic_bert", {"activation_function": ["swiglu"]}, r"activation_function \['swiglu'\]"),
        ("nomic_bert", {"activation_function": "gelu"}, r"no tensor encoder.layers.0.mlp.fc1.weight"),
        ("nomic_bert", {"auto_map": OTHER_CODE}, "auto_map"),
        ("nomic_bert-moe", {"moe_normalize_expert_weights": True}, "moe_normalize_expert_weights is true"),
        ("nomic_bert-moe", {"expert_choice_router": True}, "expert_choice_router is true"),
        ("nomic_bert-moe", {"num_shared_experts": 1}, "num_shared_experts is 1"),
        ("nomic_bert-moe", {"ffn_div": 2}, "ffn_div is 2"),
        ("nomic_bert-moe", {"moe_top_k": 9}, "moe_top_k is 9"),
        ("nomic_bert-moe", {"num_experts": 4}, r"router.layer.weight has the shape \(8, 64\)"),
        ("nomic_bert-moe", {"moe_every_n_layers": 0}, "no tensor encoder.layers.1.mlp.fc1.weight"),
        ("nomic_bert-moe", {"qkv_proj_bias": False}, "Wqkv.bias, which other models of this model_type do not have"),
        ("jina_embeddings_v3", {"auto_map": OTHER_CODE}, "auto_map"),
    ],
)
def test_unsupported_settings_are_named(name: str, changes: dict[str, Any], named: str | None) -> None:
    if named is None:  # fewer layers than the file has: other states, but no error
        Graph(read_golden(name), **changes)
        return
    with pytest.raises(ModelError, match=named):
        Graph(read_golden(name), **changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert", {"position_embedding_type": "absolute", "is_decoder": False, "auto_map": None}),
        ("distilbert", {"layer_norm_eps": 0.5, "hidden_size": 64}),
        ("mpnet", {"pad_token_id": 0}),
        ("gte", {"rope_parameters": None}),
        ("new", {"auto_map": NEW_CODE}),
        ("new", {"rope_parameters": {"rope_type": "linear", "rope_theta": 40000.0, "factor": 4 ** (2 / 16)}}),
        ("nomic_bert", {"auto_map": NOMIC_CODE}),
        ("nomic_bert", NOMIC_NEW | {"hidden_act": "silu"}),
        ("nomic_bert", {"rotary_scaling_factor": 2.0}),
        ("nomic_bert-moe", {"rotary_emb_scale_base": None, "hidden_act": "silu"}),
    ],
)
def test_spellings_with_the_same_states(name: str, changes: dict[str, Any]) -> None:
    golden = read_golden(name)
    assert measure_difference(golden, Graph(golden, **changes)) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert", {"hidden_act": "gelu_new"}),
        ("bert", {"layer_norm_eps": 1e-3}),
        ("xlm-roberta", {"pad_token_id": 0}),
        ("new", {"rope_scaling": None}),
        ("new", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("nomic_bert", {"rotary_emb_base": 10000}),
        ("nomic_bert", {"activation_function": "geglu"}),
        ("nomic_bert-native", {"hidden_act": "gelu"}),
        ("nomic_bert-moe", {"moe_top_k": 3}),
        ("nomic_bert-moe", {"activation_function": "relu"}),
    ],
)
def test_settings_change_the_states(name: str, changes: dict[str, Any]) -> None:
    golden = read_golden(name)
    assert measure_difference(golden, Graph(golden, **changes)) > 10 * TOLERANCE


def test_distances_have_the_buckets_of_the_equations() -> None:
    rows = find_buckets(np.arange(-300, 301), 32)
    assert rows[300 - 7 : 300 + 8].tolist() == [7, 6, 5, 4, 3, 2, 1, 0, 17, 18, 19, 20, 21, 22, 23]
    assert rows[[300 - 8, 300 - 11, 300 - 12, 300 - 16, 300 - 32, 300 - 64]].tolist() == [8, 8, 9, 10, 12, 14]
    assert (rows[: 300 - 127] == 15).all()
    assert (rows[300 + 128 :] == 31).all()


def test_padding_inside_a_text_has_no_position() -> None:
    layout = PaddedLayout()
    rows = layout.embed_positions(op.constant(np.arange(20, dtype=np.float32).reshape(20, 1)), 2)
    compiled = ov.Core().compile_model(ov.Model([rows], layout.inputs), "CPU")
    ids = np.array([[5, 1, 7, 9, 1, 1, 12], [0, 4, 1, 1, 1, 1, 1]])
    found = compiled([ids, np.ones_like(ids)])[0]
    assert found[..., 0].tolist() == [[2, 1, 3, 4, 1, 1, 5], [2, 3, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("bert", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but must be a whole number from 1 to"),
        ("qwen3", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ("modernbert", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ("gte", {"hidden_size": 2**30, "num_attention_heads": 1}, "heads have 1073741824 values"),
        ("qwen3", {"head_dim": 2**30}, "heads have 1073741824 values"),
    ],
)
def test_huge_sizes_are_refused_before_memory_is_needed(name: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        Graph(read_golden(name), **changes)
