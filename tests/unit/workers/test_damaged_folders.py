"""Damaged model folders: each is refused in one sentence that names the file, the key and what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.workers.test_model_folder import (
    CONFIG,
    SPECIAL,
    get_error,
    make_tensors,
    make_tokenizer,
    save_tensors,
    write_folder,
    write_json,
)
from workers.engine.device import DeviceError
from workers.engine.engine import Engine
from workers.models.prepare import prepare_model

INFINITY, NAN = float("inf"), float("nan")
FILES = [
    "config.json",
    "tokenizer.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
]
GARBAGE = [b"", b"{", b'{"a": ', b"null", b"7", b"[[]]", b"\xff\xfe", b"\0" * 64, b"[" * 100_000]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny")


@pytest.mark.parametrize("content", GARBAGE, ids=lambda content: repr(content[:8]))
@pytest.mark.parametrize("name", FILES)
def test_damaged_json_file_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    error = get_error(folder)
    assert str(folder / name) in error
    assert len(error) < 400 + len(str(folder))


@pytest.mark.parametrize("name", [*FILES, "tokenizer_config.json"])
def test_huge_json_file_is_not_read(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as file:
        file.truncate(1 << 40)
    assert f"could not read {folder / name}: it is larger than" in get_error(folder)


@pytest.mark.parametrize("content", GARBAGE, ids=lambda content: repr(content[:8]))
def test_damaged_weights_are_named(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert f"{folder / 'model.safetensors'} is damaged" in get_error(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["missing", "a folder", "a pointer"])
def test_missing_file_is_named(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink()
    if kind == "a folder":
        (folder / name).mkdir()
    elif kind == "a pointer":
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:53aa\n")
        assert get_error(folder) == (
            f"{folder / name} is a pointer of Git LFS; fetch the file itself with: git lfs pull"
        )
        return
    assert f"has no {name}; Vecmill loads folders with" in get_error(folder)


@pytest.mark.parametrize("name", ["modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"])
def test_link_to_a_missing_file_is_not_ignored(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder / "nowhere")
    assert f"could not read {folder / name}: No such file or directory" in get_error(folder)


COUNTS = ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size"]
COUNTS += ["max_position_embeddings", "type_vocab_size", "pad_token_id"]
NO_COUNTS = [-1, "x", "30522", [0], {}, True, 0.5, NAN]


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
@pytest.mark.parametrize("key", COUNTS)
def test_wrong_count_is_named(folder: Path, key: str, value: Any) -> None:
    write_json(folder / "config.json", CONFIG | {key: value})
    assert f"{folder / 'config.json'}: {key} is {value!r}, but must be a whole number from " in get_error(folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        *((key, 0, f"{key} is 0, but must be a whole number from 1 to") for key in COUNTS[:-1]),
        *((key, 10**400, f"{key} is 1000") for key in COUNTS if key != "max_position_embeddings"),
        ("vocab_size", INFINITY, "vocab_size is inf"),
        ("vocab_size", None, "vocab_size is None"),
        ("num_hidden_layers", None, "num_hidden_layers is None"),
        ("max_position_embeddings", 1, "(32, 16), but config.json requires (1, 16)"),
        ("pad_token_id", 64, "pad_token_id is 64, but must be a whole number from 0 to 63"),
        ("layer_norm_eps", NAN, "layer_norm_eps is nan, but must be a number from 0 to 1"),
        ("layer_norm_eps", -1, "layer_norm_eps is -1"),
        ("layer_norm_eps", "1e-12", "layer_norm_eps is '1e-12'"),
        ("layer_norm_eps", [0], "layer_norm_eps is [0]"),
        ("hidden_act", ["gelu"], "hidden_act ['gelu'] is not supported"),
        ("hidden_act", {}, "hidden_act {} is not supported"),
        ("hidden_act", None, "hidden_act None is not supported"),
        ("model_type", None, "config.json has no model_type"),
        ("model_type", "x" * 10_000, "has the model_type 'xxxx"),
        ("matryoshka_dimensions", [0], "matryoshka_dimensions must be"),
        ("matryoshka_dimensions", {"a": 1}, "matryoshka_dimensions must be"),
        ("is_matryoshka", 1, "is_matryoshka is 1"),
    ],
)
def test_wrong_value_is_named(folder: Path, key: str, value: Any, expected: str) -> None:
    write_json(folder / "config.json", CONFIG | {key: value})
    error = get_error(folder)
    assert expected in error
    assert len(error) < 400 + len(str(folder))


@pytest.mark.parametrize("value", [0, -1, 0.5, "12", [], True, NAN], ids=repr)
@pytest.mark.parametrize(
    ("file", "key"), [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")]
)
def test_wrong_length_is_named(folder: Path, file: str, key: str, value: Any) -> None:
    (folder / "sentence_bert_config.json").unlink()
    write_json(folder / file, {key: value})
    assert f"{folder / file}: {key} is {value!r}, but must be a whole number from 1 to " in get_error(folder)


def test_length_without_room_for_text_is_rejected(folder: Path) -> None:
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 2})
    assert "limits inputs to 2 tokens, but its tokenizer adds 2 to each text; correct" in get_error(folder)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 3})
    prepare_model(folder, folder.parent / "cache", print)


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
def test_weight_that_is_not_finite_is_named(folder: Path, value: float) -> None:
    tensors = make_tensors()
    tensors["encoder.layer.1.output.dense.weight"][3, 5] = value
    save_tensors(folder / "model.safetensors", tensors)
    assert "encoder.layer.1.output.dense.weight has values that are not finite" in get_error(folder)


def test_weights_too_large_for_float32_are_rejected(folder: Path) -> None:
    tensors = make_tensors()
    tensors["encoder.layer.1.output.dense.weight"][:] = 3e38
    save_tensors(folder / "model.safetensors", tensors)
    cache = folder.parent / "cache"
    with pytest.raises(DeviceError, match="the model returned a vector that is not finite, so its weights are damaged"):
        Engine(prepare_model(folder, cache, print), "CPU", 1, cache).warm_up()
    with pytest.raises(DeviceError, match="not finite in bf16; set --precision f32"):
        Engine(prepare_model(folder, cache, print), "CPU", 1, cache, {"INFERENCE_PRECISION_HINT": "bf16"}).warm_up()


@pytest.mark.parametrize("path", ["/etc", "..", "../../../etc", "1_Pooling/../../etc"])
def test_module_outside_the_folder_is_not_opened(folder: Path, path: str) -> None:
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": path, "type": "sentence_transformers.models.Pooling"},
    ]
    write_json(folder / "modules.json", modules)
    assert f"{folder / 'modules.json'}: path {path!r} leads out of the model folder" in get_error(folder)


@pytest.mark.parametrize(
    "module",
    [
        {"path": "a", "type": 3},
        {"path": 3, "type": "sentence_transformers.models.Pooling"},
        {"path": None, "type": "a"},
        {"path": ""},
        "a",
        {},
    ],
    ids=repr,
)
def test_module_of_wrong_types_is_rejected(folder: Path, module: Any) -> None:
    write_json(folder / "modules.json", [module])
    assert f"{folder / 'modules.json'} is not a list of modules with type and path" in get_error(folder)


def change_model(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda spec: spec["model"].update(changes)


def replace_part(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda spec: spec.update({name: value})


FEW_WORDS = {word: number for number, word in enumerate(SPECIAL)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_model(vocab=FEW_WORDS | {"a": 64}), "has the token id 64, but vocab_size of config.json is 64"),
        (
            lambda spec: spec.update(post_processor={"type": "BertProcessing", "sep": ["[SEP]", 999], "cls": ["a", 2]}),
            "has the token id 999, but vocab_size of config.json is 64",
        ),
        (change_model(vocab=FEW_WORDS | {"a": -1}), "could not convert"),
        (change_model(vocab=FEW_WORDS | {"a": 2**40}), "could not convert"),
        (change_model(vocab={}), "could not convert"),
        (change_model(unk_token="[NONE]"), "could not convert"),
        (change_model(unk_token=None), "could not convert"),
        (change_model(max_input_chars_per_word="x"), "max_input_chars_per_word is 'x', but must be a whole number"),
        (change_model(max_input_chars_per_word=-1), "max_input_chars_per_word is -1, but must be a whole number"),
        (change_model(type=3), "could not convert"),
        *(
            (replace_part(part, value), "could not convert")
            for part in ("normalizer", "pre_tokenizer", "post_processor", "model", "padding", "added_tokens")
            for value in (3, (), "x")
        ),
    ],
)
def test_damaged_tokenizer_is_named(folder: Path, change: Callable[[dict[str, Any]], object], expected: str) -> None:
    spec = make_tokenizer()
    change(spec)
    write_json(folder / "tokenizer.json", spec)
    error = get_error(folder)
    assert expected in error
    assert str(folder / "tokenizer.json") in error
    assert len(error) < 400 + len(str(folder))


def test_largest_values_are_accepted(folder: Path) -> None:
    vocabulary = FEW_WORDS | {"a": 63}
    spec = make_tokenizer()
    change_model(vocab=vocabulary, max_input_chars_per_word=99_999)(spec)
    fixed = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None}
    spec["padding"] = fixed | {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    write_json(folder / "tokenizer.json", spec)
    write_json(folder / "config.json", CONFIG | {"pad_token_id": 63, "layer_norm_eps": 1e-5})
    prepared = prepare_model(folder, folder.parent / "cache", print)
    assert (prepared.pad_id, prepared.vocabulary_size) == (63, 64)
    engine = Engine(prepared, "CPU", 1, folder.parent / "cache")
    ids = engine.tokenize_texts(["a"])
    assert [row.tolist() for row in ids] == [[2, 63, 3]]
    assert np.isfinite(engine.run_inference(0, ids)).all()
