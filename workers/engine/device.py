"""Devices of OpenVINO: their names, and the compilation of a model for one of them."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import openvino as ov

from workers.engine.compiled_cache import open_compiled_cache
from workers.engine.cpus import count_cpus
from workers.engine.fixed_shapes import FixedModel, list_lengths
from workers.models.json_files import get_last_line
from workers.models.openvino_lock import OPENVINO_LOCK
from workers.models.prepare import PreparedModel
from workers.models.source import is_npu

#: Modes of OpenVINO that use several devices, and why one of them is refused.
_REFUSED_MODES = {
    "ALL": "a worker runs one device: only scripts/serve starts several",
    "BATCH": "Vecmill itself forms the batches",
    "MULTI": "OpenVINO has replaced it by AUTO and PERFORMANCE_HINT CUMULATIVE_THROUGHPUT",
}

#: Activations that are rounded together where weights are int8 or int4, as OpenVINO 2026.4 and OVMS do on CPUs that
#: gain from it; float weights are not affected. Fixed, because vectors depend on it; docs/export.md has what it costs.
ROUNDED_GROUP = "32"
#: Kinds of devices that can round activations. AUTO and HETERO pass the group on to the devices that they use.
ROUNDING_DEVICES = ("CPU", "GPU", "AUTO", "HETERO")
#: OpenVINO's names of float types in OPTIMIZATION_CAPABILITIES.
_CAPABILITIES = {"FP32": "f32", "BF16": "bf16", "FP16": "f16"}
#: Other names of values of INFERENCE_PRECISION_HINT; `dynamic` and `undefined` are the types in the model's files.
_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "dynamic": "f32", "undefined": "f32"}


class DeviceFloats(NamedTuple):
    """Float types of a device."""

    #: Name of the hardware.
    name: str
    #: The type that OpenVINO itself would choose.
    native: str
    supported: frozenset[str] = frozenset({"f32"})


class DeviceError(Exception):
    """The device cannot run the model. The text is one sentence for the operator."""


def find_devices() -> list[str]:
    """Return the devices that OpenVINO sees on this host."""
    devices: list[str] = ov.Core().available_devices
    return devices


def choose_device(device: str, available: Sequence[str]) -> str:
    """Return the name that OpenVINO gets for a device, with `AUTO` limited to available devices. Pure.

    Raise `DeviceError` if the device does not exist, or is a mode that does not fit one worker.
    """
    mode, _, members = device.partition(":")
    if reason := _REFUSED_MODES.get(mode):
        raise DeviceError(f"{device} is not supported because {reason}; choose {' or '.join(available)}")
    if mode not in ("AUTO", "HETERO"):
        if not _is_available(device, available):
            raise DeviceError(f"device {device} not found; OpenVINO sees {', '.join(available)}")
        return device
    names = [name.strip() for name in members.split(",") if name.strip()]
    if any(is_npu(name) for name in names):
        raise DeviceError(f"{device} is not supported because NPU needs fixed shapes and float16; choose NPU alone")
    # AUTO uses those devices of its list that exist, but fails if the driver of one is missing.
    missing = [name for name in names if not name.startswith("-") and not _is_available(name, available)]
    if missing and (mode == "HETERO" or len(missing) == len(names)):
        raise DeviceError(f"device {missing[0]} of {device} not found; OpenVINO sees {', '.join(available)}")
    if mode == "HETERO" and not names:
        raise DeviceError(f"HETERO names no devices; write HETERO:{','.join(reversed(available))}")
    kept = ",".join(name for name in names if name not in missing)
    return f"{mode}:{kept}" if kept else mode


def read_floats(device: str) -> list[DeviceFloats]:
    """Return the float types of all devices that may run a model. Raise `DeviceError` if the device does not exist."""
    core = ov.Core()
    chosen = choose_device(device, core.available_devices)
    if is_npu(chosen):
        return [DeviceFloats(chosen, "f16", frozenset({"f16"}))]
    floats = []
    for name in list_members(chosen, core.available_devices):
        capabilities = core.get_property(name, "OPTIMIZATION_CAPABILITIES")
        supported = frozenset(_CAPABILITIES[name] for name in capabilities if name in _CAPABILITIES)
        hint = core.get_property(name, "INFERENCE_PRECISION_HINT").to_string()
        floats.append(DeviceFloats(core.get_property(name, "FULL_DEVICE_NAME"), translate_hint(hint), supported))
    return floats


def list_members(device: str, available: Sequence[str]) -> list[str]:
    """Return the devices that may run a model on a device, of which AUTO and HETERO have several. Pure."""
    mode, _, members = device.partition(":")
    if mode not in ("AUTO", "HETERO"):
        return [device]
    names = [name.partition("(")[0] for name in members.split(",") if name]
    excluded = {name[1:] for name in names if name.startswith("-")}
    others = [name for name in available if not is_npu(name) and not {name, name.partition(".")[0]} & excluded]
    return [name for name in names if not name.startswith("-")] or others


def can_round(device: str) -> bool:
    """Return whether a device accepts a group of activations to round together. Pure."""
    return re.split(r"[.:(]", device.upper())[0] in ROUNDING_DEVICES


def translate_hint(hint: str) -> str:
    """Return Vecmill's name of a value of INFERENCE_PRECISION_HINT. Pure."""
    return _HINTS.get(hint.casefold(), hint.casefold())


def choose_properties(device: str, streams: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties for throughput in float32, unless the given ones replace them."""
    # The NPU computes in float16 and accepts no other hint.
    precision = "f16" if is_npu(device) else "f32"
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
    mode, _, members = device.partition(":")
    if can_round(device):
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = ROUNDED_GROUP
    if streams or (device == "CPU" and "PERFORMANCE_HINT" not in given):
        # One stream a core gave the most texts/s on the CPU plugin, which itself chooses one for several cores.
        properties["NUM_STREAMS"] = streams or count_cpus()
    if mode == "AUTO":
        # Otherwise the CPU runs the first inferences, and the warm-up would measure the CPU.
        properties["ENABLE_STARTUP_FALLBACK"] = False
    # CPU_RUNTIME_CACHE_CAPACITY keeps its default: with 32, a worker grew by 106 MB instead of 136 MB in 320 shapes of
    # micro-batches, and repeated shapes took 6 % more CPU time (all-MiniLM-L6-v2, one stream, AMD EPYC).
    if count_cpus() < len(os.sched_getaffinity(0)):
        # The plugin starts a thread for each core, although the quota of a container allows fewer at a time.
        # Pinned threads of several containers would all be on the first CPUs of the host.
        threads = {"INFERENCE_NUM_THREADS": max(streams, count_cpus()), "ENABLE_CPU_PINNING": False}
        if device == "CPU":
            properties |= threads
        elif device == "AUTO" or "CPU" in members.split(","):
            properties["DEVICE_PROPERTIES"] = {"CPU": threads}
    # Compiled models are in Vecmill's cache, and nothing is written to a folder that a model's configuration names. An
    # empty name turns the cache off.
    ignored = {"CACHE_DIR"} if given.get("CACHE_DIR") else set()
    ignored |= {"NUM_STREAMS"} if streams else set()
    return properties | {name: value for name, value in given.items() if name not in ignored}


def compile_model(
    prepared: PreparedModel,
    device: str,
    streams: int,
    cache: Path,
    given: Mapping[str, Any],
    *,
    fixed_shapes: bool = False,
) -> "ov.CompiledModel | FixedModel":
    """Return a model compiled for a device, with `fixed_shapes` or on an NPU for a few lengths.

    Raise `DeviceError` if the device cannot run the model, or rejects a property.
    """
    core = ov.Core()
    core.set_property({"CACHE_DIR": str(open_compiled_cache(cache))})
    chosen = choose_device(device, core.available_devices)
    properties = choose_properties(chosen, streams, given)
    if prepared.needs_float32:
        refuse_overflow(device, str(properties["INFERENCE_PRECISION_HINT"]))
    lengths = list_lengths(prepared.max_tokens) if fixed_shapes or is_npu(chosen) else []
    try:
        with OPENVINO_LOCK:
            if not lengths:
                return core.compile_model(prepared.model_path, chosen, properties)
            return FixedModel(core, prepared.model_path, chosen, properties, lengths, prepared.pad_id)
    except RuntimeError as error:
        reason = str(get_last_line(error)).rstrip(".")
        remedy = f"; the longest input has {lengths[-1]} tokens, lower it with --max-length" if len(lengths) > 1 else ""
        raise DeviceError(f"device {device} could not compile the model: {reason}{remedy}") from error


def refuse_overflow(device: str, hint: str) -> None:
    """Raise `DeviceError` if a device would compute a model in float16 that overflows there."""
    if translate_hint(hint) == "f16":
        raise DeviceError(
            f"device {device} would compute in float16, which overflows in this model's family; choose CPU or GPU "
            "with --precision auto, and set no INFERENCE_PRECISION_HINT"
        )


def read_float(compiled: "ov.CompiledModel | FixedModel") -> str:
    """Return the float type that the device executes, such as bf16 on a CPU for f16; "" if OpenVINO names none."""
    if "INFERENCE_PRECISION_HINT" not in compiled.get_property("SUPPORTED_PROPERTIES"):
        return ""
    executed = compiled.get_property("INFERENCE_PRECISION_HINT")
    name = executed.to_string() if isinstance(executed, ov.Type) else str(executed)
    return translate_hint(name) if translate_hint(name) in _CAPABILITIES.values() else ""


def count_streams(compiled: "ov.CompiledModel | FixedModel") -> int:
    """Return how many inferences the device runs in parallel."""
    has_streams = "NUM_STREAMS" in compiled.get_property("SUPPORTED_PROPERTIES")
    return int(compiled.get_property("NUM_STREAMS" if has_streams else "OPTIMAL_NUMBER_OF_INFER_REQUESTS"))


def _is_available(device: str, available: Sequence[str]) -> bool:
    """Return whether a device, such as GPU.1 or GPU(4), is of a kind that OpenVINO sees."""
    kind = device.partition("(")[0].partition(".")[0]
    return kind in {name.partition(".")[0] for name in available}
