"""What a model is computed in: the choice, and the probe that compares a device's vectors with those in float32."""

import ctypes
import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workers.engine.backend import Vectors
from workers.engine.device import (
    DeviceError,
    DeviceFloats,
    can_round,
    read_floats,
    refuse_overflow,
    translate_hint,
)
from workers.engine.engine import Engine
from workers.engine.verdicts import find_verdict, store_verdict
from workers.models.json_files import get_last_line
from workers.models.prepare import PreparedModel
from workers.models.source import INT8_GROUP, Overrides, Precision, is_npu

log = logging.getLogger(__name__)

#: Lowest cosine of a vector to the one in float32 with which `auto` takes the device's native float.
LEAST_COSINE = 0.9999
#: Texts of the probe: several lengths and scripts, code, and numbers.
PROBE_TEXTS = (
    "a",
    "How do I reset my password?",
    "Die Straßenbahn fährt heute nicht, weil es in der Nacht geschneit hat.",
    "東京の天気は明日晴れるでしょう。",
    "def add(left: int, right: int) -> int: return left + right  # 3.14159, 2**31 - 1",
    "The committee met on Tuesday to discuss the budget for the coming year, which had been cut by 12 %. " * 4,
    "Water expands when it freezes, and so a bottle that is full to the brim bursts in a frosty night. " * 24,
)
#: Longest text of the probe in tokens, so that the probe takes a second at most.
PROBE_TOKENS = 512


class Choice(NamedTuple):
    """What a model will be computed in."""

    #: Value of INFERENCE_PRECISION_HINT.
    float_type: str
    #: Whether float32 replaces it if the probe fails.
    must_probe: bool = False


def choose_float(
    wanted: Precision, device: str, floats: Sequence[DeviceFloats], given: Mapping[str, Any], *, needs_float32: bool
) -> Choice:
    """Return the float type for a model, of which `wanted` is the setting. Pure.

    `floats` are those of all devices that may run the model. A hint in the given OpenVINO properties is kept. Raise
    `DeviceError` if the device lacks the wanted type, or the setting contradicts the hint.
    """
    if is_npu(device):
        if wanted in ("f32", "bf16"):
            raise DeviceError(f"device {device} computes in f16 only; set --precision auto or choose another device")
        return Choice("f16")
    if hint := find_hint(given):
        if wanted not in ("auto", "int8", hint):
            raise DeviceError(
                f"--precision {wanted} contradicts the OpenVINO properties of the model, which ask for {hint}; remove "
                "INFERENCE_PRECISION_HINT and EXECUTION_MODE_HINT, or set --precision auto"
            )
        return Choice(hint)
    if wanted in ("bf16", "f16"):
        if any(wanted not in device_floats.supported for device_floats in floats):
            raise DeviceError(f"device {device} does not compute in {wanted}; set --precision auto or f32")
        return Choice(wanted)
    natives = {device_floats.native for device_floats in floats}
    if wanted == "f32" or len(natives) != 1 or (needs_float32 and "f16" in natives):
        return Choice("f32")
    (native,) = natives
    return Choice(native, must_probe=native != "f32" and wanted == "auto")


def find_hint(given: Mapping[str, Any]) -> str:
    """Return the float type that OpenVINO properties ask for; "" if none. Pure."""
    if hint := str(given.get("INFERENCE_PRECISION_HINT", "")):
        return translate_hint(hint)
    return "f32" if str(given.get("EXECUTION_MODE_HINT", "")).upper() == "ACCURACY" else ""


def check_precision(device: str, overrides: Overrides, *, needs_float32: bool) -> None:
    """Raise `DeviceError` if a device cannot compute a model in the wanted precision, as far as that is known before.

    `needs_float32`: whether the model's activations overflow in float16.
    """
    given = overrides.properties
    choice = choose_float(overrides.precision, device, read_floats(device), given, needs_float32=needs_float32)
    if needs_float32:
        refuse_overflow(device, choice.float_type)


def load_engine(
    prepared: PreparedModel, device: str, streams: int, cache: Path, overrides: Overrides
) -> tuple[Engine, str]:
    """Return an engine that is not warmed up, and what it computes in: f32, bf16, f16 or int8.

    Raise `DeviceError` if the device cannot run the model in the wanted precision.
    """
    wanted, given = overrides.precision, overrides.properties
    if wanted == "int8" and can_round(device):
        given = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": INT8_GROUP, **given}
    floats = read_floats(device)
    choice = choose_float(wanted, device, floats, given, needs_float32=prepared.needs_float32)

    def load(float_type: str) -> Engine:
        return Engine(prepared, device, streams, cache, {**given, "INFERENCE_PRECISION_HINT": float_type})

    if not choice.must_probe:
        engine = load(choice.float_type)
        executed = engine.float_type or choice.float_type
        if executed != choice.float_type:
            log.warning("computing in %s, because device %s does not execute %s", executed, device, choice.float_type)
        return engine, "int8" if wanted == "int8" else executed
    key = f"{prepared.revision} {choice.float_type} {' '.join(device_floats.name for device_floats in floats)}"
    return _load_probed(load, lambda: _load_reference(prepared, device, cache, given), choice.float_type, cache, key)


def _load_probed(
    load: Callable[[str], Engine], load_reference: Callable[[], Engine], native: str, cache: Path, key: str
) -> tuple[Engine, str]:
    """Return an engine in the native float if its vectors agree with those in float32, else in float32.

    Only a device that cannot compile the model in float32 gets the native float without a comparison.
    """
    cosine = find_verdict(cache, key)
    engine: Engine | None = None
    error = ""
    if cosine is None:
        try:
            engine = load(native)
            cosine = probe_engine(engine, load_reference)
        except Exception as caught:  # whatever a device plugin raises: the native float is not known to be accurate
            error = str(get_last_line(RuntimeError(caught))).rstrip(".") or type(caught).__name__
        else:
            store_verdict(cache, key, cosine)
            if cosine >= LEAST_COSINE:
                _free_memory()
                return engine, native
        # Both engines would need more memory than the device may have.
        engine = None
        _free_memory()
    elif cosine >= LEAST_COSINE:
        return load(native), native
    try:
        exact = load("f32")
    except DeviceError as refusal:
        if not error:
            raise
        log.warning("computing in %s, not compared with f32: %s", native, refusal)
        return load(native), native
    reason = f"could not be compared: {error}" if error else f"differ too much (least cosine {cosine:.6f})"
    log.warning(
        "computing in f32, which is slower than %s, because vectors in %s %s; set --precision %s to take them "
        "nevertheless, or f32 to end this warning",
        *(native, native, reason, native),
    )
    return exact, "f32"


def _load_reference(prepared: PreparedModel, device: str, cache: Path, given: Mapping[str, Any]) -> Engine:
    """Return an engine in float32 with one stream, which leaves no file in the cache."""
    return Engine(prepared, device, 1, cache, {**given, "INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": ""})


def probe_engine(engine: Engine, load_reference: Callable[[], Engine]) -> float:
    """Return the lowest cosine of an engine's vectors to those of a reference; -1 if a vector is not finite."""
    ids = [text_ids[: min(PROBE_TOKENS, engine.max_tokens)] for text_ids in engine.tokenize_texts(PROBE_TEXTS)]
    ids = [text_ids for text_ids in ids if len(text_ids)]
    vectors = engine.run_inference(0, ids).copy()
    return compute_least_cosine(vectors, load_reference().run_inference(0, ids))


def compute_least_cosine(vectors: Vectors, expected: Vectors) -> float:
    """Return the lowest cosine of vectors to the expected ones, of which zeros are left out. Pure.

    Return -1 if a vector is not finite, or zero where another one is expected.
    """
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
        cosines = (vectors * expected).sum(axis=1, dtype=np.float64) / lengths
    cosines[(expected == 0).all(axis=1) & np.isfinite(vectors).all(axis=1)] = 1
    return float(np.nan_to_num(cosines, nan=-1, posinf=-1, neginf=-1).min(initial=1))


def _free_memory() -> None:
    """Return the memory of a model that was removed to the system: otherwise the C library keeps it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
