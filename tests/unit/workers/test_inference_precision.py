"""Precision of inferences: CPUs with AMX would choose bfloat16, and GPUs float16, which overflows in Gemma3."""

from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset15 as op

from workers.engine.engine import compile_model


def test_models_are_compiled_for_float32(tmp_path: Path) -> None:
    x = op.parameter([-1, 2], np.float32)
    ov.save_model(ov.Model([op.multiply(x, op.constant(np.float32(70_000)))], [x]), tmp_path / "model.xml")
    compiled = compile_model(tmp_path / "model.xml", "CPU", 1, tmp_path, {})
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
