"""Readers of settings in config.json that several model families share, in their old and new spellings.

All raise `ModelError` if a value is invalid or not supported.
"""

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.models.json_files import EXPORT, REMEDY, ModelError, read_count, read_number

#: Names of a layer's attention in `layer_types`: all keys, or the keys in a window.
FULL, SLIDING = "full_attention", "sliding_attention"
#: Limit for files that are damaged or hostile; large models have heads of 256 values.
_MAX_HEAD_SIZE = 65_536
#: Largest base of the rotary frequencies.
_MAX_THETA = 1e15
_MAX_HEAD_SIZE = 4096


def refuse_code(path: Path, config: dict[str, Any], known: tuple[str, ...] = ()) -> None:
    """Raise `ModelError` if `auto_map` names a class of other code, unless the class starts with a `known` text."""
    classes = config.get("auto_map") or {}
    values = classes.values() if isinstance(classes, dict) else [classes]
    for name in values:
        if not isinstance(name, str) or not name.rpartition(".")[2].startswith(known or ("\0",)):
            raise ModelError(
                f"{path}: auto_map asks for code that comes with the model ({reprlib.repr(name)}), which Vecmill does "
                f"not run; {EXPORT}"
            )


def read_choice(path: Path, config: Mapping[str, Any], key: str, choices: Mapping[str, Any], default: str) -> str:
    """Return one of the texts that `choices` has as keys, or `default` if the key is absent or null."""
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(choices)
        raise ModelError(f"{path}: {key} {reprlib.repr(value)} is not supported; Vecmill supports {known}")
    return value


def read_layer_types(path: Path, config: Mapping[str, Any], layers: int) -> list[str] | None:
    """Return `FULL` or `SLIDING` for each layer, or None if config.json has no `layer_types`."""
    types = config.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers or not all(one in (FULL, SLIDING) for one in types):
        raise ModelError(f"{path}: layer_types must be a list of {FULL} or {SLIDING} for each of {layers} layers")
    return types


def read_frequencies(
    path: Path,
    config: dict[str, Any],
    size: int,
    *,
    theta: float = 10_000,
    theta_key: str = "rope_theta",
    layer_type: str | None = None,
    is_scaled: bool = True,
) -> NDArray[np.float64]:
    """Return the angle per position of each pair of values in heads of `size` values (arXiv:2104.09864).

    The new spelling is `rope_parameters`, with an object for each layer type if `layer_type` is not None. The old
    spelling is `theta_key`, and `rope_scaling` if `is_scaled`. If a config.json has both, the new one applies, because
    it repeats the old one. `theta` is the family's default.
    """
    if size % 2 or size > _MAX_HEAD_SIZE:
        raise ModelError(
            f"{path}: heads have {size} values, but rotary position embeddings need an even number up to "
            f"{_MAX_HEAD_SIZE}"
        )
    values = _read_rotary(path, config, layer_type)
    if values is None:
        values = _read_dict(path, config, "rope_scaling") if is_scaled else {}
    if values.get("rope_theta") is None:
        values = {**values, "rope_theta": config.get(theta_key)}
    base = read_number(path, values, "rope_theta", 1, _MAX_THETA, theta, whole=False)
    for source in (config, values):
        if read_number(path, source, "partial_rotary_factor", 0, 1, 1, whole=False) != 1:
            raise ModelError(f"{path}: partial_rotary_factor is not 1, which Vecmill does not support")
    kind = values.get("rope_type") or values.get("type") or "default"
    if not isinstance(kind, str) or kind not in _SCALINGS:
        known = ", ".join(_SCALINGS)
        raise ModelError(f"{path}: rope_type {reprlib.repr(kind)} is not supported; Vecmill supports {known}")
    exponents = np.arange(0, size, 2, dtype=np.float64) / size
    return _SCALINGS[kind](path, config, values, base, exponents)  # type: ignore[no-any-return]


def _read_rotary(path: Path, config: dict[str, Any], layer_type: str | None) -> dict[str, Any] | None:
    """Return the new spelling, or None if it is absent."""
    values = _read_dict(path, config, "rope_parameters")
    if not values:
        return None
    if layer_type is not None and (FULL in values or SLIDING in values):
        return _read_dict(path, values, layer_type)
    if layer_type is not None or any(isinstance(value, dict) for value in values.values()):
        wanted = "one object for each layer type" if layer_type else "one object for all layers"
        raise ModelError(f"{path}: rope_parameters must be {wanted} in a model of this model_type; {REMEDY}")
    return values


def _read_dict(path: Path, values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    if not isinstance(value, dict | None):
        raise ModelError(f"{path}: {key} is {reprlib.repr(value)}, but must be an object; {REMEDY}")
    return value or {}


def _read_factor(path: Path, values: dict[str, Any], key: str = "factor") -> float:
    return read_number(path, values, key, 1e-3, 1e6, None, whole=False)


def _use_base(_path: Path, _config: Any, _values: Any, base: float, exponents: NDArray[np.float64]) -> Any:
    return base**-exponents


def _scale_all(path: Path, _config: Any, values: dict[str, Any], base: float, exponents: NDArray[np.float64]) -> Any:
    return base**-exponents / _read_factor(path, values)


def _scale_base(path: Path, _config: Any, values: dict[str, Any], base: float, exponents: NDArray[np.float64]) -> Any:
    """Return the fixed NTK scaling of GTE, which applies to texts of any length."""
    if values.get("mixed_b") is not None:
        raise ModelError(f"{path}: mixed_b in rope_scaling is not supported")
    factor = _read_factor(path, values)
    return (base * factor) ** -exponents / factor ** (1 / len(exponents))


def _scale_by_wavelength(
    path: Path, config: dict[str, Any], values: dict[str, Any], base: float, exponents: NDArray[np.float64]
) -> Any:
    """Return the scaling of Llama 3.1: long waves get longer, short waves stay, waves between change smoothly."""
    factor = _read_factor(path, values)
    low, high = _read_factor(path, values, "low_freq_factor"), _read_factor(path, values, "high_freq_factor")
    if low >= high:
        raise ModelError(f"{path}: low_freq_factor must be below high_freq_factor; {REMEDY}")
    positions = read_count(path, config, "max_position_embeddings", default=1)
    trained = read_count(path, values, "original_max_position_embeddings", default=positions)
    frequencies = base**-exponents
    waves = trained * frequencies / (2 * math.pi)
    kept = np.clip((waves - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / factor)


#: Functions that compute frequencies, by their names in config.json.
_SCALINGS = {
    "default": _use_base,
    "linear": _scale_all,
    "ntk": _scale_base,
    "llama3": _scale_by_wavelength,
}
