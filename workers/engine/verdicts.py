"""Results of probes, kept with the compiled models of one version of OpenVINO, so that a start needs no probe."""

import contextlib
from pathlib import Path

import msgspec

from broker.shared.files import make_scratch_folder, move_into_place, read_small_file
from workers.engine.compiled_cache import get_version_folder

#: Results that are kept; the oldest are removed first.
MAX_RESULTS = 256
#: Longest file that is read.
_MAX_BYTES = 1 << 20
_FILE = "probes.json"


def find_verdict(cache: Path, key: str) -> float | None:
    """Return the lowest cosine that a probe has measured, or None if there is none."""
    return _read_results(_find_folder(cache)).get(key)


def store_verdict(cache: Path, key: str, cosine: float) -> None:
    """Keep a result. If another process stores one at the same time, or the cache is full, a result may be lost."""
    folder = _find_folder(cache)
    results = _read_results(folder)
    results.pop(key, None)
    results[key] = cosine
    kept = dict(list(results.items())[-MAX_RESULTS:])
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with make_scratch_folder(folder) as scratch:
            (scratch / _FILE).write_bytes(msgspec.json.encode(kept))
            move_into_place(scratch / _FILE, folder / _FILE)


def _find_folder(cache: Path) -> Path:
    return get_version_folder(cache / "compiled")


def _read_results(folder: Path) -> dict[str, float]:
    try:
        return msgspec.json.decode(read_small_file(folder / _FILE, _MAX_BYTES), type=dict[str, float])
    except (OSError, ValueError):
        return {}
