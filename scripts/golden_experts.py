"""Reference of nomic-embed-text-v2-moe for `scripts/make_goldens.py`, because transformers does not have this model."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

STD = 0.08


def draw_tensors(config: dict[str, Any], generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of nomic-embed-text-v2-moe, as random values."""
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


class Reference:
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
