"""The BERT graph against a plain implementation of its equations in float64."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from tests.unit.workers.test_model_folder import CONFIG, save, tensors, write_folder, write_json
from workers.models.folder import ModelError
from workers.models.prepare import PreparedModel, prepare_model

IDS = [[2, 5, 9, 30, 3], [2, 3], [2, 17, 3], [2, *range(5, 14), 3]]

ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def reference(weights: dict[str, Any], ids: list[int], pooling: str, normalize: bool, act: str = "gelu") -> Any:
    """The sentence embedding of one input, float64 [hidden]."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}

    def dense(x: Any, name: str) -> Any:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + CONFIG["layer_norm_eps"])
        return centred / deviation * w[name + ".weight"] + w[name + ".bias"]

    word, position, kind = (w[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type"))
    x = norm(word[ids] + position[: len(ids)] + kind[0], "embeddings.LayerNorm")
    size = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    for layer in (f"encoder.layer.{number}." for number in range(CONFIG["num_hidden_layers"])):
        query, key, value = (
            dense(x, f"{layer}attention.self.{part}").reshape(len(ids), -1, size).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = np.exp(query @ key.transpose(0, 2, 1) / math.sqrt(size))
        attended = (scores / scores.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(len(ids), -1)
        x = norm(x + dense(attended, layer + "attention.output.dense"), layer + "attention.output.LayerNorm")
        inner = ACTIVATIONS[act](dense(x, layer + "intermediate.dense"))
        x = norm(x + dense(inner, layer + "output.dense"), layer + "output.LayerNorm")
    vector = {"CLS": x[0], "MEAN": x.mean(0), "LAST": x[-1]}[pooling]
    return vector / np.linalg.norm(vector) if normalize else vector


def prepare(folder: Path) -> PreparedModel:
    return prepare_model(folder, folder.parent / "cache", lambda _: None)


def embed(prepared: PreparedModel, ids: list[list[int]], pad: int = 0) -> Any:
    """All inputs in one padded batch, float32 [inputs, dimension]."""
    compiled = ov.Core().compile_model(prepared.model_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    padded = np.full((len(ids), max(map(len, ids))), pad, np.int64)
    mask = np.zeros_like(padded)
    for number, one in enumerate(ids):
        padded[number, : len(one)], mask[number, : len(one)] = one, 1
    return compiled({"input_ids": padded, "attention_mask": mask})[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
def test_vectors_are_those_of_the_equations(folder: Path, pooling: str, normalize: bool) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": pooling})
    if not normalize:
        modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
        write_json(folder / "modules.json", modules)
    prepared = prepare(folder)
    assert (prepared.dimension, prepared.vocabulary_size, prepared.pad_id) == (16, 64, 0)
    expected = [reference(tensors(), ids, prepared.pooling, normalize) for ids in IDS]
    np.testing.assert_allclose(embed(prepared, IDS), expected, atol=1e-5)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_activations(folder: Path, act: str) -> None:
    write_json(folder / "config.json", CONFIG | {"hidden_act": act})
    expected = [reference(tensors(), ids, "MEAN", True, act) for ids in IDS]
    np.testing.assert_allclose(embed(prepare(folder), IDS), expected, atol=1e-5)


def test_neither_the_neighbours_nor_the_padding_changes_a_vector(folder: Path) -> None:
    prepared = prepare(folder)
    together = embed(prepared, IDS)
    np.testing.assert_allclose(embed(prepared, IDS, pad=63), together, atol=1e-6)
    for number, ids in enumerate(IDS):
        np.testing.assert_allclose(embed(prepared, [ids])[0], together[number], atol=1e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_weights_are_taken_as_they_are(folder: Path, kind: str) -> None:
    save(folder / "model.safetensors", tensors(), kind)
    rounded = {}
    for name, tensor in tensors().items():
        if kind == "F16":
            rounded[name] = tensor.astype(np.float16).astype(np.float32)
        else:
            rounded[name] = (tensor.view(np.uint32) >> 16 << 16).view(np.float32)
    expected = [reference(rounded, ids, "MEAN", True) for ids in IDS]
    np.testing.assert_allclose(embed(prepare(folder), IDS), expected, atol=1e-5)


def test_names_may_begin_with_the_models(folder: Path) -> None:
    plain = prepare(folder)
    save(folder / "model.safetensors", {f"bert.{name}": tensor for name, tensor in tensors().items()})
    named = prepare(folder)
    assert named.revision != plain.revision
    np.testing.assert_array_equal(embed(named, IDS), embed(plain, IDS))


def test_vector_before_normalisation_is_what_the_divisor_tells(folder: Path) -> None:
    compiled = ov.Core().compile_model(prepare(folder).model_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ids = np.array([IDS[0]], np.int64)
    normal, divisor = compiled({"input_ids": ids, "attention_mask": np.ones_like(ids)}).values()
    assert np.linalg.norm(normal) == pytest.approx(1, abs=1e-6)
    # Without modules.json pooling is mean, as with it here, and nothing is normalised.
    (folder / "modules.json").unlink()
    np.testing.assert_allclose(normal * divisor, embed(prepare(folder), [IDS[0]]), rtol=1e-6)


def test_attention_is_one_operation_and_the_outputs_are_the_embedding_and_its_divisor(folder: Path) -> None:
    model = ov.Core().read_model(prepare(folder).model_path)
    kinds = [one.get_type_name() for one in model.get_ordered_ops()]
    assert kinds.count("ScaledDotProductAttention") == CONFIG["num_hidden_layers"]
    assert [port.get_any_name() for port in model.inputs] == ["input_ids", "attention_mask"]
    assert [port.get_any_name() for port in model.outputs] == ["embedding", "divisor"]
    assert {port.get_element_type().get_type_name() for port in model.outputs} == {"f32"}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"hidden_act": "silu"}, "silu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"hidden_size": None}, "config.json"),
        ({"hidden_size": 8}, "embeddings.word_embeddings.weight"),
        ({"num_hidden_layers": 3}, "encoder.layer.2."),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, config: dict[str, Any], told: str) -> None:
    write_json(folder / "config.json", CONFIG | config)
    with pytest.raises(ModelError, match=told):
        prepare(folder)


@pytest.mark.parametrize("name", ["embeddings.LayerNorm.bias", "encoder.layer.1.output.dense.weight"])
def test_a_tensor_that_is_missing_or_misshapen_is_named(folder: Path, name: str) -> None:
    weights = tensors()
    save(folder / "model.safetensors", {other: tensor for other, tensor in weights.items() if other != name})
    with pytest.raises(ModelError, match=f"no tensor {name}"):
        prepare(folder)
    save(folder / "model.safetensors", weights | {name: np.zeros((3, 5), np.float32)})
    with pytest.raises(ModelError, match=rf"{name} has the shape \(3, 5\)"):
        prepare(folder)
