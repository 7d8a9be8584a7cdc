"""Inputs of an inference, in the layouts of `workers.models.layout` and `workers.models.packed_layout`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from workers.engine.backend import Ids

Feed = dict[str, Any]


def pad_ids(ids: Sequence[Ids], pad_id: int) -> Feed:
    """Return the inputs of `PaddedLayout`."""
    mask = _make_mask(ids)
    padded = np.full(mask.shape, pad_id, np.int64)
    padded[mask] = np.concatenate(ids)
    return {"input_ids": padded, "attention_mask": mask.astype(np.int64)}


def pack_ids(ids: Sequence[Ids]) -> Feed:
    """Return the inputs of `PackedLayout`."""
    mask = _make_mask(ids)
    columns = np.arange(mask.shape[1], dtype=np.int32)
    places = np.zeros(mask.shape, np.int32)
    origins = np.flatnonzero(mask).astype(np.int32)
    places.reshape(-1)[origins] = np.arange(len(origins), dtype=np.int32)
    return {
        "ids": np.concatenate(ids).astype(np.int32),
        "positions": np.broadcast_to(columns, mask.shape)[mask],
        "places": places,
        "origins": origins,
        "mask": mask.astype(np.float32),
    }


def _make_mask(ids: Sequence[Ids]) -> Any:
    lengths = np.array([len(input_ids) for input_ids in ids])
    return np.arange(lengths.max()) < lengths[:, None]
