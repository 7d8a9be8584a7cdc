"""Measured costs on disk, in the folder of the compiled models. A file has about 100 bytes."""

import contextlib
import hashlib
import logging
from pathlib import Path
from typing import Any

import msgspec
import openvino as ov

from broker.shared.files import explain, read_small_file
from workers.engine.micro_batches import Costs

log = logging.getLogger(__name__)

#: Properties of a compiled model that affect the duration of an inference.
PROPERTIES = (
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "EXECUTION_DEVICES",
    "INFERENCE_NUM_THREADS",
    "INFERENCE_PRECISION_HINT",
    "NUM_STREAMS",
    "PERFORMANCE_HINT",
)
#: Files that are kept. Older ones are removed.
MAX_FILES = 100
#: Longest file that is read.
MAX_BYTES = 1000
#: Milliseconds that a token takes at least, and an inference or a token at most. Other costs are not of a real device.
MIN_TOKEN_MS, MAX_MS = 1e-6, 60_000.0


def find_costs_path(folder: Path, revision: str, compiled: Any) -> Path:
    """Return the path of the costs of a model of this revision, as compiled for its device."""
    supported = compiled.get_property("SUPPORTED_PROPERTIES")
    facts = [revision, *(str(compiled.get_property(name)) if name in supported else "" for name in PROPERTIES)]
    core = ov.Core()
    for device in compiled.get_property("EXECUTION_DEVICES") if "EXECUTION_DEVICES" in supported else []:
        # Devices of modes, such as "(CPU)" of AUTO, have no name of their own.
        with contextlib.suppress(RuntimeError):
            facts.append(str(core.get_property(device, "FULL_DEVICE_NAME")))
    return folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.costs.json"


def load_costs(path: Path) -> Costs | None:
    """Return stored costs; None if there are none, they are absurd or the file is damaged."""
    try:
        costs = msgspec.json.decode(read_small_file(path, MAX_BYTES), type=Costs)
    except (OSError, ValueError):
        return None
    values = (costs.inference_ms, costs.token_ms, costs.pair_ms)
    # NaN is not between the limits either.
    return costs if all(0 <= value <= MAX_MS for value in values) and costs.token_ms >= MIN_TOKEN_MS else None


def store_costs(path: Path, costs: Costs) -> None:
    """Write costs, and remove files beyond `MAX_FILES`. Log a warning if the file cannot be written."""
    try:
        path.write_bytes(msgspec.json.encode(costs))
        files = sorted(path.parent.glob("*.costs.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in files[MAX_FILES:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        log.warning("measured costs not stored in %s: %s; the next start measures again", path, explain(error))
