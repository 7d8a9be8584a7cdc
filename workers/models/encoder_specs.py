"""Settings of an encoder in config.json, for each family, in old and new spellings. Does not import OpenVINO.

The tensor names are those of the files on the Hugging Face hub, which transformers 5 still writes.
"""

import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.models.family_settings import read_frequencies, refuse_code
from workers.models.json_files import (
    EXPORT,
    MAX_COUNT,
    MAX_LAYERS,
    REMEDY,
    ModelError,
    read_count,
    read_flag,
    read_number,
)

#: Activation of the gate for each gated layer of nomic_bert.
_NOMIC_GATES = {"swiglu": "silu", "geglu": "gelu"}
#: Families whose first token has the position after `pad_token_id`.
_ROBERTAS = ("roberta", "xlm-roberta", "camembert")
#: transformers' code for MPNet has the padding token 1, whatever config.json contains.
_MPNET_START = 2
_MAX_EXPERTS = 256
_NO_KEYS: Mapping[str, str] = {}


class Linear(NamedTuple):
    """A linear layer: where its weight is, after the name of the layer that contains it."""

    name: str
    bias: bool = True
    #: The nth of how many equal blocks of rows of the tensor.
    part: tuple[int, int] = (0, 1)


@dataclass(slots=True, frozen=True)
class Experts:
    """Mixture of experts: every nth layer has several feed-forward layers, of which each token uses a few."""

    count: int
    chosen: int
    every: int


@dataclass(slots=True, frozen=True, kw_only=True)
class Spec:
    """An encoder with a norm after each residual: shape, and names of its tensors."""

    vocabulary: int
    hidden: int
    heads: int
    layers: int
    #: Width of the feed-forward layers.
    inner: int
    epsilon: float
    #: Name of the activation function, and the key in config.json that has it.
    activation: Any
    activation_key: str
    #: Rows of the table of token types, of which row 0 is used. 0 if there is no table.
    token_types: int = 0
    #: Rows of the table of positions. 0 if there is no table.
    positions: int = 0
    #: Row of the first token in the table of positions.
    first_position: int = 0
    #: Rows of the table of biases for distances between tokens. 0 if there is no table.
    distances: int = 0
    #: Rotary angles per position, or None if positions are not rotary.
    frequencies: NDArray[np.float64] | None = None
    experts: Experts | None = None
    embedding_norm: str = "embeddings.LayerNorm"
    #: Layer 3 has the name `encoder.layer.3.`, followed by the names below.
    layer: str = "encoder.layer"
    query: Linear
    key: Linear
    value: Linear
    out: Linear
    attention_norm: str
    #: Activated factor of a gated feed-forward layer, or None if the layer is plain.
    gate: Linear | None = None
    up: Linear
    down: Linear
    output_norm: str


def read_spec(path: Path, config: dict[str, Any]) -> Spec:
    """Return the settings of a config.json. Raise `ModelError` if a value is missing, invalid or not supported."""
    return _READERS[config["model_type"]](path, config)


def _read_bert(path: Path, config: dict[str, Any]) -> Spec:
    refuse_code(path, config)
    return _read_classic(path, config, token_types=read_count(path, config, "type_vocab_size", default=2))


def _read_roberta(path: Path, config: dict[str, Any]) -> Spec:
    refuse_code(path, config)
    token_types, first = read_count(path, config, "type_vocab_size", default=2), _read_first_position(path, config)
    return _read_classic(path, config, token_types=token_types, first_position=first)


def _read_first_position(path: Path, config: dict[str, Any]) -> int:
    return read_count(path, config, "pad_token_id", 0, default=1) + 1


def _read_classic(path: Path, config: dict[str, Any], **fields: Any) -> Spec:
    """Return the spec of BERT, whose names RoBERTa has, too."""
    _refuse(path, config, "position_embedding_type", "absolute")
    _refuse(path, config, "is_decoder", False)
    return Spec(
        **_read_sizes(path, config) | fields,
        positions=read_count(path, config, "max_position_embeddings"),
        query=Linear("attention.self.query"),
        key=Linear("attention.self.key"),
        value=Linear("attention.self.value"),
        out=Linear("attention.output.dense"),
        attention_norm="attention.output.LayerNorm",
        up=Linear("intermediate.dense"),
        down=Linear("output.dense"),
        output_norm="output.LayerNorm",
    )


def _read_mpnet(path: Path, config: dict[str, Any]) -> Spec:
    refuse_code(path, config)
    return Spec(
        **_read_sizes(path, config),
        positions=read_count(path, config, "max_position_embeddings"),
        first_position=_MPNET_START,
        distances=read_count(path, config, "relative_attention_num_buckets", 4, default=32),
        query=Linear("attention.attn.q"),
        key=Linear("attention.attn.k"),
        value=Linear("attention.attn.v"),
        out=Linear("attention.attn.o"),
        attention_norm="attention.LayerNorm",
        up=Linear("intermediate.dense"),
        down=Linear("output.dense"),
        output_norm="output.LayerNorm",
    )


def _read_distilbert(path: Path, config: dict[str, Any]) -> Spec:
    refuse_code(path, config)
    keys = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
    keys |= {"intermediate_size": "hidden_dim", "hidden_act": "activation"}
    return Spec(
        # transformers' code has this epsilon, whatever config.json contains.
        **_read_sizes(path, config, keys) | {"epsilon": 1e-12},
        positions=read_count(path, config, "max_position_embeddings"),
        layer="transformer.layer",
        query=Linear("attention.q_lin"),
        key=Linear("attention.k_lin"),
        value=Linear("attention.v_lin"),
        out=Linear("attention.out_lin"),
        attention_norm="sa_layer_norm",
        up=Linear("ffn.lin1"),
        down=Linear("ffn.lin2"),
        output_norm="output_layer_norm",
    )


def _read_gte(path: Path, config: dict[str, Any]) -> Spec:
    """Return the spec of GTE v1.5 and its successors; `new` is their first name."""
    refuse_code(path, config, ("New", "Gte"))
    _refuse(path, config, "position_embedding_type", "rope")
    _refuse(path, config, "layer_norm_type", "layer_norm")
    _refuse(path, config, "pack_qkv", True)
    _refuse(path, config, "logn_attention_scale", False)
    _refuse(path, config, "is_decoder", False)
    sizes = _read_sizes(path, config)
    return Spec(
        **sizes,
        token_types=read_count(path, config, "type_vocab_size", 0, default=1),
        frequencies=_read_frequencies(path, config, sizes, 160_000 if config["model_type"] == "gte" else 10_000),
        **_name_fused("attention.qkv_proj"),
        out=Linear("attention.o_proj"),
        attention_norm="attn_ln",
        up=Linear("mlp.up_gate_proj", bias=False, part=(0, 2)),
        gate=Linear("mlp.up_gate_proj", bias=False, part=(1, 2)),
        down=Linear("mlp.down_proj"),
        output_norm="mlp_ln",
    )


def _read_jina_v3(path: Path, config: dict[str, Any]) -> Spec:
    refuse_code(path, config)
    sizes = _read_sizes(path, config, epsilon=1e-5)
    return Spec(
        **sizes,
        token_types=read_count(path, config, "type_vocab_size", default=1),
        frequencies=_read_frequencies(path, config, sizes, 20_000),
        embedding_norm="emb_ln",
        layer="encoder.layers",
        **_name_fused("mixer.Wqkv"),
        out=Linear("mixer.out_proj"),
        attention_norm="norm1",
        up=Linear("mlp.fc1"),
        down=Linear("mlp.fc2"),
        output_norm="norm2",
    )


def _read_nomic(path: Path, config: dict[str, Any]) -> Spec:
    """Return the spec of nomic-embed-text v1, v1.5 and v2-moe. The old spelling has the keys of GPT-2."""
    refuse_code(path, config, ("NomicBert",))
    for key in ("prenorm", "parallel_block", "rotary_emb_interleaved", "use_rms_norm", "causal"):
        _refuse(path, config, key, False)
    for key in ("expert_choice_router", "moe_normalize_expert_weights", "scale_attn_by_inverse_layer_idx"):
        _refuse(path, config, key, False)
    for key, value in (("rotary_emb_fraction", 1), ("rotary_emb_scale_base", None), ("num_shared_experts", 0)):
        _refuse(path, config, key, value)
    is_old = "n_embd" in config
    keys = {"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
    keys |= {"intermediate_size": "n_inner", "layer_norm_eps": "layer_norm_epsilon"}
    kind = config.get("activation_function")
    is_gated = kind is None or str(kind) in _NOMIC_GATES
    sizes = _read_sizes(path, config, keys)
    if kind is not None:
        sizes |= {"activation": _NOMIC_GATES.get(str(kind), kind), "activation_key": "activation_function"}
    first, attention = (read_flag(path, config, key, is_old) for key in ("mlp_fc1_bias", "qkv_proj_bias"))
    return Spec(
        **sizes,
        token_types=read_count(path, config, "type_vocab_size", 0, default=2),
        frequencies=_read_frequencies(path, config, sizes, 10_000 if is_old else 1000, "rotary_emb_base"),
        experts=_read_experts(path, config),
        embedding_norm="emb_ln",
        layer="encoder.layers",
        **_name_fused("attn.Wqkv", attention),
        out=Linear("attn.out_proj", attention),
        attention_norm="norm1",
        up=Linear("mlp.fc11" if is_gated else "mlp.fc1", first),
        gate=Linear("mlp.fc12", first) if is_gated else None,
        down=Linear("mlp.fc2", read_flag(path, config, "mlp_fc2_bias", is_old)),
        output_norm="norm2",
    )


def _read_experts(path: Path, config: dict[str, Any]) -> Experts | None:
    every = read_count(path, config, "moe_every_n_layers", 0, default=0)
    if every < 2:  # as in Nomic's code, which takes the layers whose number divided by this leaves 1
        return None
    _refuse(path, config, "ffn_div", 1)
    count = read_count(path, config, "num_experts", 1, _MAX_EXPERTS)
    return Experts(count, read_count(path, config, "moe_top_k", 1, count, 1), every)


def _read_sizes(
    path: Path, config: dict[str, Any], old_keys: Mapping[str, str] = _NO_KEYS, *, epsilon: float = 1e-12
) -> dict[str, Any]:
    """Return the fields of a spec that all families have. `old_keys` has other spellings of BERT's keys."""

    def find_key(key: str) -> str:
        return old_keys.get(key, key) if config.get(key) is None else key

    sizes = {
        field: read_count(path, config, find_key(key), highest=MAX_LAYERS if field == "layers" else MAX_COUNT)
        for field, key in (
            ("vocabulary", "vocab_size"),
            ("hidden", "hidden_size"),
            ("heads", "num_attention_heads"),
            ("layers", "num_hidden_layers"),
            ("inner", "intermediate_size"),
        )
    }
    if sizes["hidden"] % sizes["heads"]:
        hidden, heads = find_key("hidden_size"), find_key("num_attention_heads")
        raise ModelError(f"{path}: {hidden} {sizes['hidden']} is not a multiple of {heads} {sizes['heads']}; {REMEDY}")
    _refuse(path, config, "head_dim", sizes["hidden"] // sizes["heads"])
    found = read_number(path, config, find_key("layer_norm_eps"), 0, 1, epsilon, whole=False)
    key = find_key("hidden_act")
    return {**sizes, "epsilon": found, "activation": config.get(key, "gelu"), "activation_key": key}


def _refuse(path: Path, config: dict[str, Any], key: str, supported: Any) -> None:
    """Raise `ModelError` if a value is present and not the supported one."""
    value = config.get(key)
    if value is not None and (value != supported or isinstance(value, bool) != isinstance(supported, bool)):
        raise ModelError(
            f"{path}: {key} is {textwrap.shorten(json.dumps(value), 60)}, but Vecmill supports only "
            f"{json.dumps(supported)} in a model of model_type {config['model_type']}; {EXPORT}"
        )


def _read_frequencies(
    path: Path, config: dict[str, Any], sizes: Mapping[str, Any], theta: float, theta_key: str = "rope_theta"
) -> NDArray[np.float64]:
    size = sizes["hidden"] // sizes["heads"]
    return read_frequencies(path, config, size, theta=theta, theta_key=theta_key, is_scaled=theta_key == "rope_theta")


def _name_fused(name: str, bias: bool = True) -> dict[str, Any]:
    """Return the fields of a tensor that holds query, key and value."""
    return {field: Linear(name, bias, (part, 3)) for part, field in enumerate(("query", "key", "value"))}


#: Function that reads the config.json of each `model_type`.
_READERS: dict[str, Callable[[Path, dict[str, Any]], Spec]] = {
    "bert": _read_bert,
    **dict.fromkeys(_ROBERTAS, _read_roberta),
    "mpnet": _read_mpnet,
    "distilbert": _read_distilbert,
    "new": _read_gte,
    "gte": _read_gte,
    "nomic_bert": _read_nomic,
    "jina_embeddings_v3": _read_jina_v3,
}
