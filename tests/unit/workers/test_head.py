"""Pooling and modules of sentence-transformers, compared with their equations in numpy."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset15 as op
import pytest

from tests.unit.workers.test_model_folder import save_tensors, write_json
from workers.models.head import make_model
from workers.models.json_files import ModelError
from workers.models.layout import PaddedLayout
from workers.models.modules import POOLING_MODES, Dense, LayerNorm, Modules, Normalize, Pooling, Step

Array = npt.NDArray[Any]

RANDOM = np.random.default_rng(5)
HIDDEN = RANDOM.normal(0, 1, (4, 7, 6)).astype(np.float32)
LENGTHS = (7, 1, 3, 6)
#: Tokens of each row, padded on the right, and padded on the left.
RIGHT = (np.arange(7) < np.array(LENGTHS)[:, None]).astype(np.float32)
LEFT = RIGHT[:, ::-1].copy()


def pool(states: Array, mode: str, leave_out: int = 0) -> Array:
    """Return the pooled states `[tokens, size]` of one text without its first tokens."""
    weights = np.arange(1, len(states) + 1)[leave_out:, None]
    states = states[leave_out:]
    pooled: Array = {
        "cls": lambda: states[0],
        "max": lambda: states.max(0),
        "mean": lambda: states.mean(0),
        "mean_sqrt_len_tokens": lambda: states.sum(0) / math.sqrt(len(states)),
        "weightedmean": lambda: (states * weights).sum(0) / weights.sum(),
        "lasttoken": lambda: states[-1],
    }[mode]()
    return pooled


def pool_all(mask: Array, *modes: str) -> Array:
    rows = [states[row > 0].astype(np.float64) for states, row in zip(HIDDEN, mask, strict=True)]
    return np.array([np.concatenate([pool(row, mode) for mode in modes]) for row in rows])


def run(
    *steps: Step, mask: Array = RIGHT, truncate_dim: int | None = None, prompt_tokens: Sequence[int] = ()
) -> list[Array]:
    """Return the outputs of a graph for `HIDDEN`."""
    layout = PaddedLayout()
    hidden = op.parameter([-1, -1, 6], np.float32, name="hidden")
    layout.inputs = [hidden, layout.inputs[1]]
    model = make_model(hidden, layout, Modules(base=Path(), steps=steps, truncate_dim=truncate_dim), "head")
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    # Padding may hold any finite values.
    states = np.where(mask[:, :, None] > 0, HIDDEN, np.float32(1e30))
    prompt = [np.array(prompt_tokens, np.int64)] if prompt_tokens else []
    return list(compiled([states, mask.astype(np.int64), *prompt]).values())


@pytest.mark.parametrize("mask", [RIGHT, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pooling_uses_attended_tokens(mode: str, mask: Array) -> None:
    np.testing.assert_allclose(run(Pooling((mode,)), mask=mask)[0], pool_all(mask, mode), atol=1e-6)


@pytest.mark.parametrize("mask", [RIGHT, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_pooling_leaves_out_the_prompt(mode: str, mask: Array) -> None:
    prompt_tokens = (3, 0, 2, 5)
    expected = [
        pool(states[row > 0].astype(np.float64), mode, leave_out)
        for states, row, leave_out in zip(HIDDEN, mask, prompt_tokens, strict=True)
    ]
    pooling = Pooling((mode,), include_prompt=False)
    np.testing.assert_allclose(run(pooling, mask=mask, prompt_tokens=prompt_tokens)[0], expected, atol=1e-6)


def test_text_that_is_all_prompt_has_a_finite_vector() -> None:
    for mode in POOLING_MODES:
        vectors = run(Pooling((mode,), include_prompt=False), Normalize(), prompt_tokens=LENGTHS)[0]
        assert np.isfinite(vectors).all()


def test_pooling_modes_are_concatenated_in_order() -> None:
    modes = ("mean", "cls", "max")
    np.testing.assert_allclose(run(Pooling(modes))[0], pool_all(RIGHT, *modes), atol=1e-6)


def test_normalized_vectors_come_with_divisors() -> None:
    mean = pool_all(RIGHT, "mean")
    vectors, divisors = run(Pooling(("mean",)), Normalize())
    np.testing.assert_allclose(vectors, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(divisors, np.linalg.norm(mean, axis=1, keepdims=True), rtol=1e-6)


def test_truncation_follows_normalization() -> None:
    (cut,) = run(Pooling(("mean",)), Normalize(), truncate_dim=4)
    np.testing.assert_array_equal(cut, run(Pooling(("mean",)), Normalize())[0][:, :4])
    np.testing.assert_array_equal(run(Pooling(("mean",)), truncate_dim=9)[0], run(Pooling(("mean",)))[0])


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "Tanh": np.tanh,
    "Identity": lambda x: x,
    "GELU": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
}


def write_dense(folder: Path, into: int, out: int, **settings: Any) -> tuple[Dense, dict[str, Array]]:
    """Write the weights of a Dense module with random values. Return the module and the weights."""
    folder.mkdir()
    dense: dict[str, Any] = {"has_bias": True, "activation": "Tanh", "is_residual": False} | settings
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (out, into)}
    if dense["has_bias"]:
        shapes["linear.bias"] = (out,)
    if dense["is_residual"] and into != out:
        shapes["residual.weight"] = (out, into)
    weights = {name: RANDOM.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    save_tensors(folder / "model.safetensors", weights)
    return Dense(folder=folder, into=into, out=out, **dense), weights


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_applies_its_activation(tmp_path: Path, activation: str) -> None:
    dense, weights = write_dense(tmp_path / "2_Dense", 6, 4, activation=activation)
    linear = pool_all(RIGHT, "mean") @ weights["linear.weight"].T + weights["linear.bias"]
    np.testing.assert_allclose(run(Pooling(("mean",)), dense)[0], ACTIVATIONS[activation](linear), atol=1e-5)


def test_dense_without_bias_has_none(tmp_path: Path) -> None:
    dense, weights = write_dense(tmp_path / "2_Dense", 6, 9, has_bias=False, activation="Identity")
    expected = pool_all(RIGHT, "mean") @ weights["linear.weight"].T
    np.testing.assert_allclose(run(Pooling(("mean",)), dense)[0], expected, atol=1e-5)


@pytest.mark.parametrize("out", [6, 4])
def test_dense_adds_its_residual(tmp_path: Path, out: int) -> None:
    dense, weights = write_dense(tmp_path / "2_Dense", 6, out, is_residual=True)
    mean = pool_all(RIGHT, "mean")
    residual = mean @ weights["residual.weight"].T if out == 4 else mean
    expected = np.tanh(mean @ weights["linear.weight"].T + weights["linear.bias"]) + residual
    np.testing.assert_allclose(run(Pooling(("mean",)), dense)[0], expected, atol=1e-5)


def test_dense_before_pooling_applies_to_tokens(tmp_path: Path) -> None:
    dense, weights = write_dense(tmp_path / "1_Dense", 6, 4)
    tokens = np.tanh(HIDDEN.astype(np.float64) @ weights["linear.weight"].T + weights["linear.bias"])
    expected = [row[:length].mean(0) for row, length in zip(tokens, LENGTHS, strict=True)]
    np.testing.assert_allclose(run(dense, Pooling(("mean",)))[0], expected, atol=1e-5)


def test_modules_apply_in_their_order(tmp_path: Path) -> None:
    first, first_weights = write_dense(tmp_path / "2_Dense", 6, 8, has_bias=False, activation="Identity")
    second, second_weights = write_dense(tmp_path / "3_Dense", 8, 5)
    norm = {"norm.weight": RANDOM.normal(1, 0.3, 8).astype(np.float32), "norm.bias": np.ones(8, np.float32)}
    (tmp_path / "4_LayerNorm").mkdir()
    save_tensors(tmp_path / "4_LayerNorm" / "model.safetensors", norm)
    x = pool_all(RIGHT, "cls") @ first_weights["linear.weight"].T
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    x = x * norm["norm.weight"] + norm["norm.bias"]
    x = np.tanh(x @ second_weights["linear.weight"].T + second_weights["linear.bias"])
    steps = (Pooling(("cls",)), first, LayerNorm(tmp_path / "4_LayerNorm", 8), second)
    np.testing.assert_allclose(run(*steps)[0], x, atol=1e-5)


def test_module_of_another_size_is_refused(tmp_path: Path) -> None:
    dense, _ = write_dense(tmp_path / "2_Dense", 5, 4)
    with pytest.raises(ModelError, match="in_features is 5, but the module before it returns 6 values"):
        run(Pooling(("mean",)), dense)
    with pytest.raises(ModelError, match="dimension is 3, but the module before it returns 6 values"):
        run(Pooling(("mean",)), LayerNorm(tmp_path / "3_LayerNorm", 3))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_dense_weight_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    dense, weights = write_dense(tmp_path / "2_Dense", 6, 4)
    weights["linear.bias"][2] = value
    save_tensors(tmp_path / "2_Dense" / "model.safetensors", weights)
    with pytest.raises(ModelError, match=r"2_Dense/model.safetensors: linear.bias has values that are not finite"):
        run(Pooling(("mean",)), dense)


def test_missing_dense_weight_is_named(tmp_path: Path) -> None:
    dense, weights = write_dense(tmp_path / "2_Dense", 6, 4)
    write_json(tmp_path / "2_Dense" / "config.json", {})
    save_tensors(tmp_path / "2_Dense" / "model.safetensors", {"linear.weight": weights["linear.weight"]})
    with pytest.raises(ModelError, match=r"2_Dense/model.safetensors has no tensor linear.bias"):
        run(Pooling(("mean",)), dense)
