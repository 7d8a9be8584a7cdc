"""Modules and settings of sentence-transformers, in the spellings of old and new versions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.workers.test_model_folder import (
    CONFIG,
    get_error,
    make_tensors,
    save_tensors,
    write_folder,
    write_json,
)
from workers.models.folder import read_folder
from workers.models.modules import Dense, LayerNorm, Modules, Normalize, Pooling
from workers.models.prepare import prepare_model
from workers.models.source import Overrides

OLD, NEW, NEW_BASE = (
    "sentence_transformers.models",
    "sentence_transformers.sentence_transformer.modules",
    "sentence_transformers.base.modules",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny")


def write_modules(folder: Path, *modules: tuple[str, str], package: str = OLD) -> None:
    """Write modules.json from pairs of type and path."""
    entries = [{"path": path, "type": kind if "." in kind else f"{package}.{kind}"} for kind, path in modules]
    write_json(folder / "modules.json", entries)


def write_dense(folder: Path, name: str = "2_Dense", **config: Any) -> None:
    """Add a Dense module between the pooling and its end."""
    write_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", name))
    write_json(folder / name / "config.json", {"in_features": 16, "out_features": 4, **config})
    weights = {"linear.weight": make_tensors()["embeddings.position_embeddings.weight"][:4]}
    save_tensors(folder / name / "model.safetensors", weights | {"linear.bias": weights["linear.weight"][:, 0]})


def read_dense(folder: Path) -> Dense:
    dense = read_folder(folder).modules.find_step(Dense)
    assert dense is not None
    return dense


@pytest.mark.parametrize("package", [OLD, NEW, NEW_BASE])
def test_module_types_of_each_version_are_known(folder: Path, package: str) -> None:
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dropout", "2_Dropout"), ("Normalize", "3_Normalize")]
    write_modules(folder, *modules, package=package)
    assert read_folder(folder).modules.steps == (Pooling(("mean",)), Normalize())


@pytest.mark.parametrize("inside", ["0_Transformer", "0_BERT", "deep/0_Transformer"])
def test_transformer_may_be_in_a_subfolder(folder: Path, inside: str) -> None:
    plain = prepare_model(folder, folder.parent / "cache", print)
    (folder / inside).mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"):
        (folder / name).rename(folder / inside / name)
    write_modules(folder, ("Transformer", inside), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    read = read_folder(folder)
    assert (read.base, read.max_tokens) == (folder / inside, 12)
    assert prepare_model(folder, folder.parent / "cache", print) == plain


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, "Tanh"),
        ({"activation_function": "torch.nn.modules.activation.Tanh"}, "Tanh"),
        ({"activation_function": "torch.nn.modules.linear.Identity"}, "Identity"),
        ({"activation_function": "torch.nn.modules.activation.GELU"}, "GELU"),
        ({"activation_function": "torch.nn.ReLU"}, "ReLU"),
        # sentence-transformers uses its default instead of code from elsewhere.
        ({"activation_function": "transformers.activations.GELUActivation"}, "Tanh"),
    ],
)
def test_dense_without_a_known_activation_is_tanh(folder: Path, config: dict[str, Any], activation: str) -> None:
    write_dense(folder, **config)
    assert read_dense(folder) == Dense(
        folder=folder / "2_Dense", into=16, out=4, has_bias=True, activation=activation, is_residual=False
    )
    assert prepare_model(folder, folder.parent / "cache", print).dimension == 4


def test_dense_settings_are_read(folder: Path) -> None:
    write_dense(folder, bias=False, use_residual=True, module_input_name="sentence_embedding", module_output_name=None)
    assert (read_dense(folder).has_bias, read_dense(folder).is_residual) == (False, True)


def test_dense_may_come_before_pooling(folder: Path) -> None:
    write_dense(folder, name="1_Dense", module_input_name="token_embeddings")
    write_modules(folder, ("Transformer", ""), ("Dense", "1_Dense"), ("Pooling", "1_Pooling"))
    assert [type(step) for step in read_folder(folder).modules.steps] == [Dense, Pooling]
    assert prepare_model(folder, folder.parent / "cache", print).dimension == 4


def test_dense_weights_and_settings_change_the_revision(folder: Path) -> None:
    cache, revisions = folder.parent / "cache", set[str]()
    for activation in ("Tanh", "ReLU"):
        write_dense(folder, activation_function=f"torch.nn.{activation}")
        revisions.add(prepare_model(folder, cache, print).revision)
    save_tensors(
        folder / "2_Dense" / "model.safetensors", {"linear.weight": np.ones((4, 16)), "linear.bias": np.ones(4)}
    )
    revisions.add(prepare_model(folder, cache, print).revision)
    assert len(revisions) == 3


def test_layer_norm_is_read(folder: Path) -> None:
    write_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("LayerNorm", "2_LayerNorm"))
    write_json(folder / "2_LayerNorm" / "config.json", {"dimension": 16})
    norm = make_tensors()["embeddings.LayerNorm.weight"]
    save_tensors(folder / "2_LayerNorm" / "model.safetensors", {"norm.weight": norm, "norm.bias": norm})
    assert read_folder(folder).modules.steps[1] == LayerNorm(folder / "2_LayerNorm", 16)
    prepare_model(folder, folder.parent / "cache", print)


def test_truncate_dim_cuts_vectors(folder: Path) -> None:
    write_json(folder / "config_sentence_transformers.json", {"truncate_dim": 8})
    prepared = prepare_model(folder, folder.parent / "cache", print)
    # The rest of a vector of length 1 is shorter.
    assert (prepared.dimension, prepared.normalize) == (8, False)


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "lasttoken"),
        ({"architectures": ["Qwen3ForCausalLM"], "is_causal": True}, "lasttoken"),
        ({"architectures": ["Qwen3ForCausalLM"], "is_causal": False}, "mean"),
        ({"architectures": ["Qwen3Model"]}, "mean"),
        ({"architectures": []}, "mean"),
        ({"architectures": None}, "mean"),
    ],
)
def test_pooling_without_modules_depends_on_the_class(folder: Path, config: dict[str, Any], mode: str) -> None:
    (folder / "modules.json").unlink()
    write_json(folder / "config.json", CONFIG | config)
    assert read_folder(folder).modules.pooling == (mode,)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "xlm-roberta"])
def test_settings_of_old_file_names_are_read(folder: Path, name: str) -> None:
    (folder / "sentence_bert_config.json").unlink()
    write_json(folder / f"sentence_{name}_config.json", {"max_seq_length": 9, "do_lower_case": True})
    read = read_folder(folder)
    assert (read.max_tokens, read.lower_case) == (9, True)


def test_newest_save_leaves_the_length_to_the_tokenizer(folder: Path) -> None:
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    settings = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    write_json(folder / "sentence_bert_config.json", settings | {"modality_config": {"text": text}})
    assert read_folder(folder).max_tokens == 32
    write_json(folder / "tokenizer_config.json", {"model_max_length": 20})
    assert read_folder(folder).max_tokens == 20
    write_json(folder / "sentence_bert_config.json", settings | {"processor_kwargs": {"model_max_length": 10}})
    assert read_folder(folder).max_tokens == 10


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 8194, "pad_token_id": 1}, 8192),
        ({"model_type": "camembert", "max_position_embeddings": 514, "pad_token_id": 5}, 508),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 0}, 512),
        ({"model_type": "nomic_bert", "n_positions": 8192, "max_trained_positions": 2048}, 2048),
        ({"model_type": "nomic_bert", "max_trained_positions": 2048, "rotary_scaling_factor": 2}, 2048),
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
    ],
)  # fmt: skip
def test_positions_that_no_token_has_do_not_count(folder: Path, config: dict[str, Any], expected: int) -> None:
    (folder / "sentence_bert_config.json").unlink()
    write_json(folder / "config.json", config)
    assert read_folder(folder).max_tokens == expected


def test_config_arguments_replace_the_config(folder: Path) -> None:
    settings = {"max_seq_length": 12, "config_args": {"hidden_act": "relu", "trust_remote_code": True}}
    write_json(folder / "sentence_bert_config.json", settings)
    assert read_folder(folder).config == CONFIG | {"hidden_act": "relu"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (Overrides(pooling="CLS"), (Pooling(("cls",)), Normalize())),
        (Overrides(pooling="LAST", normalize=False), (Pooling(("lasttoken",)),)),
        (Overrides(normalize=True), (Pooling(("mean",)), Normalize())),
    ],
)
def test_overrides_replace_modules(folder: Path, overrides: Overrides, expected: tuple[object, ...]) -> None:
    assert read_folder(folder, overrides).modules.steps == expected


def test_override_of_the_length_only_lowers_it(folder: Path) -> None:
    assert read_folder(folder, Overrides(max_tokens=7)).max_tokens == 7
    assert read_folder(folder, Overrides(max_tokens=70)).max_tokens == 12


def test_normalization_can_be_added_and_removed() -> None:
    modules = Modules(base=Path(), steps=(Pooling(("mean",)),))
    assert not modules.is_normalized
    assert modules.replace_normalization(True).is_normalized
    assert modules.replace_normalization(True).replace_normalization(False) == modules


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([("Transformer", ""), ("Pooling", "1_Pooling"), ("CNN", "2_CNN")], "module 'CNN' in '2_CNN'"),
        ([("Transformer", ""), ("WeightedLayerPooling", "1"), ("Pooling", "1_Pooling")], "'WeightedLayerPooling'"),
        ([("Router", ""), ("Pooling", "1_Pooling")], "does not begin with a Transformer or StaticEmbedding module"),
        ([("CLIPModel", "0_CLIPModel")], "does not begin with a Transformer"),
        ([("Pooling", "1_Pooling"), ("Transformer", "")], "does not begin with a Transformer"),
        ([], "does not begin with a Transformer"),
        ([("Transformer", "")], "0 Pooling modules"),
        ([("Transformer", ""), ("Pooling", "1_Pooling"), ("Pooling", "1_Pooling")], "2 Pooling modules"),
        ([("Transformer", ""), ("Pooling", "1_Pooling"), ("Transformer", "")], "module 'Transformer'"),
        ([("custom_st.Transformer", ""), ("Pooling", "1_Pooling")], "'custom_st.Transformer' is not a module of"),
        ([("Transformer", "none"), ("Pooling", "1_Pooling")], "names the folder none, which does not exist"),
    ],
)
def test_unsupported_modules_are_refused(folder: Path, modules: list[tuple[str, str]], expected: str) -> None:
    write_modules(folder, *modules)
    error = get_error(folder)
    assert expected in error
    assert str(folder / "modules.json") in error


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"in_features": None}, "in_features is None, but must be a whole number"),
        ({"out_features": "4"}, "out_features is '4', but must be a whole number"),
        ({"bias": "yes"}, "bias is 'yes', but must be true or false"),
        ({"activation_function": "torch.nn.Softplus"}, "activation_function is 'torch.nn.Softplus', but Vecmill"),
        ({"activation_function": None}, "activation_function is None, but Vecmill"),
        ({"module_input_name": "token_embeddings"}, "module_input_name is 'token_embeddings', but Vecmill supports"),
        ({"module_output_name": "scores"}, "module_output_name is 'scores', but Vecmill supports"),
        ({"in_features": 8}, "in_features is 8, but the module before it returns 16 values"),
    ],
)
def test_invalid_dense_module_is_refused(folder: Path, config: dict[str, Any], expected: str) -> None:
    write_dense(folder, **config)
    error = get_error(folder)
    assert expected in error
    assert str(folder / "2_Dense" / "config.json") in error


def test_normalize_before_pooling_is_refused(folder: Path) -> None:
    write_modules(folder, ("Transformer", ""), ("Normalize", "1_Normalize"), ("Pooling", "1_Pooling"))
    assert "1_Normalize/config.json: module_input_name is 'sentence_embedding', but" in get_error(folder)


@pytest.mark.parametrize("kind", ["missing", "pickle", "pointer", "damaged"])
def test_unreadable_dense_weights_are_refused(folder: Path, kind: str) -> None:
    write_dense(folder)
    weights = folder / "2_Dense" / "model.safetensors"
    weights.rename(folder / "2_Dense" / "pytorch_model.bin") if kind == "pickle" else weights.unlink()
    if kind in ("pointer", "damaged"):
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1" if kind == "pointer" else b"\xff" * 64)
    expected = {
        "missing": "2_Dense has no model.safetensors; download",
        "pickle": "2_Dense has its weights only as pytorch_model.bin, which Vecmill does not read",
        "pointer": "2_Dense/model.safetensors is a pointer of Git LFS",
        "damaged": "2_Dense/model.safetensors is damaged",
    }
    assert expected[kind] in get_error(folder)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model_type": "SparseEncoder"}, "model_type is 'SparseEncoder', but Vecmill serves only"),
        ({"model_type": "CrossEncoder"}, "model_type is 'CrossEncoder', but Vecmill serves only"),
        ({"model_type": "MultiVectorEncoder"}, "model_type is 'MultiVectorEncoder', but Vecmill serves only"),
        ({"truncate_dim": 0}, "truncate_dim is 0, but must be a whole number from 1"),
        ({"truncate_dim": "64"}, "truncate_dim is '64', but must be a whole number"),
    ],
)
def test_unsupported_settings_are_refused(folder: Path, settings: dict[str, Any], expected: str) -> None:
    write_json(folder / "config_sentence_transformers.json", settings)
    assert f"{folder / 'config_sentence_transformers.json'}: {expected}" in get_error(folder)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"modality_config": {"text": {}, "message": {"method": "forward"}}}, "modality_config.message puts each text"),
        ({"modality_config": {"image": {}}}, "modality_config has no entry for text"),
        ({"modality_config": ["text"]}, "modality_config has no entry for text"),
        ({"modality_config": {"text": {"method": "get_text_features"}}}, "modality_config.text.method is 'get_text"),
        ({"modality_config": {"text": {"method_output_name": "pooler_output"}}}, "method_output_name is 'pooler_outp"),
        ({"transformer_task": "text-generation"}, "transformer_task is 'text-generation', but Vecmill supports only"),
        ({"module_output_name": "sentence_embedding"}, "module_output_name is 'sentence_embedding', but Vecmill"),
        ({"do_lower_case": "no"}, "do_lower_case is 'no', but must be true or false"),
        ({"tokenizer_args": {"add_eos_token": True}}, "sets 'add_eos_token' of the tokenizer"),
        ({"tokenizer_args": 3}, "tokenizer_args is not a JSON object"),
    ],
)
def test_unsupported_transformer_is_refused(folder: Path, settings: dict[str, Any], expected: str) -> None:
    write_json(folder / "sentence_bert_config.json", settings)
    error = get_error(folder)
    assert expected in error
    assert str(folder / "sentence_bert_config.json") in error


def test_too_few_positions_are_refused(folder: Path) -> None:
    write_json(folder / "config.json", {"model_type": "roberta", "max_position_embeddings": 2})
    assert "max_position_embeddings is 2, but must be above 2" in get_error(folder)
