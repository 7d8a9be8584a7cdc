"""Exported folders: files, graph.pbtxt, config.json, and vectors equal to the source's."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import openvino as ov
import pytest

from broker.shared.exit import REFUSED_STATUS
from tests.unit.workers.test_model_folder import CONFIG as MODEL_CONFIG
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
        source=str(folder), name="acme/tiny", repository=repository, config_path=repository / "config.json"
    )
    return export_model(msgspec.structs.replace(plain, **options), folder.parent / "cache", lines.append), lines


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
    with pytest.raises(ModelError, match="OVMS has only CLS, MEAN, LAST; serve it with scripts/serve"):
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


@pytest.mark.parametrize("noted", [True, False])
def test_export_of_another_source_is_kept(folder: Path, noted: bool) -> None:
    target, _ = run_export(folder)
    graph = (target / "graph.pbtxt").read_text()
    if not noted:
        model = target / "openvino_model.xml"
        model.write_text(model.read_text().replace("<vecmill>", "<x>").replace("</vecmill>", "</x>"))
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "cls"})
    with pytest.raises(ModelError, match=r"was not made from .*; add --overwrite_models to replace it"):
        run_export(folder)
    assert (target / "graph.pbtxt").read_text() == graph


def test_other_weight_format_is_refused(folder: Path) -> None:
    run_export(folder, weight_format="fp32")
    with pytest.raises(ModelError, match="has fp32 weights, but --weight_format is fp16; add --overwrite"):
        run_export(folder, weight_format="fp16")


def test_damaged_configuration_is_found_before_export(folder: Path) -> None:
    config = folder.parent / "damaged.json"
    config.write_text("{")
    with pytest.raises(ModelError, match=r"damaged\.json"):
        run_export(folder, config_path=config)
    assert not (folder.parent / "models").exists()


def test_command_names_its_own_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export_model", "embeddings_ov", "--source_model", str(tmp_path / "none"), "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "export_model.py"), run_name="__main__")
    assert ended.value.code == REFUSED_STATUS
    assert "set --source_model to a folder" in capsys.readouterr().err


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


@pytest.mark.parametrize("name", [".", "..", "../x", "/x", "a/../../x"])
def test_names_that_leave_the_repository_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"does not fit into .*; set --model_name"):
        run_export(folder, name=name)


@pytest.mark.parametrize(("pad_token", "pad_id"), [(None, 0), ("[PAD]", 0), ("[MASK]", 4)])
def test_tokenizer_pads_as_ovms_expects(folder: Path, pad_token: str | None, pad_id: int) -> None:
    write_json(folder / "tokenizer_config.json", {"pad_token": pad_token, "model_max_length": 512})
    target, _ = run_export(folder)
    import openvino_tokenizers  # noqa: F401  registers its operations with every ov.Core

    tokenize = ov.Core().compile_model(target / "openvino_tokenizer.xml", "CPU")
    result = tokenize(["hello world", "a"])
    np.testing.assert_array_equal(result["input_ids"], [[2, 26, 27, 3], [2, 5, 3, pad_id]])
    np.testing.assert_array_equal(result["attention_mask"], [[1, 1, 1, 1], [1, 1, 1, 0]])


def test_static_model_is_refused(folder: Path) -> None:
    (folder / "modules.json").unlink()
    write_json(folder / "config.json", {"model_type": "model2vec"})
    with pytest.raises(ModelError, match="is a table of tokens, which OVMS cannot serve"):
        run_export(folder)


def test_unknown_family_names_the_option(folder: Path) -> None:
    write_json(folder / "config.json", MODEL_CONFIG | {"model_type": "deberta"})
    with pytest.raises(ModelError, match=r"model_type deberta, but Vecmill builds only .*; add --allow_optimum"):
        run_export(folder)


#: Stands for optimum-cli: writes down its arguments, and exports the folder's model with Vecmill.
OPTIMUM = f"""#!{sys.executable}
import json, shutil, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from workers.models.export_files import write_graph
from workers.models.folder import read_folder
from workers.models.precision import WeightFormat
import msgspec
source, into = Path(sys.argv[sys.argv.index("--model") + 1]), Path(sys.argv[-1])
into.mkdir(exist_ok=True)
Path(sys.argv[0]).with_name("arguments").write_text(json.dumps(sys.argv[1:]))
if "--fail" in sys.argv:
    sys.exit("ValueError: no such task")
folder = read_folder(source)
folder = msgspec.structs.replace(folder, family="bert", config=folder.config | {{"model_type": "bert"}})
write_graph(folder, into, WeightFormat(name="fp32"))
for name in ("config.json", "tokenizer.json"):
    shutil.copy(source / name, into / name)
"""


@pytest.fixture
def optimum(tmp_path: Path) -> Path:
    """Install the program, and return the file with the arguments of its last call."""
    root = tmp_path / "cache" / "optimum"
    program = root / "venv" / "bin" / "optimum-cli"
    program.parent.mkdir(parents=True)
    program.write_text(OPTIMUM)
    program.chmod(0o755)
    (root / "complete").touch()
    return program.with_name("arguments")


def test_optimum_exports_unknown_families(folder: Path, optimum: Path) -> None:
    write_json(folder / "config.json", MODEL_CONFIG | {"model_type": "deberta"})
    target, lines = run_export(folder, allow_optimum=True, extra_quantization_params="--awq --dataset wikitext2")
    assert "exporting with optimum-cli" in lines[0]
    arguments = json.loads(optimum.read_text())
    assert arguments[:-1] == [
        *("export", "openvino", "--task", "feature-extraction", "--disable-convert-tokenizer"),
        *("--model", str(folder), "--weight-format", "int8", "--awq", "--dataset", "wikitext2"),
    ]
    assert list_files(target) == sorted(FILES)
    assert "pooling: MEAN," in (target / "graph.pbtxt").read_text()


def test_code_of_the_model_runs_only_on_request(folder: Path, optimum: Path) -> None:
    write_json(folder / "config.json", MODEL_CONFIG | {"model_type": "deberta"})
    run_export(folder, allow_optimum=True)
    assert "--trust-remote-code" not in json.loads(optimum.read_text())
    run_export(folder, allow_optimum=True, trust_remote_code=True, overwrite=True)
    assert "--trust-remote-code" in json.loads(optimum.read_text())


def test_known_family_needs_no_optimum(folder: Path, optimum: Path) -> None:
    run_export(folder, allow_optimum=True)
    assert not optimum.exists()
    run_export(folder, allow_optimum=True, extra_quantization_params="--awq", overwrite=True)
    assert "--awq" in json.loads(optimum.read_text())


def test_failure_of_optimum_leaves_no_folder(folder: Path, optimum: Path) -> None:
    with pytest.raises(ModelError, match="optimum-cli could not export the model"):
        run_export(folder, allow_optimum=True, extra_quantization_params="--fail")
    assert list_files(folder.parent / "models") == []


def test_failed_installation_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.models.optimum.PACKAGES", ("--no-index", "vecmill-has-no-such-package"))
    with pytest.raises(ModelError, match="optimum-intel could not be installed; check the network"):
        run_export(folder, allow_optimum=True, extra_quantization_params="--awq")


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
