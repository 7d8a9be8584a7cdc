"""Inputs of inferences: texts as padded rows, and end to end."""

import numpy as np

from workers.engine.feeds import pack_ids, pad_ids

#: The id 0 is the padding, and also a token.
TEXTS = [np.array(text, np.int64) for text in ([7, 0], [5], [3, 4, 0])]


def test_padding_is_on_the_right_and_masked() -> None:
    feed = pad_ids(TEXTS, 0)
    assert feed["input_ids"].tolist() == [[7, 0, 0], [5, 0, 0], [3, 4, 0]]
    assert feed["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]


def test_packed_tokens_have_no_padding() -> None:
    feed = pack_ids(TEXTS)
    assert feed["ids"].tolist() == [7, 0, 5, 3, 4, 0]
    assert feed["positions"].tolist() == [0, 1, 0, 0, 1, 2]
    assert feed["mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]


def test_packed_tokens_are_found_in_the_rectangle_and_back() -> None:
    feed = pack_ids(TEXTS)
    assert feed["places"].tolist() == [[0, 1, 0], [2, 0, 0], [3, 4, 5]]
    rectangle = feed["ids"][feed["places"]]
    np.testing.assert_array_equal(rectangle.reshape(-1)[feed["origins"]], feed["ids"])
