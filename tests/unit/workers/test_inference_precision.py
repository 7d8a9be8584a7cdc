"""Precision of inferences: CPUs with AMX would choose bfloat16, and GPUs float16, which overflows in Gemma3."""

import shutil
from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from tests.unit.workers.test_golden_sentences import SENTENCES
from tests.unit.workers.test_model_folder import write_folder
from workers.engine.device import DeviceError, choose_properties, compile_model
from workers.models.prepare import PreparedModel, prepare_model
from workers.models.source import Overrides


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedModel:
    return prepare_model(write_folder(tmp_path / "tiny"), tmp_path / "cache", print)


@pytest.mark.parametrize("device", ["CPU", "AUTO", "AUTO:CPU", "AUTO:GPU,CPU", "HETERO:CPU"])
def test_models_are_compiled_for_float32(prepared: PreparedModel, tmp_path: Path, device: str) -> None:
    compiled = compile_model(prepared, device, 1, tmp_path / "compiled", {})
    is_virtual = device != "CPU"
    properties = compiled.get_property("DEVICE_PROPERTIES")["CPU"] if is_virtual else {}
    found = properties.get("INFERENCE_PRECISION_HINT") or compiled.get_property("INFERENCE_PRECISION_HINT")
    assert found == ov.Type.f32


@pytest.mark.parametrize(("device", "expected"), [("GPU.1", "f32"), ("HETERO:GPU,CPU", "f32"), ("NPU", "f16")])
def test_only_npu_computes_in_float16(device: str, expected: str) -> None:
    assert choose_properties(device, 0, {})["INFERENCE_PRECISION_HINT"] == expected


def test_rounding_of_activations_does_not_depend_on_openvino(prepared: PreparedModel, tmp_path: Path) -> None:
    for given, expected in (({}, 32), ({"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}, 0)):
        compiled = compile_model(prepared, "CPU", 1, tmp_path / "compiled", given)
        assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == expected


def test_vectors_of_an_npu_have_a_revision(prepared: PreparedModel, tmp_path: Path) -> None:
    def find_revision(**settings: Any) -> str:
        return prepare_model(tmp_path / "tiny", tmp_path / "cache", print, Overrides(**settings)).revision

    assert find_revision(device="GPU") == find_revision(device="AUTO:GPU,CPU") == prepared.revision
    assert find_revision(device="npu") == find_revision(device="NPU") != prepared.revision


@pytest.mark.parametrize("precision", ["f16", "F16"])
def test_overflowing_model_is_not_run_in_float16(tmp_path: Path, precision: str) -> None:
    folder = Path(shutil.copytree(SENTENCES / "embeddinggemma", tmp_path / "gemma"))
    gemma = prepare_model(folder, tmp_path / "cache", print)
    given = {"INFERENCE_PRECISION_HINT": precision}
    with pytest.raises(DeviceError, match="device CPU would compute in float16, which overflows in this model's"):
        compile_model(gemma, "CPU", 0, tmp_path / "compiled", given)
    assert compile_model(gemma, "CPU", 0, tmp_path / "compiled", {})
