"""Files of weights: what is read, and damaged or hostile files, each refused in one sentence."""

import gc
import json
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op
import pytest

from tests.unit.workers.test_model_folder import get_error, make_tensors, save_tensors, write_folder, write_json
from workers.models.json_files import ModelError
from workers.models.weight_files import find_weight_files
from workers.models.weights import Weights

VALUES = np.arange(24, dtype=np.float32).reshape(6, 4) / 8 - 1


def write_file(path: Path, header: Any, data: bytes = b"\0" * 64) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def describe(start: int = 0, end: int = 64, kind: Any = "F32", shape: Any = (16,)) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def open_error(folder: Path) -> str:
    """Return the error of opening a folder's weights, which must be one short line."""
    with pytest.raises(ModelError) as caught:
        Weights(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(folder))
    return str(caught.value)


def evaluate(node: Any) -> Any:
    """Return the value of a node without inputs."""
    return ov.Core().compile_model(ov.Model([node], [], "x"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"a": describe(), "b": describe()}, "b is at bytes 0 to 64, but the tensor before ends at 64"),
        ({"a": describe(0, 32, shape=[8]), "b": describe(16, 64, shape=[12])}, "b is at bytes 16 to 64"),
        ({"a": describe(32, 64, shape=[8])}, "a is at bytes 32 to 64, but the tensor before ends at 0"),
        ({"a": describe(64, 0)}, "a is at bytes 64 to 0"),
        ({"a": describe(0, 128, shape=[32])}, "the tensors should have 128 bytes, but the file has 64"),
        ({"a": describe(0, 32, shape=[8])}, "the tensors should have 32 bytes, but the file has 64"),
        ({"a": describe(shape=[15])}, "a has 64 bytes, which do not fit its type and shape"),
        ({"a": describe(shape=[2**62, 2**62])}, "a has 64 bytes, which do not fit its type and shape"),
        ({"a": describe(shape=[-4, -4])}, "is damaged"),
        ({"a": describe(-64, 0)}, "is damaged"),
        ({"a": describe(0, 2**63)}, "is damaged"),
        ({"a": describe(kind=7)}, "is damaged"),
        ({"a": {"dtype": "F32"}}, "is damaged"),
        ({"a": None}, "is damaged"),
        ({"x" * 10_000: describe(0, 32)}, "xxxx… has 32 bytes"),
        ([describe()], "is damaged"),
        (b"{", "is damaged"),
        (b"", "is damaged"),
        (b'{"a":' * 100_000, "is damaged"),
        (b"\xff\xfe", "is damaged"),
    ],
)
def test_damaged_header_is_named(tmp_path: Path, header: Any, expected: str) -> None:
    write_file(tmp_path / "model.safetensors", header)
    error = open_error(tmp_path)
    assert expected in error
    assert error.startswith(f"{tmp_path / 'model.safetensors'} is damaged: ")


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (2**63, "at most 100000000 are allowed"),
        (100_000_001, "at most 100000000 are allowed"),
        (65, "the header should have 65 bytes, but the file has only 72"),
    ],
)
def test_huge_header_is_not_read(tmp_path: Path, length: int, expected: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b" " * 64)
    assert expected in open_error(tmp_path)


def test_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"a": VALUES})
    whole = path.read_bytes()
    for size in (0, 7, 8, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "is damaged" in open_error(tmp_path)


def test_shape_of_many_dimensions_is_shortened(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", {"a": describe(shape=[1] * 5000 + [16])})
    with pytest.raises(
        ModelError, match=r"has the shape \(1, 1, 1, 1, 1, 1, \.\.\.\), but config.json requires \(16,\)"
    ):
        Weights(tmp_path).get_tensor("a", 16)


@pytest.mark.parametrize("kind", ["I8", "F8_E4M3", "X" * 5000])
def test_type_that_is_no_weight_is_named(tmp_path: Path, kind: str) -> None:
    write_file(tmp_path / "model.safetensors", {"a": describe(kind=kind, shape=[64])})
    with pytest.raises(ModelError, match=f"a has the type {kind[:10]}.*, but Vecmill reads only F32, F16, BF16, F64"):
        Weights(tmp_path).get_tensor("a", 64)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_value_that_is_not_finite_is_found(tmp_path: Path, kind: str, value: float) -> None:
    # Beyond the first block that is checked.
    tensor = np.zeros((1 << 22) + 3, np.float32)
    save_tensors(tmp_path / "model.safetensors", {"a": tensor}, kind)
    Weights(tmp_path).get_tensor("a", len(tensor))
    tensor[-2] = value
    save_tensors(tmp_path / "model.safetensors", {"a": tensor}, kind)
    for read in (Weights(tmp_path).get_tensor, Weights(tmp_path).get_constant):
        with pytest.raises(ModelError, match="a has values that are not finite"):
            read("a", len(tensor))


def test_double_beyond_float32_is_refused(tmp_path: Path) -> None:
    header = {"a": describe(kind="F64", shape=[8])}
    write_file(tmp_path / "model.safetensors", header, np.full(8, 0.5).tobytes())
    np.testing.assert_array_equal(Weights(tmp_path).get_tensor("a", 8), np.full(8, 0.5, np.float32))
    np.testing.assert_array_equal(evaluate(Weights(tmp_path).get_constant("a", 8)), np.full(8, 0.5, np.float32))
    write_file(tmp_path / "model.safetensors", header, np.full(8, 1e39).tobytes())
    for read in (Weights(tmp_path).get_tensor, Weights(tmp_path).get_constant):
        with pytest.raises(ModelError, match="a has values that are not finite float32 numbers"):
            read("a", 8)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_constants_keep_the_stored_type(tmp_path: Path, kind: str) -> None:
    save_tensors(tmp_path / "model.safetensors", {"a": VALUES}, kind)
    weights = Weights(tmp_path)
    node = weights.get_constant("a", 6, 4)
    stored = node if kind == "F32" else node.input_value(0).get_node()
    assert stored.get_element_type().get_type_name() == kind.lower()
    np.testing.assert_array_equal(evaluate(node), VALUES)
    np.testing.assert_array_equal(weights.get_tensor("a", 6, 4), VALUES)
    for part in range(3):
        expected = VALUES[2 * part : 2 * part + 2]
        np.testing.assert_array_equal(evaluate(weights.get_constant("a", 6, 4, part=(part, 3))), expected)


def test_values_need_no_alignment(tmp_path: Path) -> None:
    text = json.dumps({"a": describe()}).encode()
    for blanks in range(4):
        write_file(tmp_path / "model.safetensors", text + b" " * blanks, VALUES.tobytes()[:64])
        weights = Weights(tmp_path)
        np.testing.assert_array_equal(evaluate(weights.get_constant("a", 16)), VALUES.ravel()[:16])


def test_large_weights_are_mapped_and_not_copied(tmp_path: Path) -> None:
    rows, path = 1 << 18, tmp_path / "model.safetensors"
    write_file(path, {"a": describe(0, rows * 1024, "BF16", [rows, 512])}, b"")
    with path.open("r+b") as file:  # 256 MB of zeros, which the file system does not store
        file.truncate(path.stat().st_size + rows * 1024)
    gc.collect()

    def measure_private_mb() -> float:
        pages = Path("/proc/self/statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * resource.getpagesize() / 2**20

    before = measure_private_mb()
    weights = Weights(tmp_path)
    model = ov.Model([op.result(weights.get_constant("a", rows, 512))], [], "x")
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    assert measure_private_mb() - before < 64
    assert (tmp_path / "model.bin").stat().st_size < rows * 1024 + 4096


def test_several_prefixes_are_refused(tmp_path: Path) -> None:
    tensors = {"query.a.weight": VALUES, "document.a.weight": VALUES, "data.weight": VALUES}
    save_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ModelError, match=r"has document\.a\.weight and query\.a\.weight, so it holds several models"):
        Weights(tmp_path).find_prefix("a.weight")
    with pytest.raises(ModelError, match=r"has no tensor b\.weight, which config.json requires"):
        Weights(tmp_path).find_prefix("b.weight")


@pytest.mark.parametrize("prefix", ["", "model.", "0.auto_model."])
def test_prefix_of_all_tensors_is_found(tmp_path: Path, prefix: str) -> None:
    save_tensors(tmp_path / "model.safetensors", {prefix + "a.weight": VALUES, prefix + "b": VALUES[0]})
    weights = Weights(tmp_path)
    weights.find_prefix("a.weight")
    assert "b" in weights
    np.testing.assert_array_equal(weights.get_tensor("b", 4), VALUES[0])


def test_tensors_of_unbuilt_parts_may_be_unused(tmp_path: Path) -> None:
    names = ["m.layer.0.a", "m.layer.0.inv_freq", "m.layer.1.a", "m.pooler.a", "m.layer.0.b"]
    save_tensors(tmp_path / "model.safetensors", dict.fromkeys(names[:-1], VALUES))
    weights = Weights(tmp_path)
    weights.find_prefix("layer.0.a")
    weights.get_tensor("layer.0.a", 6, 4)
    weights.check_use()
    save_tensors(tmp_path / "model.safetensors", dict.fromkeys(names, VALUES))
    weights = Weights(tmp_path)
    weights.get_tensor("m.layer.0.a", 6, 4)
    with pytest.raises(ModelError, match=r"has m\.layer\.0\.b, which other models of this model_type do not have"):
        weights.check_use()


def test_norms_may_have_their_first_names(tmp_path: Path) -> None:
    save_tensors(tmp_path / "model.safetensors", {"a.LayerNorm.gamma": VALUES[0], "a.LayerNorm.beta": VALUES[1]})
    weights = Weights(tmp_path)
    np.testing.assert_array_equal(weights.get_tensor("a.LayerNorm.weight", 4), VALUES[0])
    np.testing.assert_array_equal(weights.get_tensor("a.LayerNorm.bias", 4), VALUES[1])


def split_weights(folder: Path) -> dict[str, str]:
    """Split the weights of a folder into two shards, and return the file of each tensor."""
    tensors = make_tensors()
    names = list(tensors)
    files = {name: f"model-0000{1 + (number >= 9)}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in sorted(set(files.values())):
        save_tensors(folder / file, {name: tensors[name] for name in names if files[name] == file})
    (folder / "model.safetensors").unlink(missing_ok=True)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
    return files


def test_shards_hold_the_same_tensors(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    whole = Weights(folder)
    split_weights(folder)
    shards = Weights(folder)
    assert len(find_weight_files(folder)) == 2
    for name, tensor in make_tensors().items():
        np.testing.assert_array_equal(shards.get_tensor(name, *tensor.shape), whole.get_tensor(name, *tensor.shape))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    file = sorted(set(split_weights(folder).values()))[1]
    (folder / file).unlink()
    assert f"{folder} has no {file}, which model.safetensors.index.json names; download the model" in get_error(folder)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "pytorch_model.bin", "\0.safetensors"]
)
def test_shard_outside_the_folder_is_not_opened(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "tiny")
    files = split_weights(folder)
    write_json(folder / "model.safetensors.index.json", {"weight_map": files | {"embeddings.x": name}})
    assert f"weight_map has {name!r}, which is no file in the model folder" in get_error(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": {"a": 3}}])
def test_index_without_files_is_rejected(tmp_path: Path, index: Any) -> None:
    folder = write_folder(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    write_json(folder / "model.safetensors.index.json", index)
    assert "model.safetensors.index.json has no weight_map with the file of each tensor" in get_error(folder)


def test_same_tensor_in_two_shards_is_rejected(tmp_path: Path) -> None:
    names = ["a.safetensors", "b.safetensors"]
    for name in names:
        save_tensors(tmp_path / name, {"x": VALUES})
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": {"x": names[0], "y": names[1]}})
    assert "b.safetensors has x, which a.safetensors has, too" in open_error(tmp_path)
