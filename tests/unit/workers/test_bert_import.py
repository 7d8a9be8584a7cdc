"""The BERT graph, compared with an implementation of its equations in numpy with float64."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from tests.unit.workers.test_model_folder import CONFIG, make_tensors, save_tensors, write_folder, write_json
from workers.engine.feeds import pack_ids, pad_ids
from workers.models.json_files import ModelError
from workers.models.prepare import PreparedModel, prepare_model

IDS = [[2, 5, 9, 30, 3], [2, 3], [2, 17, 3], [2, *range(5, 14), 3]]

ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def compute_reference(weights: dict[str, Any], ids: list[int], pooling: str, normalize: bool, act: str = "gelu") -> Any:
    """Return the sentence embedding of one input, float64 `[hidden]`."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}

    def apply_dense(x: Any, name: str) -> Any:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def apply_norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + CONFIG["layer_norm_eps"])
        return centred / deviation * w[name + ".weight"] + w[name + ".bias"]

    word, position, kind = (w[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type"))
    x = apply_norm(word[ids] + position[: len(ids)] + kind[0], "embeddings.LayerNorm")
    size = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    for layer in (f"encoder.layer.{number}." for number in range(CONFIG["num_hidden_layers"])):
        query, key, value = (
            apply_dense(x, f"{layer}attention.self.{part}").reshape(len(ids), -1, size).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = np.exp(query @ key.transpose(0, 2, 1) / math.sqrt(size))
        attended = (scores / scores.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(len(ids), -1)
        x = apply_norm(
            x + apply_dense(attended, layer + "attention.output.dense"), layer + "attention.output.LayerNorm"
        )
        inner = ACTIVATIONS[act](apply_dense(x, layer + "intermediate.dense"))
        x = apply_norm(x + apply_dense(inner, layer + "output.dense"), layer + "output.LayerNorm")
    vector = {"cls": x[0], "mean": x.mean(0), "lasttoken": x[-1]}[pooling]
    return vector / np.linalg.norm(vector) if normalize else vector


def prepare_tiny(folder: Path) -> PreparedModel:
    return prepare_model(folder, folder.parent / "cache", lambda _: None)


def embed_ids(prepared: PreparedModel, ids: list[list[int]]) -> Any:
    """Return the vectors of one batch, float32 `[inputs, dimension]`."""
    compiled = ov.Core().compile_model(prepared.model_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rows = [np.array(row, np.int64) for row in ids]
    is_packed = any(port.get_any_name() == "places" for port in compiled.inputs)
    return compiled(pack_ids(rows) if is_packed else pad_ids(rows, prepared.pad_id))[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
def test_vectors_match_the_equations(folder: Path, pooling: str, normalize: bool) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": pooling})
    if not normalize:
        modules = [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        write_json(folder / "modules.json", modules)
    prepared = prepare_tiny(folder)
    assert (prepared.dimension, prepared.vocabulary_size, prepared.pad_id) == (16, 64, 0)
    expected = [compute_reference(make_tensors(), ids, pooling, normalize) for ids in IDS]
    np.testing.assert_allclose(embed_ids(prepared, IDS), expected, atol=1e-5)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu", "silu"])
def test_activations_match_the_equations(folder: Path, act: str) -> None:
    write_json(folder / "config.json", CONFIG | {"hidden_act": act})
    expected = [compute_reference(make_tensors(), ids, "mean", True, act) for ids in IDS]
    np.testing.assert_allclose(embed_ids(prepare_tiny(folder), IDS), expected, atol=1e-5)


def test_vector_does_not_depend_on_its_batch(folder: Path) -> None:
    prepared = prepare_tiny(folder)
    together = embed_ids(prepared, IDS)
    for number, ids in enumerate(IDS):
        np.testing.assert_allclose(embed_ids(prepared, [ids])[0], together[number], atol=1e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_weights_are_exact(folder: Path, kind: str) -> None:
    save_tensors(folder / "model.safetensors", make_tensors(), kind)
    rounded = {}
    for name, tensor in make_tensors().items():
        if kind == "F16":
            rounded[name] = tensor.astype(np.float16).astype(np.float32)
        else:
            rounded[name] = (tensor.view(np.uint32) >> 16 << 16).view(np.float32)
    expected = [compute_reference(rounded, ids, "mean", True) for ids in IDS]
    np.testing.assert_allclose(embed_ids(prepare_tiny(folder), IDS), expected, atol=1e-5)


def test_tensor_names_may_have_a_prefix(folder: Path) -> None:
    plain = prepare_tiny(folder)
    save_tensors(folder / "model.safetensors", {f"bert.{name}": tensor for name, tensor in make_tensors().items()})
    named = prepare_tiny(folder)
    assert named.revision != plain.revision
    np.testing.assert_array_equal(embed_ids(named, IDS), embed_ids(plain, IDS))


def test_divisor_restores_the_vector_before_normalization(folder: Path) -> None:
    compiled = ov.Core().compile_model(prepare_tiny(folder).model_path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ids = np.array([IDS[0]], np.int64)
    normal, divisor = compiled(pack_ids([ids[0]])).values()
    assert np.linalg.norm(normal) == pytest.approx(1, abs=1e-6)
    # Without modules.json, pooling is mean as before, but the vectors are not normalized.
    (folder / "modules.json").unlink()
    np.testing.assert_allclose(normal * divisor, embed_ids(prepare_tiny(folder), [IDS[0]]), rtol=1e-6)


def test_graph_has_fused_attention_and_two_outputs(folder: Path) -> None:
    model = ov.Core().read_model(prepare_tiny(folder).model_path)
    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    assert kinds.count("ScaledDotProductAttention") == CONFIG["num_hidden_layers"]
    assert [port.get_any_name() for port in model.inputs] == ["ids", "positions", "places", "origins", "mask"]
    assert [port.get_any_name() for port in model.outputs] == ["embedding", "divisor"]
    assert {port.get_element_type().get_type_name() for port in model.outputs} == {"f32"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"hidden_act": "mish"}, "mish"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"hidden_size": None}, "config.json"),
        ({"hidden_size": 8}, "embeddings.word_embeddings.weight"),
        ({"num_hidden_layers": 3}, "encoder.layer.2."),
    ],
)
def test_unsupported_config_is_rejected(folder: Path, config: dict[str, Any], expected: str) -> None:
    write_json(folder / "config.json", CONFIG | config)
    with pytest.raises(ModelError, match=expected):
        prepare_tiny(folder)


@pytest.mark.parametrize("name", ["embeddings.LayerNorm.bias", "encoder.layer.1.output.dense.weight"])
def test_missing_or_misshapen_tensor_is_named(folder: Path, name: str) -> None:
    weights = make_tensors()
    save_tensors(folder / "model.safetensors", {other: tensor for other, tensor in weights.items() if other != name})
    with pytest.raises(ModelError, match=f"no tensor {name}"):
        prepare_tiny(folder)
    save_tensors(folder / "model.safetensors", weights | {name: np.zeros((3, 5), np.float32)})
    with pytest.raises(ModelError, match=rf"{name} has the shape \(3, 5\)"):
        prepare_tiny(folder)
