"""Names under which clients request models: a model's own name, its aliases, and NAME:PROMPT. Pure.

A model's own name comes before an alias, and both come before a name with a prompt. If several models have an alias,
the first of their names in alphabetical order has it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from broker.wire.protocol import ModelInfo

#: Names of prompts to look for, in this order, for each `input_type` of Cohere's API and vLLM. The names are those that
#: sentence-transformers' encode_query and encode_document look for.
_QUERY, _DOCUMENT = ("query",), ("document", "passage", "corpus")
INPUT_TYPES = {
    "query": _QUERY,
    "search_query": _QUERY,
    "document": _DOCUMENT,
    "search_document": _DOCUMENT,
    "passage": ("passage", "document", "corpus"),
    # Gemini's task types.
    "retrieval_query": _QUERY,
    "retrieval_document": _DOCUMENT,
}


class Resolved(NamedTuple):
    """A model, and the name of the prompt that the requested name chooses; None: none."""

    model: str
    prompt: str | None = None


def resolve_name(name: str, models: Mapping[str, ModelInfo]) -> Resolved | None:
    """Return the model that a client requests, or None if there is none of this name."""
    if name in models:
        return Resolved(name)
    if found := min((model.name for model in models.values() if name in model.aliases), default=None):
        return Resolved(found)
    base, colon, wanted = name.rpartition(":")
    if not colon or not (resolved := resolve_name(base, models)) or resolved.prompt is not None:
        return None
    prompt = find_prompt(wanted, models[resolved.model])
    return resolved._replace(prompt=prompt) if prompt is not None else None


def find_prompt(wanted: str, model: ModelInfo) -> str | None:
    """Return the name of the prompt of a model for a name or an input type; None if it has none."""
    if wanted in model.prompts:
        return wanted
    return next((name for name in INPUT_TYPES.get(wanted.lower(), ()) if name in model.prompts), None)


def list_names(models: Mapping[str, ModelInfo]) -> dict[str, ModelInfo]:
    """Return all models by their names and aliases, without names with prompts."""
    aliases = {alias for model in models.values() for alias in model.aliases}
    resolved = {name: resolve_name(name, models) for name in [*models, *sorted(aliases - models.keys())]}
    return {name: models[found.model] for name, found in resolved.items() if found}
