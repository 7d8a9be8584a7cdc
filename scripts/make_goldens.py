"""Write the golden models of `tests/data/families`: small random models and their hidden states by transformers.

`python scripts/make_goldens.py [NAME …]` needs torch, transformers and safetensors, in a virtual environment of its
own: neither Vecmill nor its tests need torch. The stored set was made with torch 2.13.0 and transformers 5.24.0.

Each folder holds `config.json`, `model.safetensors` and `vectors.safetensors`. The latter has the token ids of the
texts, end to end (`ids`), their `lengths`, and for each text (`states`) the last hidden state of the first token, of
the token in the middle and of the last token, and the mean of all. Configurations that differ in config.json alone
link to the weights of one folder.

The weights are large enough, and the weights of the norms far enough from 1, that no mistake in a graph hides.
"""

import json
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

FAMILIES = Path(__file__).resolve().parent.parent / "tests" / "data" / "families"
#: Tokens of the texts: one, a word or two, below and beyond the window of 16, the longest of BERT.
LENGTHS = (1, 2, 8, 17, 41, 90, 200, 512)
STD = 0.08

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
    dtype: torch.dtype = torch.float16


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
        dtype=torch.float32,
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
    "gte": Recipe("Gte", {**GTE_SIZES, "pad_token_id": 1}, dtype=torch.bfloat16),
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
        dtype=torch.bfloat16,
    ),
    "qwen3-bidirectional": Recipe(
        "Qwen3",
        {**GROUPED, "is_causal": False, "attention_bias": False, "pad_token_id": 3},
        weights="qwen3",
        dtype=torch.bfloat16,
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

States = Callable[[torch.Tensor], torch.Tensor]


def make_golden(name: str, recipe: Recipe) -> None:
    """Write the folder of a golden model."""
    folder = FAMILIES / name
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    weights.unlink(missing_ok=True)
    generator = torch.Generator().manual_seed(zlib.crc32((recipe.weights or name).encode()))
    if recipe.family:
        compute, tensors, spelling = _make_with_transformers(recipe, generator)
    else:
        tensors = dict(_draw_moe_tensors(recipe.config, generator))
        compute, spelling = _MoeReference(recipe.config, tensors).compute_states, recipe.config
    if recipe.weights:
        weights.symlink_to(f"../{recipe.weights}/model.safetensors")
    else:
        stored = {recipe.prefix + key: value.to(recipe.dtype).contiguous() for key, value in tensors.items()}
        save_file(stored, weights, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(recipe.spelling or spelling, indent=2) + "\n")
    texts = list(_draw_texts(recipe.config.get("pad_token_id", 0)))
    with torch.no_grad():
        states = [_summarize(compute(text[None])[0]) for text in texts]
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    vectors = {"ids": torch.cat(texts).to(torch.int32), "lengths": lengths, "states": torch.stack(states)}
    save_file(vectors, folder / "vectors.safetensors")


def _make_with_transformers(recipe: Recipe, generator: torch.Generator) -> tuple[States, Any, dict[str, Any]]:
    """Return a function from ids to states, the tensors and config.json, as transformers saves them."""
    config = getattr(transformers, f"{recipe.family}Config")(**recipe.config)
    config._attn_implementation = "eager"  # the other implementation ignores `is_causal` of a text without padding
    model = getattr(transformers, f"{recipe.family}Model")(config).eval()
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.empty_like(parameter).normal_(generator=generator)
            value = noise * STD if parameter.dim() > 1 else parameter + noise * 0.1
            parameter.copy_(value.to(recipe.dtype).float())
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        spelling = json.loads((Path(scratch) / "config.json").read_text())
        tensors = load_file(Path(scratch) / "model.safetensors")
    spelling.pop("transformers_version", None)

    def compute_states(ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return states

    return compute_states, tensors, spelling


def _draw_texts(pad_id: int | None) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for length in LENGTHS:
        ids = torch.randint(5, SIZES["vocab_size"], (length,), generator=generator)
        yield torch.where(ids == pad_id, 4, ids)


def _summarize(states: torch.Tensor) -> torch.Tensor:
    return torch.stack([states[0], states[len(states) // 2], states[-1], states.double().mean(0).float()])


def _draw_moe_tensors(config: dict[str, Any], generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of nomic-embed-text-v2-moe, which transformers does not have."""
    hidden, inner, experts = config["n_embd"], config["n_inner"], config["num_experts"]

    def draw(*shape: int, center: float = 0.0) -> torch.Tensor:
        noise = torch.empty(shape).normal_(generator=generator) * (STD if len(shape) > 1 else 0.1)
        return (noise + center).half().float()

    def draw_linear(name: str, out: int, into: int) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{name}.weight", draw(out, into)
        yield f"{name}.bias", draw(out)

    def draw_norm(name: str) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{name}.weight", draw(hidden, center=1.0)
        yield f"{name}.bias", draw(hidden)

    yield "embeddings.word_embeddings.weight", draw(config["vocab_size"], hidden)
    yield "embeddings.token_type_embeddings.weight", draw(1, hidden)
    yield from draw_norm("emb_ln")
    for number in range(config["n_layer"]):
        name = f"encoder.layers.{number}."
        yield from draw_linear(name + "attn.Wqkv", 3 * hidden, hidden)
        yield from draw_linear(name + "attn.out_proj", hidden, hidden)
        yield from draw_norm(name + "norm1")
        yield from draw_norm(name + "norm2")
        if number % config["moe_every_n_layers"] == 1:
            yield name + "mlp.router.layer.weight", draw(experts, hidden) * 4
            yield name + "mlp.experts.mlp.w1", draw(experts * inner, hidden)
            yield name + "mlp.experts.mlp.w2", draw(experts * inner, hidden)
            yield name + "mlp.experts.bias", draw(hidden)
        else:
            yield from draw_linear(name + "mlp.fc1", inner, hidden)
            yield from draw_linear(name + "mlp.fc2", hidden, inner)


class _MoeReference:
    """nomic-embed-text-v2-moe by its equations, with a loop over tokens and experts."""

    def __init__(self, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self._config = config
        self._tensors = tensors

    def compute_states(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the states `[1, length, hidden]` of ids `[1, length]`."""
        get = self._tensors
        x = get["embeddings.word_embeddings.weight"][ids[0]] + get["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "emb_ln")
        for number in range(self._config["n_layer"]):
            name = f"encoder.layers.{number}."
            x = self._norm(x + self._attend(x, name + "attn."), name + "norm1")
            is_moe = number % self._config["moe_every_n_layers"] == 1
            x = self._norm(x + (self._mix if is_moe else self._feed_forward)(x, name + "mlp."), name + "norm2")
        return x[None]

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._tensors[name + ".weight"], self._tensors[name + ".bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, self._config["layer_norm_epsilon"])

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, self._tensors[name + ".weight"], self._tensors[name + ".bias"])

    def _attend(self, x: torch.Tensor, name: str) -> torch.Tensor:
        heads = self._config["n_head"]
        size = x.shape[1] // heads
        query, key, value = self._linear(x, name + "Wqkv").view(len(x), 3, heads, size).permute(1, 2, 0, 3)
        frequencies = self._config["rotary_emb_base"] ** -(torch.arange(0, size, 2) / size)
        angles = (torch.arange(len(x))[:, None] * frequencies).repeat(1, 2)

        def rotate(part: torch.Tensor) -> torch.Tensor:
            first, second = part.chunk(2, -1)
            return part * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

        weights = (rotate(query) @ rotate(key).transpose(1, 2) / size**0.5).softmax(-1)
        return self._linear((weights @ value).transpose(0, 1).flatten(1), name + "out_proj")

    def _feed_forward(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return self._linear(functional.gelu(self._linear(x, name + "fc1")), name + "fc2")

    def _mix(self, x: torch.Tensor, name: str) -> torch.Tensor:
        experts, inner = self._config["num_experts"], self._config["n_inner"]
        w1 = self._tensors[name + "experts.mlp.w1"].view(experts, inner, -1)
        w2 = self._tensors[name + "experts.mlp.w2"].view(experts, inner, -1)
        shares = (x @ self._tensors[name + "router.layer.weight"].T).softmax(-1)
        rows = []
        for token, row in zip(x, shares, strict=True):
            chosen = zip(*row.topk(self._config["moe_top_k"]), strict=True)
            rows.append(sum(share * (functional.gelu(w1[expert] @ token) @ w2[expert]) for share, expert in chosen))
        return torch.stack(rows) + self._tensors[name + "experts.bias"]


def main() -> None:
    """Make the golden models that the command line names, or all."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    for name in sys.argv[1:] or RECIPES:
        make_golden(name, RECIPES[name])
        print(name, flush=True)


if __name__ == "__main__":
    main()
