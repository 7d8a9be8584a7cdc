"""Models with fixed shapes, as an NPU needs them, on the CPU: the same vectors as with any shapes."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.harness.families import TOLERANCE
from tests.unit.workers.test_golden_sentences import NAMES, SENTENCES
from tests.unit.workers.test_model_folder import write_folder
from workers.engine import fixed_shapes
from workers.engine.device import DeviceError
from workers.engine.engine import Engine
from workers.engine.fixed_shapes import list_lengths
from workers.models.prepare import prepare_model


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_shapes, "LENGTHS", (8, 32))


def make_texts(engine: Engine) -> list[Any]:
    """Return ids of texts of all lengths, in an order in which neighbours need different shapes."""
    (ids,) = engine.tokenize_texts(["one two three four five six seven eight nine ten " * 40])
    return [ids[:length] for length in (40, 3, 9, engine.max_tokens, 8, 1) if length <= engine.max_tokens]


@pytest.mark.parametrize("name", NAMES)
def test_fixed_shapes_give_the_same_vectors(name: str, tmp_path: Path) -> None:
    # Files of the golden folders may be links.
    folder = Path(shutil.copytree(SENTENCES / name, tmp_path / name))
    prepared = prepare_model(folder, tmp_path, print)
    dynamic = Engine(prepared, "CPU", 1, tmp_path)
    fixed = Engine(prepared, "CPU", 1, tmp_path, fixed_shapes=True)
    texts = make_texts(dynamic)
    prompt_tokens = [min(2, len(ids) - 1) for ids in texts]
    alone = [([ids], [tokens]) for ids, tokens in zip(texts, prompt_tokens, strict=True)]
    for number, inputs in enumerate([(texts, prompt_tokens), *alone]):
        request = number % fixed.requests
        expected = dynamic.run_inference(0, *inputs)
        np.testing.assert_allclose(fixed.run_inference(request, *inputs), expected, atol=TOLERANCE)
        divisors: Any = dynamic.get_divisors(0)
        found: Any = fixed.get_divisors(request)
        assert (divisors is None) == (found is None)
        if divisors is not None:
            np.testing.assert_allclose(found, divisors, rtol=TOLERANCE)


def test_engine_warms_up_with_fixed_shapes(tmp_path: Path) -> None:
    prepared = prepare_model(write_folder(tmp_path / "tiny"), tmp_path / "cache", print)
    engine = Engine(prepared, "CPU", 2, tmp_path / "cache", fixed_shapes=True)
    engine.warm_up()
    assert engine.streams == 2
    assert engine.tokens_per_second > 0


@pytest.mark.parametrize(("max_tokens", "lengths"), [(8, [8]), (9, [8, 9]), (512, [8, 32, 512])])
def test_lengths_end_with_the_longest_input(max_tokens: int, lengths: list[int]) -> None:
    assert list_lengths(max_tokens) == lengths


def test_failed_compilation_names_the_longest_input(tmp_path: Path) -> None:
    prepared = prepare_model(write_folder(tmp_path / "tiny"), tmp_path / "cache", print)
    with pytest.raises(DeviceError, match="the longest input has 12 tokens, lower it with --max-length"):
        Engine(prepared, "CPU", 1, tmp_path / "cache", {"SPEED": "high"}, fixed_shapes=True)
