"""Which keys each query attends to, with padding on either side and rows without tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import pytest

from workers.models.layout import LOWEST, PaddedLayout

LENGTH = 6
#: Whole rows, padding on the right and on the left, and a row without tokens.
MASK = np.array([[1] * 6, [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], [0] * 6])
KEYS, QUERIES = np.arange(LENGTH), np.arange(LENGTH)[:, None]


@pytest.mark.parametrize(
    ("make", "attended"),
    [
        (lambda layout: layout.make_key_bias(), KEYS >= 0),
        (lambda layout: layout.make_window_bias(2), abs(KEYS - QUERIES) <= 2),
        (lambda layout: layout.make_causal_bias(), KEYS <= QUERIES),
        (lambda layout: layout.make_causal_bias(2), (KEYS <= QUERIES) & (KEYS > QUERIES - 2)),
    ],
)
def test_excluded_keys_have_the_lowest_bias(make: Callable[[PaddedLayout], Any], attended: Any) -> None:
    layout = PaddedLayout()
    model = ov.Model([make(layout)], layout.inputs)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    bias = compiled([np.zeros_like(MASK), MASK])[0]
    expected = np.where(attended & (MASK[:, None, None] == 1), 0, np.float32(LOWEST))
    np.testing.assert_array_equal(np.broadcast_to(bias, expected.shape), expected)
