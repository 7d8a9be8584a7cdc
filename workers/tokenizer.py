"""Runs a tokenizer IR made by `workers.models.tokenizers`. One thread at a time; releases the interpreter meanwhile."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_tokenizers  # noqa: F401  registers its operations with every ov.Core

from workers.backend import Ids

#: For "do not truncate".
_UNLIMITED = 2**31 - 1


class Tokenizer:
    """Texts to token ids."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        self._request = ov.Core().compile_model(path, "CPU", {"NUM_STREAMS": 1}).create_infer_request()
        #: How many tokens the tokenizer adds to every text.
        self.special_tokens = len(self.encode([""])[0])
        self._max_tokens = max_tokens

    def encode(self, texts: Sequence[str], *, truncate: bool = False) -> list[Ids]:
        """Ids of each text with the special tokens; `truncate` cuts to the model's length at the end of the text, as
        the tokenizer itself does, and keeps the special tokens."""
        limit = self._max_tokens - self.special_tokens if truncate else _UNLIMITED
        self._request.infer([ov.Tensor(list(texts)), ov.Tensor(np.array(limit, np.int32))])
        begins, ends, ids = (self._request.get_output_tensor(number).data for number in range(3))
        return [ids[begin:end].astype(np.int64) for begin, end in zip(begins, ends, strict=True)]
