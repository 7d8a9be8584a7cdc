"""Exported folders: files, graph.pbtxt, config.json, and vectors equal to the source's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import openvino as ov
import pytest

from tests.unit.workers.test_model_folder import write_folder, write_json
from workers.models.export import ExportOptions, export_model
from workers.models.json_files import ModelError
from workers.models.ovms_files import GraphOptions, add_entry, format_graph

ROOT = Path(__file__).resolve().parents[3]

#: graph.pbtxt of OVMS 2026's exporter with --pooling LAST --num_streams 2 --truncate --ov_cache_dir cache.
GRAPH = """# OVMS_GRAPH_QUEUE_MAX_SIZE: AUTO
input_stream: "REQUEST_PAYLOAD:input"
output_stream: "RESPONSE_PAYLOAD:output"
node {
  name: "EmbeddingsExecutor"
  input_side_packet: "EMBEDDINGS_NODE_RESOURCES:embeddings_servable"
  calculator: "EmbeddingsCalculatorOV"
  input_stream: "REQUEST_PAYLOAD:input"
  output_stream: "RESPONSE_PAYLOAD:output"
  node_options: {
    [type.googleapis.com / mediapipe.EmbeddingsCalculatorOVOptions]: {
      models_path: "./",
      plugin_config: '{"NUM_STREAMS": "2", "CACHE_DIR": "cache"}',
      normalize_embeddings: true,
      pooling: LAST,
      truncate: true,
      target_device: "CPU"
    }
  }
}
"""
#: The files of an export, as OVMS's demo lists them, and those that only Vecmill reads.
FILES = ["config.json", "graph.pbtxt", "openvino_model.bin", "openvino_model.xml", "openvino_tokenizer.bin"]
FILES += ["openvino_tokenizer.xml", "tokenizer.json", "1_Pooling/config.json", "modules.json"]
FILES += ["sentence_bert_config.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny")


def run_export(folder: Path, **options: Any) -> tuple[Path, list[str]]:
    """Return the folder of the exported model and the lines that were reported."""
    lines: list[str] = []
    repository = folder.parent / "models"
    plain = ExportOptions(
        source=folder, name="acme/tiny", repository=repository, config_path=repository / "config.json"
    )
    return export_model(msgspec.structs.replace(plain, **options), lines.append), lines


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_folder_has_the_files_of_ovms(folder: Path) -> None:
    target, _ = run_export(folder)
    assert target == folder.parent / "models" / "acme" / "tiny"
    assert list_files(target) == sorted(FILES)
    assert json.loads((folder.parent / "models" / "config.json").read_text()) == {
        "model_config_list": [{"config": {"name": "acme/tiny", "base_path": "acme/tiny"}}]
    }
    assert list((folder.parent / "models").rglob(".making*")) == []


def test_model_has_the_inputs_and_outputs_of_ovms(folder: Path) -> None:
    target, _ = run_export(folder)
    model = ov.Core().read_model(target / "openvino_model.xml")
    shapes = [(port.get_any_name(), str(port.get_partial_shape()), port.get_element_type()) for port in model.inputs]
    assert shapes == [("input_ids", "[?,?]", ov.Type.i64), ("attention_mask", "[?,?]", ov.Type.i64)]
    assert [(port.get_any_name(), str(port.get_partial_shape())) for port in model.outputs] == [
        ("last_hidden_state", "[?,?,16]")
    ]


def test_graph_is_that_of_ovms() -> None:
    config = {"NUM_STREAMS": "2", "CACHE_DIR": "cache"}
    assert format_graph(GraphOptions(pooling="LAST", truncate=True, plugin_config=config)) == GRAPH


@pytest.mark.parametrize(("pooling", "mode"), [("CLS", "cls"), ("MEAN", "mean"), ("LAST", "lasttoken")])
def test_pooling_is_that_of_the_model(folder: Path, pooling: str, mode: str) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": mode})
    target, _ = run_export(folder)
    assert f"pooling: {pooling}," in (target / "graph.pbtxt").read_text()


def test_contradicting_pooling_is_refused(folder: Path) -> None:
    with pytest.raises(
        ModelError, match=r"--pooling is CLS, but .* declares MEAN; leave --pooling out, or add --force"
    ):
        run_export(folder, pooling="CLS")
    target, _ = run_export(folder, pooling="CLS", force=True)
    assert "pooling: CLS," in (target / "graph.pbtxt").read_text()


@pytest.mark.parametrize("modes", ["max", ["cls", "mean"]])
def test_pooling_that_ovms_lacks_is_refused(folder: Path, modes: Any) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": modes})
    with pytest.raises(ModelError, match="OVMS has only CLS, MEAN, LAST; serve the folder itself"):
        run_export(folder)


def test_existing_export_is_kept(folder: Path) -> None:
    target, _ = run_export(folder)
    before = (target / "openvino_model.bin").stat().st_mtime_ns
    target, lines = run_export(folder, target_device="GPU")
    assert "add --overwrite_models to replace it" in lines[0]
    assert (target / "openvino_model.bin").stat().st_mtime_ns == before
    assert 'target_device: "GPU"' in (target / "graph.pbtxt").read_text()
    run_export(folder, overwrite=True)
    assert (target / "openvino_model.bin").stat().st_mtime_ns != before


def test_failed_export_leaves_no_folder(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        run_export(folder)
    assert list_files(folder.parent / "models") == []


def test_folder_of_the_transformer_becomes_the_root(folder: Path) -> None:
    inside = folder / "0_Transformer"
    inside.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"):
        shutil.move(folder / name, inside / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write_json(folder / "modules.json", modules)
    target, _ = run_export(folder)
    assert list_files(target) == sorted(FILES)
    assert json.loads((target / "modules.json").read_text())[0]["path"] == ""


@pytest.mark.parametrize("name", ["", "..", "../x", "/x", "a/../../x"])
def test_names_that_leave_the_repository_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(ModelError, match="--model_name is "):
        run_export(folder, name=name)


def test_tokenizer_pads_as_ovms_expects(folder: Path) -> None:
    target, _ = run_export(folder)
    core = ov.Core()
    import openvino_tokenizers  # noqa: F401  registers the operations

    tokenize = core.compile_model(target / "openvino_tokenizer.xml", "CPU")
    result = tokenize(["hello world", "a"])
    np.testing.assert_array_equal(result["input_ids"], [[2, 26, 27, 3], [2, 5, 3, 0]])
    np.testing.assert_array_equal(result["attention_mask"], [[1, 1, 1, 1], [1, 1, 1, 0]])


CONFIG = {
    "model_config_list": [{"config": {"name": "other", "base_path": "other", "nireq": 2}}],
    "monitoring": {"x": 1},
}


def test_entries_of_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, CONFIG)
    add_entry(path, "acme/tiny", tmp_path / "acme" / "tiny")
    expected = [*CONFIG["model_config_list"], {"config": {"name": "acme/tiny", "base_path": "acme/tiny"}}]
    assert json.loads(path.read_text()) == CONFIG | {"model_config_list": expected}


@pytest.mark.parametrize(
    "entries",
    [
        {"model_config_list": [{"config": {"name": "tiny", "base_path": "old", "nireq": 2}}]},
        {"model_config_list": [], "mediapipe_config_list": [{"name": "tiny", "base_path": "old", "nireq": 2}]},
    ],
)
def test_entry_of_the_model_is_replaced(tmp_path: Path, entries: dict[str, Any]) -> None:
    path = tmp_path / "config.json"
    write_json(path, entries)
    add_entry(path, "tiny", tmp_path / "tiny")
    assert path.read_text() == json.dumps(entries, indent=4).replace('"old"', '"tiny"')


def test_folder_elsewhere_gets_its_whole_path(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    add_entry(tmp_path / "served" / "config.json", "tiny", tmp_path / "models" / "tiny")
    content = json.loads((tmp_path / "served" / "config.json").read_text())
    assert content["model_config_list"][0]["config"]["base_path"] == str(tmp_path / "models" / "tiny")


@pytest.mark.parametrize("content", ["[]", "{", '{"model_config_list": {}}', '{"mediapipe_config_list": [1]}'])
def test_damaged_configuration_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        add_entry(tmp_path / "config.json", "tiny", tmp_path / "tiny")
    assert (tmp_path / "config.json").read_text() == content


def call_script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "export_model.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("task", ["embeddings_ov", "embeddings"])
def test_script_takes_dashes_and_underscores(folder: Path, task: str) -> None:
    arguments = ["--source-model", "tiny", "--model_repository_path", "models", "--config-file-path=models/config.json"]
    arguments += ["--weight-format", "int8", "--extra_quantization_params", "--sym", "--skip-normalize"]
    done = call_script(task, *arguments, cwd=folder.parent)
    assert (done.returncode, done.stdout) == (0, "models/tiny\n"), done.stderr
    graph = (folder.parent / "models" / "tiny" / "graph.pbtxt").read_text()
    assert "normalize_embeddings: false" in graph
    assert 'element_type="i8"' in (folder.parent / "models" / "tiny" / "openvino_model.xml").read_text()


def test_script_reports_one_sentence(tmp_path: Path) -> None:
    done = call_script("embeddings_ov", "--source_model", "missing", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("vecmill: ")
    assert done.stderr.count("\n") == 1
