"""Interface between the pipeline and the code that runs a model.

`Engine` implements it with OpenVINO; tests implement it with arithmetic.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from broker.wire import protocol as wire
from broker.wire.errors import ErrorCode
from workers.engine.micro_batches import Costs

#: Token ids of one input, int64 `[tokens]`.
Ids = npt.NDArray[np.int64]
#: Sentence embeddings, float32 `[inputs, dimension]`.
Vectors = npt.NDArray[np.float32]


class Backend(Protocol):
    """One model on one device."""

    #: Values in a vector.
    dimension: int
    #: Longest input in tokens, special tokens included.
    max_tokens: int
    #: Special tokens that the tokenizer puts before and after each text.
    before: Ids
    after: Ids
    #: How many inferences the device runs at the same time.
    streams: int
    #: How many calls of `run_inference` may run at the same time.
    requests: int
    #: What an inference costs, by which batches are cut.
    costs: Costs

    def tokenize_texts(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text with the special tokens, not truncated."""

    def count_prompt_tokens(self, text: wire.Frame) -> int:
        """Return how many tokens of a text in UTF-8 that begins with a prompt the pooling leaves out."""

    def validate_ids(self, ids: Ids) -> tuple[ErrorCode, str] | None:
        """Return the reason why the model rejects these ids, or None if it accepts them."""

    def run_inference(self, request: int, ids: Sequence[Ids], prompt_tokens: Sequence[int]) -> Vectors:
        """Return the vectors of inputs that `validate_ids` accepts, float32 `[inputs, dimension]`, in their order.

        The pooling leaves out `prompt_tokens` at the start of each input. `request` is the number of the infer request
        to use. The next call with the same number may overwrite the result.
        """

    def get_divisors(self, request: int) -> Vectors | None:
        """Return the lengths by which the last inference divided its vectors, float32 `[inputs, 1]`.

        Return None if the model does not normalize.
        """

    def open_spare_request(self) -> int | None:
        """Open one more infer request that does not wait while all others run. Return its number, or None without one.

        Called once, while other threads run inferences.
        """

    def open_wide_request(self, borrow: Callable[[], AbstractContextManager[Sequence[int]]]) -> int | None:
        """Open one more infer request that runs one inference faster than those of the streams.

        Return its number; None if there is none. `borrow` reserves all infer requests of the streams, so that one of
        them can be compared with it while nothing else runs; it reserves none if they are not free soon. Called while
        other threads run inferences.
        """

    def verify_device(self, request: int) -> None:
        """Repeat an inference that has succeeded before. Raise its exception, because then the device is broken."""
