"""Names under which clients request models."""

import pytest

from broker.wire.protocol import ModelInfo
from frontend.api.errors import ApiError
from frontend.api.model_names import Resolved, list_names, resolve_name
from frontend.api.schemas import parse_embeddings
from frontend.api.submission import choose_prompt_by_name

PROMPTS = {"query": "q: ", "passage": "p: ", "my:own": "o: "}
MODELS = {
    model.name: model
    for model in (
        ModelInfo("a", "r", 4, 100, prompts=PROMPTS, aliases=["ada", "b", "both"]),
        ModelInfo("b", "r", 4, 100, aliases=["both", "colon:query"]),
        ModelInfo("a:query", "r", 4, 100),
    )
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", Resolved("a")),
        ("ada", Resolved("a")),
        # A model's own name wins, then the first model of an alias.
        ("b", Resolved("b")),
        ("both", Resolved("a")),
        ("a:query", Resolved("a:query")),
        ("colon:query", Resolved("b")),
        ("ada:query", Resolved("a", "query")),
        ("ada:document", Resolved("a", "passage")),
        ("a:Search_Document", Resolved("a", "passage")),
        ("a:own", None),
        ("a:other", None),
        ("a:", None),
        ("b:query", None),
        ("ada:query:query", None),
        ("none:query", None),
        ("none", None),
        ("", None),
    ],
)
def test_name_is_resolved(name: str, expected: Resolved | None) -> None:
    assert resolve_name(name, MODELS) == expected


def test_models_are_listed_under_all_names() -> None:
    names = {name: model.name for name, model in list_names(MODELS).items()}
    assert names == {"a": "a", "b": "b", "a:query": "a:query", "ada": "a", "both": "a", "colon:query": "b"}


def test_name_with_a_prompt_sets_the_prompt() -> None:
    request = parse_embeddings(b'{"model": "ada:query", "input": "a"}', 10)
    assert choose_prompt_by_name(request, "query").prompt_name == "query"


@pytest.mark.parametrize("field", ["prompt_name", "input_type"])
def test_name_with_a_prompt_excludes_other_prompts(field: str) -> None:
    request = parse_embeddings(b'{"model": "ada:query", "input": "a", "%s": "passage"}' % field.encode(), 10)
    with pytest.raises(ApiError, match=f"the model name 'ada:query' chooses the prompt query; leave out {field}"):
        choose_prompt_by_name(request, "query")
