"""Weight formats: sizes, errors of the weights, and which constants change."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op
import pytest

from tests.harness.families import read_golden
from workers.models.json_files import ModelError
from workers.models.packed_layout import PackedLayout
from workers.models.precision import compress_weights, read_format
from workers.models.prepare import build_states
from workers.models.weights import Weights

ROWS, WIDTH = 40, 256
IDS = np.array([[3, 7, 39, 0]], np.int64)


def make_values(*shape: int) -> Any:
    return np.random.default_rng(0).normal(0.02, 0.1, shape).astype(np.float32)


def build_model(kind: str = "f32", transposed: bool = True) -> ov.Model:
    """Return a model of a token table, positions and two products."""
    ids = op.parameter([-1, -1], np.int64, name="input_ids")

    def make_constant(values: Any) -> Any:
        constant = op.constant(values)
        return constant if kind == "f32" else op.convert(op.convert(constant, kind), "f32")

    hidden = op.gather(make_constant(make_values(ROWS, WIDTH)), ids, op.constant(np.int64(0)))
    position = op.gather(op.constant(make_values(8, WIDTH)), op.constant(np.int64(3)), op.constant(np.int64(0)))
    hidden = op.add(hidden, position)
    for _ in range(2):
        hidden = op.matmul(hidden, make_constant(make_values(WIDTH, WIDTH)), False, transposed)
    return ov.Model([hidden], [ids], "tiny")


def run_model(model: ov.Model) -> Any:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    return ov.Core().compile_model(model, "CPU", settings)([IDS])[0].reshape(-1)


def compute_cosine(one: Any, two: Any) -> float:
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def list_types(model: ov.Model) -> list[str]:
    """Return the types of the constants that are weights, positions, scales and zero points."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    return [node.get_element_type().get_type_name() for node in nodes if node.get_element_type() != ov.Type.i64]


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(("name", "cosine"), [("fp32", 1.0), ("fp16", 0.999999), ("int8", 0.9999), ("int4", 0.985)])
def test_formats_keep_their_accuracy(name: str, cosine: float, transposed: bool) -> None:
    model = build_model(transposed=transposed)
    expected = run_model(model)
    compress_weights(model, read_format(name, ""))
    assert compute_cosine(run_model(model), expected) == pytest.approx(1, abs=1.000001 - cosine)


@pytest.mark.parametrize("extra", ["--sym", "--sym --group-size 64", "--group-size=-1", "--all-layers --ratio 1.0"])
def test_options_of_int4_keep_accuracy(extra: str) -> None:
    model = build_model()
    expected = run_model(model)
    compress_weights(model, read_format("int4", extra))
    assert compute_cosine(run_model(model), expected) > 0.97


def test_symmetric_weights_have_no_zero_points() -> None:
    model = build_model()
    compress_weights(model, read_format("int8", "--sym"))
    assert sorted(list_types(model)) == ["f16"] * 3 + ["f32"] + ["i8"] * 3


@pytest.mark.parametrize(
    ("name", "extra", "types"),
    [
        ("fp32", "", {"f32": 4}),
        ("fp16", "", {"f16": 3, "f32": 1}),
        # A table and two products with scales and zero points, and the position.
        ("int8", "", {"u8": 6, "f16": 3, "f32": 1}),
        # The table and the last product stay int8.
        ("int4", "", {"u8": 4, "u4": 2, "f16": 3, "f32": 1}),
        ("int4", "--all-layers", {"u4": 6, "f16": 3, "f32": 1}),
    ],
)
def test_only_weights_are_compressed(name: str, extra: str, types: dict[str, int]) -> None:
    model = build_model()
    compress_weights(model, read_format(name, extra))
    found = list_types(model)
    assert {kind: found.count(kind) for kind in set(found)} == types


def test_packed_positions_stay_float32() -> None:
    golden = read_golden("bert")
    folder: Any = SimpleNamespace(base=golden.path, config_path=golden.path, config=golden.config, family="bert")
    layout = PackedLayout()
    weights = Weights(golden.path)
    model = ov.Model([build_states(folder, weights, layout)], layout.inputs, "bert")
    assert compress_weights(model, read_format("int8", "")) == 1 + 6 * golden.config["num_hidden_layers"]
    tables = [node.get_output_shape(0) for node in model.get_ops() if node.get_type_name() == "Constant"
              and node.get_element_type() == ov.Type.f32]  # fmt: skip
    assert [golden.config["max_position_embeddings"], golden.config["hidden_size"]] in [list(shape) for shape in tables]


def test_bfloat16_is_stored_as_float32() -> None:
    model = build_model("bf16")
    assert ov.Type.bf16 in [node.get_element_type() for node in model.get_ops()]
    expected = run_model(model)
    compress_weights(model, read_format("fp32", ""))
    assert set(list_types(model)) == {"f32"}
    np.testing.assert_array_equal(run_model(model), expected)


def test_saved_int4_is_read_back(tmp_path: Path) -> None:
    model = build_model()
    compress_weights(model, read_format("int4", ""))
    expected = run_model(model)
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    np.testing.assert_array_equal(run_model(ov.Core().read_model(tmp_path / "model.xml")), expected)


def build_lookup(table: Any) -> ov.Model:
    ids = op.parameter([-1, -1], np.int64)
    return ov.Model([op.gather(op.constant(table), ids, op.constant(np.int64(0)))], [ids], "lookup")


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 1e-12])
@pytest.mark.parametrize("extra", ["", "--sym"])
def test_rows_without_spread_are_restored(value: float, extra: str) -> None:
    model = build_lookup(np.full((ROWS, 8), value, np.float32))
    compress_weights(model, read_format("int8", extra))
    np.testing.assert_allclose(run_model(model), value, atol=1e-3)


@pytest.mark.parametrize("extra", ["", "--sym"])
def test_each_row_has_its_own_scale(extra: str) -> None:
    table = make_values(ROWS, 64) * np.logspace(-2, 0, ROWS, dtype=np.float32)[:, None]
    model = build_lookup(table)
    compress_weights(model, read_format("int8", extra))
    restored, expected = run_model(model).reshape(-1, 64), table[IDS[0]]
    assert (np.abs(restored - expected).max(1) <= 0.01 * np.abs(expected).max(1)).all()


@pytest.mark.parametrize("name", ["fp16", "int8", "int4"])
def test_values_beyond_float16_stay_float32(name: str) -> None:
    model = build_lookup(make_values(ROWS, 4) * 1e6)
    expected = run_model(model)
    compress_weights(model, read_format(name, ""))
    np.testing.assert_array_equal(run_model(model), expected)


def test_group_size_must_divide_the_rows() -> None:
    with pytest.raises(ModelError, match="multiple of the group size 100, but a weight has rows of 256"):
        compress_weights(build_model(), read_format("int4", "--group-size 100"))


@pytest.mark.parametrize("extra", ["--awq", "--dataset wikitext2", "--ratio 0.8", "--group-size x", "--group-size"])
def test_unknown_quantization_options_are_refused(extra: str) -> None:
    with pytest.raises(ModelError, match="--extra_quantization_params has "):
        read_format("int4", extra)
