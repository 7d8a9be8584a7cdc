"""Static models of model2vec and of sentence-transformers, compared with their equations in numpy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.unit.workers.test_model_folder import get_error, make_tokenizer, write_json
from workers.engine.engine import Engine
from workers.engine.precision import load_engine
from workers.models.folder import read_folder
from workers.models.prepare import prepare_model
from workers.models.source import Overrides

Array = npt.NDArray[Any]

#: "z" and "?" are unknown: id 1.
TEXTS = ["hello world", "a", "hello z world", "abc. hello", "?", "z"]
VOCABULARY = len(make_tokenizer()["model"]["vocab"])
RANDOM = np.random.default_rng(3)
TABLE = RANDOM.normal(0, 1, (VOCABULARY, 8)).astype(np.float32)
FACTORS = RANDOM.uniform(0.1, 2, VOCABULARY)
MAPPING = RANDOM.integers(0, 10, VOCABULARY)
KINDS = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "int32": "I32"}


def save_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Write a safetensors file."""
    header, content = {}, b""
    for name, array in arrays.items():
        offsets = [len(content), len(content) + array.nbytes]
        header[name] = {"dtype": KINDS[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        content += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def write_model2vec(path: Path, arrays: dict[str, Array], **config: Any) -> Path:
    path.mkdir(parents=True)
    save_arrays(path / "model.safetensors", arrays)
    write_json(path / "tokenizer.json", make_tokenizer())
    write_json(path / "config.json", {"model_type": "model2vec", "normalize": False, **config})
    return path


def add_modules(path: Path, *kinds: str, base: str = ".") -> None:
    """Write a modules.json whose first module is in the folder `base`."""
    entries = [{"path": base if kind == "StaticEmbedding" else f"9_{kind}", "type": kind} for kind in kinds]
    for entry in entries:
        entry["type"] = f"sentence_transformers.models.{entry['type']}"
    write_json(path / "modules.json", entries)


def list_ids(text: str) -> list[int]:
    """Return the ids of a text in the tiny tokenizer, without special tokens."""
    vocabulary = make_tokenizer()["model"]["vocab"]
    words = {"hello": ["hello"], "world": ["world"], "a": ["a"], "abc.": ["a", "##b", "##c", "."]}
    return [vocabulary[piece] for word in text.split() for piece in words.get(word, ["[UNK]"])]


def compute_mean(ids: list[int], table: Array, factors: Array | None = None, mapping: Array | None = None) -> Array:
    rows = table[ids if mapping is None else mapping[ids]].astype(np.float64)
    if factors is not None:
        rows = rows * factors[ids][:, None]
    return rows.mean(0) if ids else np.zeros(table.shape[1])


def embed(folder: Path) -> Array:
    """Return the vectors of `TEXTS` by the engine."""
    cache = folder.parent / "cache"
    engine = Engine(prepare_model(folder, cache, print), "CPU", 1, cache)
    ids = engine.tokenize_texts(TEXTS)
    assert [row.tolist() for row in ids] == [list_ids(text) for text in TEXTS]
    return engine.run_inference(0, ids).copy()


def test_model2vec_drops_unknown_tokens(tmp_path: Path) -> None:
    folder = write_model2vec(tmp_path / "tiny", {"embeddings": TABLE})
    known = [[token for token in list_ids(text) if token != 1] for text in TEXTS]
    np.testing.assert_allclose(embed(folder), [compute_mean(ids, TABLE) for ids in known], atol=1e-6)


def test_model2vec_applies_factors_and_mapping(tmp_path: Path) -> None:
    table = TABLE[:10].astype(np.float16)
    folder = write_model2vec(tmp_path / "tiny", {"embeddings": table, "weights": FACTORS, "mapping": MAPPING})
    known = [[token for token in list_ids(text) if token != 1] for text in TEXTS]
    expected = [compute_mean(ids, table, FACTORS, MAPPING) for ids in known]
    np.testing.assert_allclose(embed(folder), expected, atol=1e-6)
    assert prepare_model(folder, tmp_path / "cache", print).vocabulary_size == VOCABULARY


def test_model2vec_normalizes_as_its_config_declares(tmp_path: Path) -> None:
    folder = write_model2vec(tmp_path / "tiny", {"embeddings": TABLE}, normalize=True)
    lengths = np.linalg.norm(embed(folder), axis=1)
    # The last two texts have only unknown tokens.
    np.testing.assert_allclose(lengths, [1, 1, 1, 1, 0, 0], atol=1e-6)


def test_sentence_transformers_keeps_unknown_tokens(tmp_path: Path) -> None:
    folder = write_model2vec(tmp_path / "tiny", {"embeddings": TABLE, "weights": FACTORS}, normalize=True)
    add_modules(folder, "StaticEmbedding")
    expected = [compute_mean(list_ids(text), TABLE, FACTORS) for text in TEXTS]
    np.testing.assert_allclose(embed(folder), expected, atol=1e-6)


def test_static_embedding_needs_no_config(tmp_path: Path) -> None:
    write_model2vec(tmp_path / "tiny" / "0_StaticEmbedding", {"embedding.weight": TABLE})
    folder = tmp_path / "tiny"
    (folder / "0_StaticEmbedding" / "config.json").unlink()
    add_modules(folder, "StaticEmbedding", "Normalize", base="0_StaticEmbedding")
    means = np.array([compute_mean(list_ids(text), TABLE) for text in TEXTS])
    np.testing.assert_allclose(embed(folder), means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-6)


def test_settings_of_the_tokenizer_do_not_count(tmp_path: Path) -> None:
    folder = write_model2vec(tmp_path / "tiny", {"embeddings": TABLE})
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "cls_token": "hello"}
    write_json(folder / "tokenizer_config.json", settings)
    engine = Engine(prepare_model(folder, tmp_path / "cache", print), "CPU", 1, tmp_path / "cache")
    assert engine.tokenize_texts(["Hello WORLD"])[0].tolist() == list_ids("hello world")


def test_longest_input_depends_on_the_library(tmp_path: Path) -> None:
    folder = write_model2vec(tmp_path / "tiny", {"embeddings": TABLE})
    assert read_folder(folder).max_tokens == 512
    write_json(folder / "config.json", {"model_type": "model2vec", "max_length": 100})
    assert read_folder(folder).max_tokens == 100
    add_modules(folder, "StaticEmbedding")
    assert read_folder(folder).max_tokens == 32768


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"vectors": TABLE}, "no tensor embeddings"),
        ({"embeddings": TABLE[0]}, "embeddings has the shape (8,), but must have two dimensions"),
        ({"embeddings": TABLE[:5]}, "but vocab_size"),
        ({"embeddings": TABLE, "weights": FACTORS[:-1]}, "weights has the shape"),
        ({"embeddings": TABLE[:9], "mapping": MAPPING}, "mapping has rows that embeddings does not have"),
        ({"embeddings": TABLE, "mapping": -MAPPING}, "mapping has rows that embeddings does not have"),
        ({"embeddings": TABLE, "mapping": FACTORS}, "mapping is not a list of whole numbers"),
        ({"embeddings": np.full_like(TABLE, np.nan)}, "values that are not finite"),
    ],
)
def test_damaged_table_is_named(tmp_path: Path, arrays: dict[str, Array], expected: str) -> None:
    assert expected in get_error(write_model2vec(tmp_path / "tiny", arrays))


def test_static_model_is_served_in_int8(tmp_path: Path) -> None:
    folder = write_model2vec(tmp_path / "m", {"embeddings": TABLE})
    overrides = Overrides(precision="int8")
    lines: list[str] = []
    prepared = prepare_model(folder, tmp_path / "cache", lines.append, overrides)
    engine, name = load_engine(prepared, "CPU", 1, tmp_path / "cache", overrides)
    vectors = engine.run_inference(0, engine.tokenize_texts(["hello world", "a"]))
    assert name == "int8"
    assert lines[-2:] == ["  rounding the weights to int8", "  converting the tokenizer"]
    np.testing.assert_allclose(
        vectors, [compute_mean(list_ids(text), TABLE) for text in ("hello world", "a")], atol=0.02
    )
