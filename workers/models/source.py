"""Where a model comes from, and the settings that an operator or a foreign configuration adds. Opens no file."""

from pathlib import Path
from typing import Any, Literal

import msgspec

#: What a model is computed in. `auto`: the device's native float if its vectors agree with those in float32.
Precision = Literal["auto", "f32", "bf16", "f16", "int8"]

#: Activations that are rounded together with int8: 1.29 times as fast as OpenVINO's and OVMS's 32, with 0.03 points
#: less on the STS benchmark (the table in docs/models.md has the conditions). Part of the revision.
INT8_GROUP = "64"

#: OpenVINO properties that do not change vectors.
_PERFORMANCE_PROPERTIES = frozenset(
    {
        "AFFINITY",
        "CACHE_DIR",
        "CACHE_MODE",
        "COMPILATION_NUM_THREADS",
        "ENABLE_CPU_PINNING",
        "ENABLE_CPU_RESERVATION",
        "ENABLE_HYPER_THREADING",
        "ENABLE_MMAP",
        "INFERENCE_NUM_THREADS",
        "LOG_LEVEL",
        "MODEL_PRIORITY",
        "NUM_STREAMS",
        "PERFORMANCE_HINT",
        "PERFORMANCE_HINT_NUM_REQUESTS",
        "PERF_COUNT",
        "SCHEDULING_CORE_TYPE",
    }
)


def is_npu(device: str) -> bool:
    """Return whether a device is an NPU."""
    return device.upper().partition(".")[0] == "NPU"


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that replace those of a model folder. None, "" and {}: as the folder specifies."""

    #: CLS, MEAN or LAST.
    pooling: str = ""
    #: Whether to scale vectors to length 1.
    normalize: bool | None = None
    #: Whether inputs that are too long are truncated if their request does not say so.
    truncate: bool | None = None
    #: Longest input in tokens; the folder's own limit holds if it is lower.
    max_tokens: int | None = None
    #: OpenVINO device, such as "GPU.1"; "": the worker's.
    device: str = ""
    #: Of these, only int8 has other weights and another revision.
    precision: Precision = "auto"
    #: OpenVINO properties for the compilation, such as NUM_STREAMS.
    properties: dict[str, Any] = {}
    #: Folder of the tokenizer, if it is not the model's.
    tokenizer: Path | None = None
    #: Model file in the folder, such as "onnx/model_quantized.onnx"; "": chosen by its name.
    file: str = ""

    @property
    def vector_properties(self) -> list[tuple[str, Any]]:
        """The properties that may change vectors, with the precision of an NPU, which computes in float16."""
        precision = {"INFERENCE_PRECISION_HINT": "f16"} if is_npu(self.device) else {}
        properties = precision | self.properties
        return sorted((key, value) for key, value in properties.items() if key not in _PERFORMANCE_PROPERTIES)


class Source(msgspec.Struct, frozen=True):
    """A model to serve. Sources that are equal give the same model."""

    #: Name in the API.
    name: str
    #: Folder with the weights.
    folder: Path
    overrides: Overrides = Overrides()
    #: Names of the models that the configuration combines into this one, which clients cannot request.
    parts: tuple[str, ...] = ()


class Refused(msgspec.Struct, frozen=True):
    """A model that cannot be served, and why, in one sentence."""

    name: str
    reason: str


class Found(msgspec.Struct, frozen=True):
    """The models of a configuration."""

    sources: list[Source]
    refused: list[Refused] = []
