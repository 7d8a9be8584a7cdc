"""Tokens of all texts of a batch in one row, so that padding has a cost only in attention."""

from typing import Any

import numpy as np
import openvino.opset15 as op

from workers.models.layout import PaddedLayout, make_integer, make_integers


class PackedLayout(PaddedLayout):
    """Tokens of all texts one after another: hidden states are float32 `[1, tokens, size]`.

    All operations on single tokens, which are most of the work, run on tokens only. Attention needs the rectangle
    `[batch, length]`: queries, keys and values are gathered into it, and its output is gathered back.
    """

    def __init__(self) -> None:
        """Make the inputs.

        `ids` and `positions` are the id of each token and its position in its text, int32 `[tokens]`. `places` is the
        row of each token of the rectangle, int32 `[batch, length]`, any row for padding. `origins` is the place of
        each token in the flattened rectangle, int32 `[tokens]`. `mask` is float32 `[batch, length]`.
        """
        self.ids = op.parameter([-1], np.int32, name="ids")
        self._token_positions = op.parameter([-1], np.int32, name="positions")
        self._places = op.parameter([-1, -1], np.int32, name="places")
        self._origins = op.parameter([-1], np.int32, name="origins")
        self.mask = op.parameter([-1, -1], np.float32, name="mask")
        self.inputs = [self.ids, self._token_positions, self._places, self._origins, self.mask]
        self.length = op.gather(op.shape_of(self._places), make_integers(1), make_integer(0))

    def embed_tokens(self, table: Any) -> Any:
        """See `PaddedLayout`."""
        return op.unsqueeze(op.gather(table, self.ids, make_integer(0)), make_integers(0))

    def embed_positions(self, table: Any, start: int = 0) -> Any:
        """See `PaddedLayout`."""
        rows = self._count_positions(start) if start else self._token_positions
        return op.unsqueeze(op.gather(table, rows, make_integer(0)), make_integers(0))

    def _count_positions(self, start: int) -> Any:
        """Return the row of each token's position, int64 `[tokens]`, where the id `start - 1` does not count."""
        counted = op.convert(op.not_equal(self.ids, op.constant(np.int32(start - 1))), "i64")
        rectangle = op.cum_sum(op.gather(counted, self._places, make_integer(0)), make_integer(1))
        counts = op.gather(op.reshape(rectangle, make_integers(-1), False), self._origins, make_integer(0))
        return op.add(op.multiply(counts, counted), make_integer(start - 1))

    def split_heads(self, x: Any, heads: int, size: int) -> Any:
        """See `PaddedLayout`."""
        return super().split_heads(self.pad_states(x), heads, size)

    def merge_heads(self, x: Any) -> Any:
        """See `PaddedLayout`."""
        size = x.get_output_partial_shape(0)
        rows = op.reshape(op.transpose(x, make_integers(0, 2, 1, 3)), make_integers(1, -1, _count(size)), False)
        return op.gather(rows, self._origins, make_integer(1))

    def pad_states(self, x: Any) -> Any:
        """See `PaddedLayout`."""
        return op.gather(op.squeeze(x, make_integers(0)), self._places, make_integer(0))


def _count(shape: Any) -> int:
    """Return the size of merged heads `[batch, heads, length, size]`."""
    return int(shape[1].get_length() * shape[3].get_length())
