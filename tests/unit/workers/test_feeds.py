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


def test_few_tokens_more_make_few_sizes() -> None:
    """The CPU plugin keeps memory for each size."""
    feeds = [pack_ids([np.arange(1, length + 1)]) for length in range(1, 1025)]
    assert [feed["ids"].size for feed in feeds[:64]] == list(range(1, 65))
    for name in ("ids", "positions", "origins"):
        assert len({feed[name].size for feed in feeds}) == 64 + 4 * 32
    assert len({feed["places"].shape for feed in feeds}) == 64 + 4 * 32
    for length, feed in enumerate(feeds, 1):
        assert length <= feed["ids"].size <= length * 1.032
        np.testing.assert_array_equal(feed["mask"].sum(axis=1), [length])
        np.testing.assert_array_equal(feed["ids"][:length], np.arange(1, length + 1))
        np.testing.assert_array_equal(feed["ids"][length:], 0)
        assert feed["places"].max() == length - 1
