"""Names of OpenVINO's devices, and the properties that each gets, with devices that this host does not have."""

import os
from typing import Any

import pytest

from workers.engine import device as module
from workers.engine.device import DeviceError, choose_device, choose_properties

ALL = ["CPU", "GPU.0", "GPU.1", "NPU"]


@pytest.mark.parametrize(
    ("device", "available", "expected"),
    [
        ("CPU", ["CPU"], "CPU"),
        ("GPU", ["CPU", "GPU"], "GPU"),
        ("GPU", ALL, "GPU"),
        ("GPU.1", ALL, "GPU.1"),
        ("NPU", ALL, "NPU"),
        ("AUTO", ["CPU"], "AUTO"),
        ("AUTO:GPU,CPU", ALL, "AUTO:GPU,CPU"),
        ("AUTO:GPU,CPU", ["CPU"], "AUTO:CPU"),
        ("AUTO: GPU.1, CPU(2)", ALL, "AUTO:GPU.1,CPU(2)"),
        ("AUTO:-GPU", ["CPU"], "AUTO:-GPU"),
        ("HETERO:GPU.0,CPU", ALL, "HETERO:GPU.0,CPU"),
    ],
)
def test_device_passes_to_openvino(device: str, available: list[str], expected: str) -> None:
    assert choose_device(device, available) == expected


@pytest.mark.parametrize(
    ("device", "available", "reason"),
    [
        ("QUANTUM", ["CPU"], "device QUANTUM not found; OpenVINO sees CPU"),
        ("NPU", ["CPU", "GPU"], "device NPU not found; OpenVINO sees CPU, GPU"),
        ("AUTO:GPU", ["CPU"], "device GPU of AUTO:GPU not found; OpenVINO sees CPU"),
        ("HETERO:GPU,CPU", ["CPU"], "device GPU of HETERO:GPU,CPU not found; OpenVINO sees CPU"),
        ("HETERO", ["CPU", "GPU"], "HETERO names no devices; write HETERO:GPU,CPU"),
        ("AUTO:NPU,CPU", ALL, "AUTO:NPU,CPU is not supported because NPU needs fixed shapes and float16; choose NPU"),
        ("MULTI:GPU,CPU", ["CPU", "GPU"], "MULTI:GPU,CPU is not supported because OpenVINO has replaced it by AUTO"),
        ("BATCH:GPU(4)", ["CPU", "GPU"], "BATCH:GPU(4) is not supported because Vecmill itself forms the batches; "),
        ("ALL", ["CPU"], "ALL is not supported because a worker runs one device: only scripts/serve starts several; "),
    ],
)
def test_device_is_refused_with_a_reason(device: str, available: list[str], reason: str) -> None:
    with pytest.raises(DeviceError) as caught:
        choose_device(device, available)
    assert str(caught.value).startswith(reason)


#: What a quota of two CPUs changes.
LIMITED = {"INFERENCE_NUM_THREADS": 2, "ENABLE_CPU_PINNING": False}


@pytest.mark.parametrize(
    ("device", "streams", "given", "expected"),
    [
        ("CPU", 0, {}, {"NUM_STREAMS": 2, **LIMITED}),
        ("CPU", 3, {"NUM_STREAMS": 1}, {"NUM_STREAMS": 3, **LIMITED, "INFERENCE_NUM_THREADS": 3}),
        (
            "CPU",
            0,
            {"INFERENCE_NUM_THREADS": 1, "CACHE_DIR": "/"},
            {"NUM_STREAMS": 2, **LIMITED, "INFERENCE_NUM_THREADS": 1},
        ),
        ("GPU.1", 0, {}, {}),
        ("GPU.1", 2, {}, {"NUM_STREAMS": 2}),
        ("NPU", 0, {}, {"INFERENCE_PRECISION_HINT": "f16"}),
        ("HETERO:GPU,CPU", 0, {}, {"DEVICE_PROPERTIES": {"CPU": LIMITED}}),
        ("HETERO:GPU.0,GPU.1", 0, {}, {}),
        (
            "AUTO",
            0,
            {},
            {"ENABLE_STARTUP_FALLBACK": False, "DEVICE_PROPERTIES": {"CPU": LIMITED}},
        ),
        ("AUTO:GPU", 0, {}, {"ENABLE_STARTUP_FALLBACK": False}),
    ],
)
def test_quota_limits_only_the_cpu(
    monkeypatch: pytest.MonkeyPatch, device: str, streams: int, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(module, "count_cpus", lambda: 2)
    common = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
    if device != "NPU":
        common["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = module.ROUNDED_GROUP
    assert choose_properties(device, streams, given) == common | expected
