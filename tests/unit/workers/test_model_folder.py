"""Settings of a model folder, and the errors for invalid ones."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.engine.engine import Engine
from workers.models.folder import read_folder
from workers.models.json_files import ModelError
from workers.models.prepare import prepare_model
from workers.models.prompts import Matryoshka, Prompts, read_matryoshka, read_prompts

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "vocab_size": 64,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
STORED = {"F32": "<f4", "F16": "<f2"}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def make_tensors(config: dict[str, Any] = CONFIG, seed: int = 0) -> dict[str, Any]:
    """Return random weights of a BERT model by name, float32."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    rows = {"word": config["vocab_size"], "position": config["max_position_embeddings"], "token_type": 2}
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (count, hidden) for name, count in rows.items()
    }
    dense: dict[str, tuple[int, int]] = {}
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{number}." for number in range(config["num_hidden_layers"])):
        dense |= {f"{layer}attention.{part}": (hidden, hidden) for part in ("self.query", "self.key", "self.value")}
        dense |= {layer + "attention.output.dense": (hidden, hidden), layer + "intermediate.dense": (inner, hidden)}
        dense |= {layer + "output.dense": (hidden, inner)}
        norms += [layer + "attention.output.LayerNorm", layer + "output.LayerNorm"]
    for name, shape in dense.items():
        shapes |= {name + ".weight": shape, name + ".bias": shape[:1]}
    for name in norms:
        shapes |= {name + ".weight": (hidden,), name + ".bias": (hidden,)}
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def save_tensors(path: Path, weights: dict[str, Any], kind: str = "F32") -> None:
    """Write a safetensors file with elements of one kind; bfloat16 is the upper half of each float32."""
    header, content = {}, b""
    for name, tensor in weights.items():
        raw = (tensor.view(np.uint32) >> 16).astype("<u2") if kind == "BF16" else tensor.astype(STORED[kind])
        offsets = [len(content), len(content) + raw.nbytes]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        content += raw.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def make_tokenizer(vocabulary: list[str] | None = None, **normalizer: Any) -> dict[str, Any]:
    """Return the content of a BERT tokenizer.json."""
    words = SPECIAL + (
        vocabulary or [*"abcdefghij", *(f"##{letter}" for letter in "abcdefghij"), ".", "hello", "world"]
    )
    ids = {word: number for number, word in enumerate(words)}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": ids[word], "content": word, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for word in SPECIAL
        ],
        "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": None,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
        | {"strip_accents": None, "lowercase": True}
        | normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
        | {"max_input_chars_per_word": 100, "vocab": ids},
    }


def write_folder(path: Path, *, config: dict[str, Any] | None = None, kind: str = "F32", seed: int = 0) -> Path:
    """Write a tiny BERT model as sentence-transformers saves it: mean pooling, normalized, at most 12 tokens."""
    write_json(path / "config.json", CONFIG | (config or {}))
    save_tensors(path / "model.safetensors", make_tensors(seed=seed), kind)
    write_json(path / "tokenizer.json", make_tokenizer())
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": at, "type": f"sentence_transformers.models.{name}"} for at, name in kinds.items()]
    write_json(path / "modules.json", modules)
    write_json(path / "1_Pooling" / "config.json", {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
    write_json(path / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny")


def test_sentence_transformers_folder_is_read(folder: Path) -> None:
    read = read_folder(folder)
    assert (read.kind, read.family, read.max_tokens) == ("huggingface", "bert", 12)
    assert (read.modules.pooling, read.modules.is_normalized) == (("mean",), True)


def test_folder_without_modules_uses_mean_pooling(folder: Path) -> None:
    (folder / "modules.json").unlink()
    read = read_folder(folder)
    assert (read.modules.pooling, read.modules.is_normalized) == (("mean",), False)


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": True}, ("mean",)),
        ({"pooling_mode_lasttoken": True}, ("lasttoken",)),
        ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len_tokens",)),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, ("cls", "max")),
        ({"embedding_dimension": 16, "pooling_mode": "cls"}, ("cls",)),
        ({"embedding_dimension": 16, "pooling_mode": ["lasttoken"]}, ("lasttoken",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        ({"pooling_mode": "max", "pooling_mode_cls_token": True}, ("max",)),
        ({"word_embedding_dimension": 16}, ("mean",)),
    ],
)
def test_pooling_of_each_sentence_transformers_version_is_read(
    folder: Path, config: dict[str, Any], modes: tuple[str, ...]
) -> None:
    write_json(folder / "1_Pooling" / "config.json", config)
    assert read_folder(folder).modules.pooling == modes


@pytest.mark.parametrize(
    ("own", "tokenizers", "positions", "expected"),
    [
        (12, None, 32, 12),
        (24, 16, 32, 24),  # the setting of sentence-transformers, although the tokenizer's is smaller
        (None, 16, 32, 16),
        (None, 10**30, 32, 32),  # transformers writes this number if there is no limit
        (64, None, 32, 32),
        (12, None, None, 12),
    ],
)
def test_positions_limit_max_tokens(
    folder: Path, own: int | None, tokenizers: int | None, positions: int | None, expected: int
) -> None:
    write_json(folder / "config.json", CONFIG | {"max_position_embeddings": positions})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": own})
    write_json(folder / "tokenizer_config.json", {"model_max_length": tokenizers})
    assert read_folder(folder).max_tokens == expected


def get_error(folder: Path) -> str:
    """Return the error for a folder, which must be one line."""
    with pytest.raises(ModelError) as caught:
        prepare_model(folder, folder.parent / "cache", lambda _: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_without_a_model_is_rejected_with_advice(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "Vecmill loads folders with" in get_error(tmp_path / "empty")
    (tmp_path / "config.json").touch()
    assert "is a file; set --model to the folder that holds it" in get_error(tmp_path / "config.json")
    assert "could not read the model folder" in get_error(tmp_path / ("x" * 300))


def test_missing_folder_is_rejected_with_advice(tmp_path: Path) -> None:
    assert "does not exist; set --model to a folder, or to OWNER/NAME on the Hugging Face hub" in get_error(
        tmp_path / "none"
    )


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["gte-embeddings/1/model.xml", "gte-tokenizer/1/model.xml"], "gte-"),  # OVMS, one level up
        (["models/graph.pbtxt", "config.json"], "models/graph.pbtxt"),
    ],
)
def test_export_one_level_up_is_rejected_with_its_folder(tmp_path: Path, files: list[str], named: str) -> None:
    for name in files:
        (tmp_path / "export" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "export" / name).write_text("{}")
    assert f"has no model, but there is {named}" in get_error(tmp_path / "export")


def test_weights_that_need_torch_are_rejected(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in get_error(folder)


def test_unknown_family_is_rejected_with_the_known_ones(folder: Path) -> None:
    write_json(folder / "config.json", CONFIG | {"model_type": "t5"})
    assert "has the model_type 't5', but Vecmill builds only bert, camembert, " in get_error(folder)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", b"{", "config.json"),
        ("config.json", b"[]", "not a JSON object"),
        ("config.json", b"\xff", "config.json"),
        ("config.json", b"[" * 100_000, "config.json"),
        ("config.json", rb'{"model_type": "bert", "note": "\ud800"}', "surrogates not allowed"),
        ("config_sentence_transformers.json", b"{", "config_sentence_transformers.json"),
        ("config.json", b"{}", "model_type"),
        ("modules.json", b"{}{", "modules.json"),
        ("modules.json", b"[1]", "modules.json"),
        ("modules.json", b'[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]', "does not begin with"),
        ("modules.json", b'[{"type": "sentence_transformers.models.Transformer", "path": ""}]', "Pooling"),
        ("1_Pooling/config.json", b'{"pooling_mode": "median"}', "pooling_mode is 'median', but must be one or"),
        ("1_Pooling/config.json", b'{"pooling_mode": ["mean", 3]}', "pooling_mode is ['mean', 3], but must be one or"),
        ("1_Pooling/config.json", b'{"pooling_mode": []}', "pooling_mode is [], but must be one or"),
        ("1_Pooling/config.json", b'{"pooling_mode_cls_token": "no"}', "pooling_mode_cls_token is 'no'"),
        ("1_Pooling/config.json", b'{"include_prompt": 0}', "include_prompt is 0, but must be true or false"),
        ("1_Pooling/config.json", b'{"pooling_mode": 3}', "3"),
        ("sentence_bert_config.json", b'{"max_seq_length": "long"}', "max_seq_length"),
        ("sentence_bert_config.json", b'{"max_seq_length": 0}', "max_seq_length"),
        ("sentence_bert_config.json", b'{"max_seq_length": NaN}', "max_seq_length"),
        ("tokenizer.json", b"{}", "tokenizer.json"),
        ("model.safetensors", b"", "model.safetensors"),
        ("model.safetensors", b"\xff" * 100, "model.safetensors"),
    ],
)
def test_error_names_the_invalid_file(folder: Path, name: str, content: bytes, expected: str) -> None:
    (folder / name).write_bytes(content)
    assert expected in get_error(folder)


def test_unreadable_file_is_reported(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").unlink()
    assert "1_Pooling" in get_error(folder)


def test_truncated_weights_file_is_reported(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors is damaged" in get_error(folder)


# --- prompts, Matryoshka ---------------------------------------------------------------------------------------------


def load_prompts(folder: Path, **config: Any) -> Prompts:
    """Return the folder's prompts after writing this configuration."""
    write_json(folder / "config_sentence_transformers.json", config)
    return read_prompts(read_folder(folder))


def test_prompts_are_those_of_sentence_transformers(folder: Path) -> None:
    assert read_prompts(read_folder(folder)) == Prompts()
    assert load_prompts(folder, __version__={}) == Prompts()
    assert load_prompts(folder, prompts=None, default_prompt_name=None) == Prompts()
    texts = {"query": "query: ", "document": ""}
    assert load_prompts(folder, prompts=texts) == Prompts(texts)
    assert load_prompts(folder, prompts=texts | {"document": None}) == Prompts(texts)
    assert load_prompts(folder, prompts=texts, default_prompt_name="query") == Prompts(texts, "query")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"prompts": ["query: "]}, "prompts must be an object"),
        ({"prompts": {"query": 1}}, "prompts must be an object"),
        ({"prompts": {"": "query: "}}, "prompts must be an object"),
        ({"prompts": {"a": "\ud800"}}, "surrogates not allowed"),
        ({"prompts": {"a": "b"}, "default_prompt_name": "query"}, "default_prompt_name is 'query'"),
        ({"prompts": {"a": "b"}, "default_prompt_name": ["a"]}, r"default_prompt_name is \['a'\]"),
        ({"prompts": {"a": "b" * 4097}}, "more than 4096 characters"),
        ({"prompts": {"a" * 513: "b"}}, "more than"),
        ({"prompts": {str(number): "" for number in range(1001)}}, "more than 1000 prompts"),
    ],
)
def test_invalid_prompts_are_rejected(folder: Path, config: dict[str, Any], expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        load_prompts(folder, **config)


def test_prompts_excluded_from_pooling_have_an_input(folder: Path) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})
    assert load_prompts(folder, prompts={"query": "a b"}) == Prompts({"query": "a b"})
    cache = folder.parent / "cache"
    engine = Engine(prepare_model(folder, cache, print), "CPU", 1, cache)
    assert [engine.count_prompt_tokens(text) for text in (b"a bc", b"a c", b"a b")] == [3, 0, 3]
    ids = engine.tokenize_texts(["a bc", "a bc", "hello"])
    prompted, plain, _ = engine.run_inference(0, ids, [3, 0, 0])
    assert np.abs(prompted - plain).max() > 1e-4


def test_longest_matching_prompt_counts(folder: Path) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"include_prompt": False})
    load_prompts(folder, prompts={"short": "a", "empty": "", "long": "a b c"})
    cache = folder.parent / "cache"
    engine = Engine(prepare_model(folder, cache, print), "CPU", 1, cache)
    assert [engine.count_prompt_tokens(text) for text in (b"a b", b"a b c d", b"hello")] == [2, 4, 0]


def test_matryoshka_is_read_from_the_config(folder: Path) -> None:
    assert read_matryoshka(folder, {}) == Matryoshka(False, [])
    assert read_matryoshka(folder, {"is_matryoshka": True}) == Matryoshka(True, [])
    assert read_matryoshka(folder, {"matryoshka_dimensions": [64, 128]}) == Matryoshka(True, [64, 128])
    for wrong in ("64", [0], [True], [1.5]):
        with pytest.raises(ModelError, match="matryoshka_dimensions must be a list"):
            read_matryoshka(folder, {"matryoshka_dimensions": wrong})
    with pytest.raises(ModelError, match="is_matryoshka is 'yes'"):
        read_matryoshka(folder, {"is_matryoshka": "yes"})
