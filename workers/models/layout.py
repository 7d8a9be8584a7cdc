"""How the tokens of a batch lie in a graph. Model families work on rows of tokens and leave everything else to it."""

from typing import Any

import numpy as np
import openvino.opset15 as op

#: Added to the score of a key that a query must not attend to, which makes the key's weight exactly 0. Finite in every
#: precision (the lowest float32 is -infinity in float16 and bfloat16), because a row of -infinity alone would make the
#: softmax NaN.
LOWEST = -30000.0


def make_integers(*values: int) -> Any:
    """Return a constant, int64 `[values]`."""
    return op.constant(np.array(values, np.int64))


def make_integer(value: int) -> Any:
    """Return a constant, int64 without dimensions."""
    return op.constant(np.int64(value))


def make_scalar(value: float) -> Any:
    """Return a float32 constant."""
    return op.constant(np.float32(value))


def add_biases(*biases: Any) -> Any:
    """Return the sum of biases for attention scores, at least `LOWEST`, so that no sum is -infinity in float16."""
    total = biases[0]
    for bias in biases[1:]:
        total = op.maximum(op.add(total, bias), make_scalar(LOWEST))
    return total


class PaddedLayout:
    """Texts as rows of a rectangle `[batch, length]`, padded on the right.

    Hidden states are float32 `[batch, length, size]`; heads are `[batch, heads, length, size]`. Biases are added to
    attention scores `[batch, heads, queries, keys]`: 0 where a query attends to a key, else `LOWEST`.
    """

    def __init__(self) -> None:
        """Make the inputs `input_ids` and `attention_mask`, int64 `[batch, length]`."""
        self.ids = op.parameter([-1, -1], np.int64, name="input_ids")
        attended = op.parameter([-1, -1], np.int64, name="attention_mask")
        self.inputs = [self.ids, attended]
        #: float32 `[batch, length]`: 1 for tokens, then 0 for padding.
        self.mask = op.convert(attended, "f32")
        #: Padded length of the texts, int64 `[1]`.
        self.length = op.gather(op.shape_of(self.ids), make_integers(1), make_integer(0))

    def get_positions(self) -> Any:
        """Return the position of each token in its text, int64 `[length]`."""
        return op.range(make_integer(0), op.squeeze(self.length, make_integers(0)), make_integer(1), "i64")

    def embed_tokens(self, table: Any) -> Any:
        """Return the row of each token id in a table `[rows, size]`."""
        return op.gather(table, self.ids, make_integer(0))

    def embed_positions(self, table: Any, start: int = 0) -> Any:
        """Return the row of each position, to be added to hidden states. Row `start` belongs to the first token.

        Unless `start` is 0, the id `start - 1` is padding wherever it is, also in a text, as in transformers' RoBERTa:
        such tokens do not count, and have the row before the first.
        """
        if not start:
            rows = op.slice(table, make_integers(0), self.length, make_integers(1), make_integers(0))
            return op.unsqueeze(rows, make_integers(0))
        counted = op.convert(op.not_equal(self.ids, make_integer(start - 1)), "i64")
        positions = op.multiply(op.cum_sum(counted, make_integer(1)), counted)
        return op.gather(table, op.add(positions, make_integer(start - 1)), make_integer(0))

    def split_heads(self, x: Any, heads: int, size: int) -> Any:
        """Return hidden states `[batch, length, heads * size]` as heads."""
        return op.transpose(op.reshape(x, make_integers(0, 0, heads, size), True), make_integers(0, 2, 1, 3))

    def merge_heads(self, x: Any) -> Any:
        """Return heads as hidden states."""
        return op.reshape(op.transpose(x, make_integers(0, 2, 1, 3)), make_integers(0, 0, -1), True)

    def pad_states(self, x: Any) -> Any:
        """Return hidden states as `[batch, length, size]`, with any finite values for padding."""
        return x

    def get_distances(self) -> Any:
        """Return key minus query for each pair of positions, int64 `[length, length]`."""
        positions = self.get_positions()
        return op.subtract(op.unsqueeze(positions, make_integers(0)), op.unsqueeze(positions, make_integers(1)))

    def make_key_bias(self) -> Any:
        """Return the bias that excludes padding, float32 `[batch, 1, 1, length]`."""
        return op.multiply(
            op.subtract(make_scalar(1), op.unsqueeze(self.mask, make_integers(1, 2))), make_scalar(LOWEST)
        )

    def make_window_bias(self, radius: int) -> Any:
        """Return the bias that excludes padding and keys farther away than `radius` positions."""
        return self._exclude(op.greater(op.abs(self.get_distances()), make_integer(radius)))

    def make_causal_bias(self, window: int | None = None) -> Any:
        """Return the bias that excludes padding, later keys, and keys `window` or more positions before the query."""
        distances = self.get_distances()
        excluded = op.greater(distances, make_integer(0))
        if window is not None:
            excluded = op.logical_or(excluded, op.less_equal(distances, make_integer(-window)))
        return self._exclude(excluded)

    def _exclude(self, excluded: Any) -> Any:
        bias = op.select(excluded, make_scalar(LOWEST), make_scalar(0))
        return add_biases(op.unsqueeze(bias, make_integers(0, 1)), self.make_key_bias())
