"""What the pipeline needs of whatever runs a model. The OpenVINO engine is one; tests bring their own."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from broker.wire.errors import ErrorCode

#: Token ids of one input, int64 [length].
Ids = npt.NDArray[np.int64]
#: Sentence embeddings, float32 [inputs, dimension].
Vectors = npt.NDArray[np.float32]


class Backend(Protocol):
    """One model on one device."""

    dimension: int
    #: Longest input in tokens, special tokens included.
    max_tokens: int
    #: Special tokens that the tokenizer puts before and after each text.
    before: Ids
    after: Ids
    #: How many calls of `infer` may run at once.
    requests: int
    #: Most padded tokens of one inference.
    micro_batch_tokens: int

    def tokenise_texts(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text with the special tokens, not cut to the model's length."""

    def validate_ids(self, ids: Ids) -> tuple[ErrorCode, str] | None:
        """Why these ids cannot be embedded; None: they can."""

    def run_inference(self, request: int, ids: Sequence[Ids]) -> Vectors:
        """Embed inputs that all pass `validate_ids`, in their order, on infer request number `request`.

        The result may be overwritten by the next call with that number.
        """

    def get_divisors(self, request: int) -> Vectors | None:
        """What the vectors of the last inference with that number were divided by, to have length 1 [inputs, 1]; None:
        they were not."""

    def verify_device(self, request: int) -> None:
        """Raise if an input that has been embedded at warm-up cannot be embedded any more."""
