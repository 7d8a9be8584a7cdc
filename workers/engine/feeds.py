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
    """Return the inputs of `PackedLayout`, with a few tokens and columns that belong to no text (see `_round_up`)."""
    mask = _make_mask(ids, round_lengths=True)
    origins = np.flatnonzero(mask)
    count = len(origins)
    places = np.zeros(mask.shape, np.int32)
    places.reshape(-1)[origins] = np.arange(count, dtype=np.int32)
    size = _round_up(count)
    return {
        "ids": _extend(np.concatenate(ids), size),
        "positions": _extend(origins % mask.shape[1], size),
        "places": places,
        "origins": _extend(origins, size),
        "mask": mask.astype(np.float32),
    }


def _make_mask(ids: Sequence[Ids], *, round_lengths: bool = False) -> Any:
    lengths = np.array([len(input_ids) for input_ids in ids])
    longest = int(lengths.max())
    return np.arange(_round_up(longest) if round_lengths else longest) < lengths[:, None]


def _round_up(number: int) -> int:
    """Return the next number of at most six significant bits, which is up to 3 % larger.

    The CPU plugin keeps 0.2 MB for each number of tokens that it has seen, and 0.05 MB for each rectangle
    (all-MiniLM-L6-v2).
    """
    step = 1 << max(0, number.bit_length() - 6)
    return -(-number // step) * step


def _extend(values: Any, size: int) -> Any:
    """Return the values, then zeros, int32 `[size]`."""
    extended = np.zeros(size, np.int32)
    extended[: len(values)] = values
    return extended
