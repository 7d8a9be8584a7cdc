"""Exported models, served by Vecmill through OVMS's config.json: vectors equal to those of the source."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.harness.families import FAMILIES, read_golden
from tests.unit.workers.test_bert_import import embed_ids
from tests.unit.workers.test_model_folder import SPECIAL, make_tokenizer, write_json
from workers.models.export import ExportOptions, export_model
from workers.models.prepare import PreparedModel, prepare_model
from workers.models.sources import Options, find_sources


def write_source(path: Path, family: str, pooling: str) -> Path:
    """Write a golden model with a tokenizer and the modules of sentence-transformers, normalized."""
    path.mkdir()
    config = json.loads((FAMILIES / family / "config.json").read_text())
    shutil.copy(FAMILIES / family / "model.safetensors", path)
    write_json(path / "config.json", config)
    words = [f"w{number}" for number in range(config["vocab_size"] - len(SPECIAL))]
    write_json(path / "tokenizer.json", make_tokenizer(words))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": at, "type": f"sentence_transformers.models.{name}"} for at, name in kinds.items()]
    write_json(path / "modules.json", modules)
    write_json(path / "1_Pooling" / "config.json", {"pooling_mode": pooling})
    return path


def serve_export(source: Path, **options: Any) -> PreparedModel:
    """Export a model, and return it as a worker prepares it from config.json."""
    root = source.parent
    config = root / "models" / "config.json"
    plain = ExportOptions(source=str(source), repository=root / "models", config_path=config)
    export_model(msgspec.structs.replace(plain, **options), root / "cache", lambda _: None)
    found = find_sources(Options(config=str(config)), root / "cache", lambda _: None)
    assert found.refused == []
    [served] = found.sources
    return prepare_model(served.folder, root / "cache", lambda _: None, served.overrides)


def compare(family: str, pooling: str, root: Path, **options: Any) -> Any:
    """Return the cosines of the vectors of the golden texts, and their largest difference."""
    source = write_source(root / "tiny", family, pooling)
    ids = [text.tolist() for text in read_golden(family).texts]
    expected = embed_ids(prepare_model(source, root / "cache", lambda _: None), ids)
    prepared = serve_export(source, **options)
    vectors = embed_ids(prepared, ids)
    return (vectors * expected).sum(1), np.abs(vectors - expected).max()


@pytest.mark.parametrize(
    ("family", "pooling"), [("gte", "cls"), ("gte-scaled", "mean"), ("modernbert", "mean"), ("qwen3", "lasttoken")]
)
def test_exported_vectors_equal_the_source(tmp_path: Path, family: str, pooling: str) -> None:
    _, difference = compare(family, pooling, tmp_path, weight_format="fp32")
    assert difference <= 1e-6


@pytest.mark.parametrize(
    ("name", "extra", "lowest"), [("fp16", "", 0.99999), ("int8", "", 0.999), ("int4", "--group-size 16", 0.9)]
)
def test_smaller_weights_keep_the_direction(tmp_path: Path, name: str, extra: str, lowest: float) -> None:
    cosines, _ = compare("gte", "cls", tmp_path, weight_format=name, extra_quantization_params=extra)
    assert cosines.min() > lowest
