"""Runs a tokenizer IR made by `workers.models.tokenizers`. One thread at a time; releases the interpreter meanwhile.

It counts and cuts; it does not decide what is too long.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_tokenizers  # noqa: F401  registers its operations with every ov.Core

from workers.backend import Ids


class Tokenizer:
    """Texts to token ids, and ids to the model's length."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        self._request = ov.Core().compile_model(path, "CPU", {"NUM_STREAMS": 1}).create_infer_request()
        self._max_tokens = max_tokens
        # The tokens around every text are those of the empty one; where the text goes in shows with any other text.
        around, other = self.encode(["", "a"])
        before = next(at for at, one in enumerate(other) if at == len(around) or one != around[at])
        self._before, self._after = around[:before], around[before:]

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, int64 [tokens], with the special tokens, of whatever length. The memory that it takes
        grows with the tokens of all texts together, not with the longest of them."""
        self._request.infer([ov.Tensor(list(texts))])
        begins, ends, ids = (self._request.get_output_tensor(number).data for number in range(3))
        return [ids[begin:end].astype(np.int64) for begin, end in zip(begins, ends, strict=True)]

    def truncate(self, ids: Ids) -> Ids:
        """Ids from `encode` cut to the model's length as its own tokenizer cuts them: at the text's end, with the
        special tokens kept. (Cutting at the other side would keep `_before` and the last of the rest.)"""
        if len(ids) <= self._max_tokens:
            return ids
        return np.concatenate([ids[: self._max_tokens - len(self._after)], self._after])
