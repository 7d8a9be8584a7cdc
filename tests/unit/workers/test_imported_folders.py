"""Folders with exported models: which settings count, and whether the vectors are those of the original."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from tests.harness.graphs import add_sentence, build_graph, encode_onnx, save_graph
from tests.harness.ovms_folders import (
    GRAPH_TODAY,
    write_2024_05_layout,
    write_files,
    write_seed_layout,
    write_today_layout,
)
from tests.harness.processes import ROOT
from tests.unit.workers.test_model_folder import CONFIG, write_folder, write_json
from workers.engine.device import DeviceError
from workers.engine.engine import Engine
from workers.engine.tokenizer import Tokenizer
from workers.models.folder import read_folder
from workers.models.json_files import ModelError
from workers.models.precision import WeightFormat, compress_weights
from workers.models.prepare import PreparedModel, prepare_model
from workers.models.source import Overrides, Source
from workers.models.sources import Options, find_sources

TEXTS = ["hello world", "a", "", "hello. " * 4, "unknown ☃"]
EXPORTED = ("config.json", "tokenizer.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of a tiny BERT model with mean pooling, normalized."""
    return write_folder(tmp_path / "tiny")


@pytest.fixture
def tokenizer_ir(folder: Path) -> ov.Model:
    import openvino_tokenizers
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=library, pad_token="[PAD]")  # type: ignore[no-untyped-call]
    return openvino_tokenizers.convert_tokenizer(wrapped)


def write_export(folder: Path, into: Path, *names: str, graph: ov.Model | None = None) -> Path:
    """Write an IR and copy files of the original folder to it."""
    save_graph(graph or build_graph(folder), into / "openvino_model.xml")
    for name in names or EXPORTED:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, into / name)
    return into


def prepare(path: Path, overrides: Overrides | None = None) -> tuple[PreparedModel, list[str]]:
    lines: list[str] = []
    return prepare_model(path, path.parent / "cache", lines.append, overrides), lines


def embed(path: Path, overrides: Overrides | None = None) -> Any:
    """Return the vectors of the texts."""
    prepared, _ = prepare(path, overrides)
    engine = Engine(prepared, "CPU", 1, path.parent / "cache")
    ids = [ids for ids in engine.tokenize_texts(TEXTS) if len(ids) <= engine.max_tokens]
    return engine.run_inference(0, ids).copy()


def embed_source(source: Source) -> Any:
    return embed(source.folder, source.overrides)


def test_export_with_modules_equals_the_original(folder: Path, tmp_path: Path) -> None:
    names = (*EXPORTED, "modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
    export = write_export(folder, tmp_path / "export", *names)
    read = read_folder(export)
    assert (read.kind, read.modules.pooling, read.max_tokens) == ("ir", ("mean",), 12)
    np.testing.assert_allclose(embed(export), embed(folder), atol=1e-6)


def test_export_with_lone_pooling_uses_it(folder: Path, tmp_path: Path) -> None:
    export = write_export(folder, tmp_path / "export")
    write_json(export / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    assert read_folder(export).modules.pooling == ("cls",)
    np.testing.assert_allclose(embed(export), embed(folder, Overrides(pooling="CLS", normalize=False)), atol=1e-6)


def test_graph_in_openvino_folder_is_read(folder: Path) -> None:
    expected = embed(folder)
    save_graph(build_graph(folder), folder / "openvino" / "openvino_model.xml")
    (folder / "model.safetensors").unlink()
    assert read_folder(folder).kind == "ir"
    np.testing.assert_allclose(embed(folder), expected, atol=1e-6)


def test_weights_are_preferred_to_an_export(folder: Path) -> None:
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"damaged")
    assert read_folder(folder).kind == "huggingface"
    assert prepare(folder)[0].dimension == 16


def test_export_serves_a_family_that_cannot_be_built(folder: Path) -> None:
    expected = embed(folder)
    save_graph(build_graph(folder), folder / "openvino" / "openvino_model.xml")
    write_json(folder / "config.json", CONFIG | {"model_type": "deberta-v2"})
    np.testing.assert_allclose(embed(folder), expected, atol=1e-6)


def test_named_file_is_preferred_to_weights(folder: Path, tmp_path: Path) -> None:
    (folder / "onnx").mkdir()
    table = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    (folder / "onnx" / "model_quantized.onnx").write_bytes(encode_onnx(table))
    (source,) = find_sources(Options(model=str(folder / "onnx" / "model_quantized.onnx")), tmp_path, print).sources
    assert source == Source("tiny", folder, Overrides(file="onnx/model_quantized.onnx"))
    assert prepare(source.folder, source.overrides)[0].dimension == 4


def test_lone_ir_has_the_limit_of_ovms(folder: Path, tmp_path: Path, tokenizer_ir: ov.Model) -> None:
    export = write_export(folder, tmp_path / "export", "tokenizer.json")
    assert read_folder(export).max_tokens == 512
    assert prepare(export)[0].vocabulary_size == 64


def test_export_without_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    export = write_export(folder, tmp_path / "export", "config.json")
    with pytest.raises(ModelError, match=r"export has no tokenizer\.json"):
        read_folder(export)


def test_layout_of_today_equals_the_original(folder: Path, tmp_path: Path) -> None:
    config = write_today_layout(tmp_path / "repository")
    write_export(folder, config.parent / "acme/tiny")
    (source,) = find_sources(Options(config=str(config)), tmp_path, print).sources
    np.testing.assert_allclose(embed_source(source), embed(folder), atol=1e-6)


def test_layout_of_the_seed_equals_the_original(folder: Path, tmp_path: Path, tokenizer_ir: ov.Model) -> None:
    config = write_seed_layout(tmp_path / "repository")
    write_export(folder, config.parent / "models/tiny-gte-embeddings/1", "config.json")
    save_graph(tokenizer_ir, config.parent / "models/tiny-gte-tokenizer/1/openvino_tokenizer.xml")
    (source,) = find_sources(Options(config=str(config)), tmp_path, print).sources
    expected = embed(folder, Overrides(pooling="CLS", normalize=True))
    np.testing.assert_allclose(embed_source(source), expected, atol=1e-6)


def test_layout_of_2024_5_equals_the_original(folder: Path, tmp_path: Path, tokenizer_ir: ov.Model) -> None:
    config = write_2024_05_layout(tmp_path / "repository")
    graph = build_graph(folder, add_sentence)
    for key, value in CONFIG.items():
        graph.set_rt_info(str(value), ["model_info", key])
    save_graph(graph, config.parent / "acme/tiny/embeddings/1/model.xml")
    save_graph(tokenizer_ir, config.parent / "acme/tiny/tokenizer/1/model.xml")
    (source,) = find_sources(Options(config=str(config)), tmp_path, print).sources
    read = read_folder(source.folder, source.overrides)
    assert (read.family, read.max_tokens) == ("bert", CONFIG["max_position_embeddings"])
    expected = embed(folder, Overrides(pooling="CLS", normalize=True))
    np.testing.assert_allclose(embed_source(source), expected, atol=1e-6)


def test_damaged_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    export = write_export(folder, tmp_path / "export", "config.json")
    (export / "openvino_tokenizer.xml").write_text("<net>")
    (export / "openvino_tokenizer.bin").touch()
    with pytest.raises(ModelError, match=r"OpenVINO could not read .*openvino_tokenizer\.xml: ") as error:
        prepare(export)
    assert "\n" not in str(error.value)


def test_tokenizer_ir_has_the_ids_of_the_library(folder: Path, tmp_path: Path, tokenizer_ir: ov.Model) -> None:
    import tokenizers

    export = write_export(folder, tmp_path / "export", "config.json")
    save_graph(tokenizer_ir, export / "openvino_tokenizer.xml")
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.no_truncation()
    ids = Tokenizer(prepare(export)[0].tokenizer_path).encode_texts(TEXTS)
    assert [row.tolist() for row in ids] == [encoding.ids for encoding in library.encode_batch(TEXTS)]


def test_tokenizer_ir_is_converted_in_a_new_process(folder: Path, tmp_path: Path, tokenizer_ir: ov.Model) -> None:
    # The tokenizer's operations are in a library that must stay loaded; here other tests have loaded it.
    export = write_export(folder, tmp_path / "export", "config.json")
    save_graph(tokenizer_ir, export / "openvino_tokenizer.xml")
    command = [
        sys.executable,
        "-m",
        "workers.models.prepare",
        "--model",
        str(export),
        "--cache",
        str(tmp_path / "cache"),
    ]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_contradicting_pooling_is_reported(folder: Path) -> None:
    _, lines = prepare(folder, Overrides(pooling="CLS"))
    assert lines[0] == (
        f"warning: {folder} declares the pooling mean, but the configuration asks for CLS, which gives other vectors; "
        "remove that setting unless an index needs those vectors"
    )
    _, lines = prepare(folder, Overrides(pooling="MEAN"))
    assert not any("warning" in line for line in lines)


def test_unset_pooling_of_a_graph_is_ovms_own(folder: Path, tmp_path: Path) -> None:
    config = write_today_layout(tmp_path / "repository")
    model = config.parent / "acme/tiny"
    (model / "graph.pbtxt").write_text(GRAPH_TODAY.replace("pooling: MEAN,", ""))
    lines: list[str] = []
    (source,) = find_sources(Options(config=str(config)), tmp_path, lines.append).sources
    assert source.overrides.pooling == "CLS"
    assert lines == [
        f"warning: neither {model}/graph.pbtxt nor 1_Pooling/config.json says how acme/tiny pools, so it pools the "
        "first token, as OVMS does; set pooling in graph.pbtxt"
    ]
    write_files(model, {"1_Pooling/config.json": {"pooling_mode_mean_tokens": True}})
    (source,) = find_sources(Options(config=str(config)), tmp_path, lines.append).sources
    assert not source.overrides.pooling
    write_export(folder, model)
    assert read_folder(source.folder, source.overrides).modules.pooling == ("mean",)


def test_revision_depends_on_the_tokenizer_and_properties(folder: Path, tmp_path: Path) -> None:
    export = write_export(folder, tmp_path / "export")
    revisions = {prepare(export)[0].revision}
    for overrides in (
        Overrides(pooling="CLS"),
        Overrides(pooling="MEAN"),
        Overrides(normalize=True),
        Overrides(max_tokens=9),
        Overrides(properties={"EXECUTION_MODE_HINT": "PERFORMANCE"}),
    ):
        revisions.add(prepare(export, overrides)[0].revision)
    content = json.loads((export / "tokenizer.json").read_text())
    content["model"]["max_input_chars_per_word"] = 50
    write_json(export / "tokenizer.json", content)
    revisions.add(prepare(export)[0].revision)
    assert len(revisions) == 7
    same = Overrides(properties={"NUM_STREAMS": 2}, device="GPU", truncate=True)
    assert prepare(export, same)[0].revision in revisions


@pytest.mark.parametrize("place", ["openvino_model.bin", "tokenizer.json"])
def test_link_out_of_an_export_is_refused(folder: Path, tmp_path: Path, place: str) -> None:
    export = write_export(folder, tmp_path / "export")
    (export / place).rename(tmp_path / "outside")
    (export / place).symlink_to(tmp_path / "outside")
    with pytest.raises(ModelError, match="is a link out of the model folder"):
        read_folder(export)


def test_linked_weights_of_onnx_are_refused(folder: Path, tmp_path: Path) -> None:
    export = write_export(folder, tmp_path / "export")
    (export / "model.onnx").write_bytes(encode_onnx(np.zeros((64, 4), np.float32), "weights/data"))
    (tmp_path / "outside").touch()
    (export / "weights").mkdir()
    (export / "weights" / "data").symlink_to(tmp_path / "outside")
    with pytest.raises(ModelError, match="is a link out of the model folder"):
        read_folder(export, Overrides(file="model.onnx"))


@pytest.mark.parametrize(
    ("properties", "streams", "expected"),
    [
        ({"NUM_STREAMS": "2"}, 0, 2),
        ({"NUM_STREAMS": 2, "CACHE_DIR": "/nowhere"}, 0, 2),
        ({"NUM_STREAMS": "2"}, 1, 1),
        ({"PERFORMANCE_HINT": "LATENCY"}, 0, 1),
    ],
)
def test_properties_reach_the_device(folder: Path, properties: Any, streams: int, expected: int) -> None:
    engine = Engine(prepare(folder)[0], "CPU", streams, folder.parent / "cache", properties)
    assert engine.streams == expected
    assert engine.run_inference(0, engine.tokenize_texts(["a"])).shape == (1, 16)


@pytest.mark.parametrize("properties", [{"SPEED": "high"}, {"NUM_STREAMS": "many"}, {"PERFORMANCE_HINT": {"a": 1}}])
def test_unusable_property_is_an_error(folder: Path, properties: Any) -> None:
    with pytest.raises(DeviceError, match="device CPU could not compile the model: ") as error:
        Engine(prepare(folder)[0], "CPU", 0, folder.parent / "cache", properties)
    assert "\n" not in str(error.value)


def test_quantized_graph_keeps_its_weights(folder: Path, tmp_path: Path) -> None:
    graph = build_graph(folder)
    compress_weights(graph, WeightFormat(name="int8"))
    export = write_export(folder, tmp_path / "export", graph=graph)
    plain, _ = prepare(export)
    rounded, lines = prepare(export, Overrides(precision="int8"))
    assert "warning: the model has no float weights to round: it may be quantized already" in lines
    assert rounded.model_path.with_suffix(".bin").read_bytes() == plain.model_path.with_suffix(".bin").read_bytes()
    assert rounded.revision != plain.revision


def test_float_graph_is_rounded_to_int8(folder: Path, tmp_path: Path) -> None:
    export = write_export(folder, tmp_path / "export")
    (plain, _), (rounded, _) = prepare(export), prepare(export, Overrides(precision="int8"))
    sizes = [prepared.model_path.with_suffix(".bin").stat().st_size for prepared in (plain, rounded)]
    assert sizes[1] < 0.6 * sizes[0]
    one, two = embed(export), embed(export, Overrides(precision="int8"))
    assert ((one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)).min() > 0.99
