"""Configurations of the golden models that `scripts/make_goldens.py` writes: every family, in old and new spellings."""

from typing import Any, NamedTuple

SIZES = {
    "vocab_size": 200,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: The heads together have more values than the states: 96.
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 24}
#: Names of GPT-2, which nomic_bert uses on the hub.
NOMIC = {
    "vocab_size": 200,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 80,
    "n_positions": 2048,
    "max_trained_positions": 2048,
    "causal": False,
    "prenorm": False,
    "parallel_block": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "use_rms_norm": False,
}
NTK_FACTOR, NTK_THETA = 4.0, 10000.0
#: transformers has no `ntk`; this linear scaling gives the same frequencies (models of Alibaba-NLP, head size 16).
NTK_AS_LINEAR = {"rope_type": "linear", "rope_theta": NTK_THETA * NTK_FACTOR, "factor": NTK_FACTOR ** (2 / 16)}
GTE_SIZES = {**SIZES, "max_position_embeddings": 1024, "layer_norm_eps": 1e-12}
NEW = {
    **GTE_SIZES,
    "model_type": "new",
    "layer_norm_type": "layer_norm",
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
    "pack_qkv": True,
    "position_embedding_type": "rope",
    "rope_theta": NTK_THETA,
    "rope_scaling": {"type": "ntk", "factor": NTK_FACTOR},
    "unpad_inputs": "true",
    "use_memory_efficient_attention": "false",
}
GEMMA = {
    **GROUPED,
    "num_hidden_layers": 4,
    "max_position_embeddings": 2048,
    "query_pre_attn_scalar": 20,
    "sliding_window": 16,
}
MODERN = {**SIZES, "num_hidden_layers": 4, "max_position_embeddings": 1024, "local_attention": 16, "pad_token_id": 3}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


class Recipe(NamedTuple):
    """How a golden model is made."""

    #: Class of the configuration in transformers without `Config`, such as "Bert".
    family: str
    #: What transformers reads.
    config: dict[str, Any]
    #: config.json, if it has another spelling than transformers writes.
    spelling: dict[str, Any] | None = None
    #: Name of the model whose weights this model has.
    weights: str = ""
    #: Put before the names of the tensors.
    prefix: str = ""
    #: Type of the stored weights, a name in torch.
    dtype: str = "float16"


def _respell(base: dict[str, Any], model_type: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, **base, **changes}


RECIPES = {
    "bert": Recipe("Bert", SIZES, prefix="bert."),
    "bert-relu": Recipe("Bert", {**SIZES, "hidden_act": "relu", "layer_norm_eps": 1e-5}, weights="bert"),
    "roberta": Recipe("Roberta", {**SIZES, "max_position_embeddings": 514, "pad_token_id": 1, "type_vocab_size": 2}),
    "xlm-roberta": Recipe(
        "XLMRoberta",
        {**SIZES, "max_position_embeddings": 514, "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
        prefix="roberta.",
    ),
    "camembert": Recipe(
        "Camembert",
        {**SIZES, "max_position_embeddings": 514, "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "mpnet": Recipe("MPNet", {**SIZES, "max_position_embeddings": 514, "layer_norm_eps": 1e-5, "pad_token_id": 1}),
    "distilbert": Recipe(
        "DistilBert",
        {
            "vocab_size": 200,
            "dim": 64,
            "n_layers": 3,
            "n_heads": 4,
            "hidden_dim": 80,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
        },
        prefix="distilbert.",
        dtype="float32",
    ),
    "modernbert": Recipe(
        "ModernBert",
        {**MODERN, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0},
        spelling=_respell(
            MODERN,
            "modernbert",
            global_attn_every_n_layers=3,
            global_rope_theta=160000.0,
            local_rope_theta=10000.0,
            hidden_activation="gelu",
            norm_eps=1e-5,
            norm_bias=False,
            attention_bias=False,
            mlp_bias=False,
            pad_token_id=None,
            position_embedding_type="absolute",
        ),
        prefix="model.",
    ),
    "modernbert-biases": Recipe(
        "ModernBert",
        {
            **MODERN,
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "hidden_activation": "silu",
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 20000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "gte": Recipe("Gte", {**GTE_SIZES, "pad_token_id": 1}, dtype="bfloat16"),
    "new": Recipe(
        "Gte",
        {**GTE_SIZES, "type_vocab_size": 2, "rope_parameters": NTK_AS_LINEAR},
        spelling={**NEW, "type_vocab_size": 2},
        prefix="new.",
    ),
    # As on the hub after a switch to transformers' own model: three keys for one scaling.
    "gte-scaled": Recipe(
        "Gte",
        {**GTE_SIZES, "type_vocab_size": 2, "rope_parameters": NTK_AS_LINEAR},
        spelling={**NEW, "type_vocab_size": 2, "model_type": "gte", "rope_parameters": NTK_AS_LINEAR},
        weights="new",
    ),
    "new-no-types": Recipe(
        "Gte",
        {**GTE_SIZES, "type_vocab_size": 0},
        spelling={**NEW, "type_vocab_size": 0, "rope_theta": 160000.0, "rope_scaling": None},
    ),
    "nomic_bert": Recipe(
        "NomicBert",
        {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}, "max_position_embeddings": 2048},
        spelling={
            **NOMIC,
            "model_type": "nomic_bert",
            "activation_function": "swiglu",
            "layer_norm_epsilon": 1e-12,
            "rotary_emb_base": 1000,
            "type_vocab_size": 2,
            "qkv_proj_bias": False,
            "mlp_fc1_bias": False,
            "mlp_fc2_bias": False,
            "pad_token_id": 0,
        },
    ),
    "nomic_bert-native": Recipe(
        "NomicBert",
        {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 20.0}, "max_position_embeddings": 2048},
        weights="nomic_bert",
    ),
    "nomic_bert-moe": Recipe(
        "",
        {
            **NOMIC,
            "model_type": "nomic_bert",
            "n_inner": 48,
            "activation_function": "gelu",
            "layer_norm_epsilon": 1e-5,
            "rotary_emb_base": 10000,
            "type_vocab_size": 1,
            "qkv_proj_bias": True,
            "mlp_fc1_bias": True,
            "mlp_fc2_bias": True,
            "moe_every_n_layers": 2,
            "moe_top_k": 2,
            "moe_normalize_expert_weights": False,
            "num_experts": 8,
            "num_shared_experts": 0,
            "expert_choice_router": False,
            "ffn_div": 1,
            "pad_token_id": 1,
        },
    ),
    "jina_embeddings_v3": Recipe("JinaEmbeddingsV3", {**SIZES, "max_position_embeddings": 1024}),
    "qwen3": Recipe(
        "Qwen3",
        {**GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "pad_token_id": 3},
        spelling=_respell(
            GROUPED,
            "qwen3",
            hidden_act="silu",
            rms_norm_eps=1e-6,
            rope_theta=1000000,
            rope_scaling=None,
            attention_bias=False,
            sliding_window=None,
            use_sliding_window=False,
            max_window_layers=3,
            pad_token_id=3,
        ),
        prefix="model.",
        dtype="bfloat16",
    ),
    "qwen3-bidirectional": Recipe(
        "Qwen3",
        {**GROUPED, "is_causal": False, "attention_bias": False, "pad_token_id": 3},
        weights="qwen3",
        dtype="bfloat16",
    ),
    "qwen2": Recipe("Qwen2", {**SIZES, "num_key_value_heads": 1, "pad_token_id": 3}, prefix="model."),
    "qwen2-window": Recipe(
        "Qwen2",
        {
            **SIZES,
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 1,
            "pad_token_id": 3,
        },
        weights="qwen2",
    ),
    "mistral": Recipe(
        "Mistral",
        {**GROUPED, "sliding_window": 16},
        spelling=_respell(GROUPED, "mistral", sliding_window=16, rope_theta=10000.0, rms_norm_eps=1e-6),
    ),
    "mistral-bidirectional": Recipe(
        "Mistral", {**GROUPED, "sliding_window": 16, "is_causal": False}, weights="mistral"
    ),
    "llama": Recipe(
        "Llama",
        {**SIZES, "attention_bias": True, "mlp_bias": True, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
        spelling=_respell(
            SIZES,
            "llama",
            hidden_act="silu",
            rms_norm_eps=1e-6,
            rope_theta=500000.0,
            rope_scaling=LLAMA3,
            attention_bias=True,
            mlp_bias=True,
        ),
    ),
    "llama-linear": Recipe(
        "Llama",
        {
            **SIZES,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        },
        weights="llama",
    ),
    "eurobert": Recipe(
        "EuroBert",
        {
            **SIZES,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0},
            "pad_token_id": 3,
            "mask_token_id": 4,
        },
        spelling=_respell(
            SIZES,
            "eurobert",
            num_key_value_heads=2,
            head_dim=16,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            rope_theta=250000,
            rope_scaling=None,
            attention_bias=False,
            mlp_bias=False,
            pad_token_id=3,
            auto_map={
                "AutoConfig": "configuration_eurobert.EuroBertConfig",
                "AutoModel": "modeling_eurobert.EuroBertModel",
            },
        ),
    ),
    "gemma3_text": Recipe(
        "Gemma3Text",
        {**GEMMA, "use_bidirectional_attention": True, "sliding_window_pattern": 3},
        spelling=_respell(
            GEMMA,
            "gemma3_text",
            use_bidirectional_attention=True,
            _sliding_window_pattern=3,
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            rope_theta=1000000.0,
            rope_local_base_freq=10000.0,
            rope_scaling=None,
            rms_norm_eps=1e-6,
            hidden_activation="gelu_pytorch_tanh",
            attention_bias=False,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
        ),
        prefix="model.",
    ),
    "gemma3_text-causal": Recipe(
        "Gemma3Text",
        {
            **GEMMA,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 20000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        weights="gemma3_text",
    ),
}
