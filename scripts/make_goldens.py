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
from typing import Any

import torch
import transformers
from golden_experts import STD, Reference, draw_tensors
from golden_recipes import RECIPES, SIZES, Recipe
from safetensors.torch import load_file, save_file

FAMILIES = Path(__file__).resolve().parent.parent / "tests" / "data" / "families"
#: Tokens of the texts: one, a word or two, below and beyond the window of 16, the longest of BERT.
LENGTHS = (1, 2, 8, 17, 41, 90, 200, 512)
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
        tensors = dict(draw_tensors(recipe.config, generator))
        compute, spelling = Reference(recipe.config, tensors).compute_states, recipe.config
    if recipe.weights:
        weights.symlink_to(f"../{recipe.weights}/model.safetensors")
    else:
        stored = {
            recipe.prefix + key: value.to(getattr(torch, recipe.dtype)).contiguous() for key, value in tensors.items()
        }
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
            parameter.copy_(value.to(getattr(torch, recipe.dtype)).float())
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
