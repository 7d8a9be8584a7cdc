"""Vectors of whole folders against sentence-transformers: tokenizer, prompts, truncation, pooling, Dense, Normalize.

`scripts/make_golden_sentences.py` makes the folders.
"""

import json
import shutil
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.harness.data import DATA
from tests.harness.families import TOLERANCE
from workers.engine.batch_inputs import truncate_ids
from workers.engine.engine import Engine
from workers.models.prepare import prepare_model

SENTENCES = DATA / "sentences"
NAMES = sorted(path.name for path in SENTENCES.iterdir())


class Served(NamedTuple):
    """A golden folder as a worker serves it, and what sentence-transformers makes of its texts by prompt."""

    engine: Engine
    prompts: dict[str, str]
    texts: list[str]
    vectors: dict[str, Any]


@pytest.fixture(scope="module", params=NAMES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("golden") / request.param
    shutil.copytree(SENTENCES / request.param, folder)
    golden = json.loads((folder / "vectors.json").read_text())
    prepared = prepare_model(folder, folder.parent, lambda _: None)
    engine = Engine(prepared, "CPU", 1, folder.parent)
    return Served(engine, {"": ""} | prepared.prompts.texts, golden["texts"], golden["vectors"])


def embed_texts(engine: Engine, texts: list[str], has_prompt: bool) -> Any:
    ids = [
        truncate_ids(text_ids, engine.max_tokens, engine.before, engine.after, at_start=False)
        for text_ids in engine.tokenize_texts(texts)
    ]
    prompt_tokens = [engine.count_prompt_tokens(text.encode()) * has_prompt for text in texts]
    return engine.run_inference(0, ids, prompt_tokens).copy()


def test_vectors_equal_those_of_sentence_transformers(served: Served) -> None:
    engine, prompts, texts, vectors = served
    for name, expected in vectors.items():
        inputs, has_prompt = [prompts[name] + text for text in texts], bool(prompts[name])
        together = embed_texts(engine, inputs, has_prompt)
        alone = np.concatenate([embed_texts(engine, [text], has_prompt) for text in inputs])
        for found in (together, alone):
            np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_text_is_longer_than_the_model_accepts(served: Served) -> None:
    if served.engine.max_tokens < 128:
        assert max(map(len, served.engine.tokenize_texts(served.texts))) > served.engine.max_tokens
