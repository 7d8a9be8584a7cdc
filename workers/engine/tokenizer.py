"""Runs a tokenizer IR made by `workers.models.tokenizers`. One thread at a time; releases the interpreter meanwhile.

It counts and micro_batches; it does not decide what is too long.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_tokenizers  # noqa: F401  registers its operations with every ov.Core

from workers.engine.backend import Ids

#: Characters of a group's longest text times its texts: an array of Python texts is as wide as the longest of them
#: (one of 8 MB beside 200 short ones took 6.4 GB and 13 s).
GROUP_CHARACTERS = 1 << 20


def groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in their order, in groups of which none is too large as an array, but for a text that is so alone."""
    start = longest = 0
    for at, text in enumerate(texts):
        longest = max(longest, len(text))
        if at > start and longest * (at + 1 - start) > GROUP_CHARACTERS:
            yield texts[start:at]
            start, longest = at, len(text)
    yield texts[start:]


class Tokenizer:
    """Texts to token ids, and ids to the model's length."""

    def __init__(self, path: Path) -> None:
        self._request = ov.Core().compile_model(path, "CPU", {"NUM_STREAMS": 1}).create_infer_request()
        # The tokens around every text are those of the empty one; where the text goes in shows with any other text.
        around, other = self.encode(["", "a"])
        before = next(at for at, one in enumerate(other) if at == len(around) or one != around[at])
        #: Ids that it puts before and after every text.
        self.before, self.after = around[:before], around[before:]

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, int64 [tokens], with the special tokens, of whatever length."""
        return [ids for group in groups(texts) for ids in self._encode(group)]

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        self._request.infer([ov.Tensor(list(texts))])
        begins, ends, ids = (self._request.get_output_tensor(number).data for number in range(3))
        if len(begins) != len(texts):
            # Of texts that are all blank it gives one row.
            return self._encode([*texts, "a"])[:-1]
        return [ids[begin:end].astype(np.int64) for begin, end in zip(begins, ends, strict=True)]
