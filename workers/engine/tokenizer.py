"""Token ids of texts, by the files that `workers.models.tokenizers` writes.

A `Tokenizer` serves one thread at a time. Encoding releases the GIL.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from workers.engine.backend import Ids
from workers.models.openvino_lock import OPENVINO_LOCK

#: Largest group in characters, counted as the length of its longest text times its number of texts. For the IR, numpy
#: makes an array of texts as wide as the longest text: 8 MB among 200 short texts took 6.4 GB and 13 s. The library
#: needs up to 200 bytes for each character of a group.
GROUP_CHARACTERS = 1 << 20


class Encoder(Protocol):
    """A library that makes token ids of texts."""

    def encode_group(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, int64 `[tokens]`, with the special tokens, not truncated."""


class IrEncoder:
    """Tokenizer IR, run by openvino-tokenizers. It takes less memory and, for many texts, less time."""

    def __init__(self, path: Path) -> None:
        import openvino as ov
        import openvino_tokenizers  # noqa: F401  registers its operations with every ov.Core

        self._make_tensor = ov.Tensor
        # The library of the tokenizer's operations is loaded as long as this object lives.
        self._core = ov.Core()
        with OPENVINO_LOCK:
            compiled = self._core.compile_model(path, "CPU", {"NUM_STREAMS": 1})
        #: Three arrays (begins, ends and ids), or two that are padded (ids and mask).
        self._outputs = len(compiled.outputs)
        self._request = compiled.create_infer_request()

    def encode_group(self, texts: Sequence[str]) -> list[Ids]:
        """See `Encoder`."""
        self._request.infer([self._make_tensor(list(texts))])
        outputs = [self._request.get_output_tensor(number).data for number in range(self._outputs)]
        if len(outputs[0]) != len(texts):
            # The tokenizer returns a single row if all texts are blank.
            return self.encode_group([*texts, "a"])[:-1]
        if self._outputs == 2:
            return [ids[mask != 0].astype(np.int64) for ids, mask in zip(*outputs, strict=True)]
        begins, ends, ids = outputs
        return [ids[begin:end].astype(np.int64) for begin, end in zip(begins, ends, strict=True)]


class LibraryEncoder:
    """Hugging Face's `tokenizers` library, which encodes the texts of a group in parallel."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))

    def encode_group(self, texts: Sequence[str]) -> list[Ids]:
        """See `Encoder`."""
        try:
            return [np.array(encoding.ids, np.int64) for encoding in self._tokenizer.encode_batch_fast(texts)]
        except BaseException as error:
            if isinstance(error, Exception | KeyboardInterrupt | SystemExit):
                raise
            # A panic, which would end the thread because it is no Exception.
            raise RuntimeError(str(error)) from None


def group_texts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the texts, in their order, in groups of at most `GROUP_CHARACTERS`; a longer text is a group alone."""
    start = longest = 0
    for index, text in enumerate(texts):
        longest = max(longest, len(text))
        if index > start and longest * (index + 1 - start) > GROUP_CHARACTERS:
            yield texts[start:index]
            start, longest = index, len(text)
    yield texts[start:]


class Tokenizer:
    """Converts texts to token ids."""

    def __init__(self, path: Path, *, lower_case: bool = False) -> None:
        """Load a tokenizer IR or a tokenizer.json. `lower_case`: lower-case texts first, as Python does."""
        self._encoder: Encoder = IrEncoder(path) if path.suffix == ".xml" else LibraryEncoder(path)
        self._lower_case = lower_case
        # The empty text has only the special tokens. Where another text's ids differ from these, the text begins.
        special, other = self.encode_texts(["", "a"])
        start = next((i for i, token in enumerate(special) if token != other[i]), len(special))
        #: Special tokens before and after every text.
        self.before, self.after = special[:start], special[start:]

    def encode_texts(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, int64 `[tokens]`, with the special tokens, not truncated."""
        if self._lower_case:
            texts = [text.lower() for text in texts]
        return [ids for group in group_texts(texts) for ids in self._encoder.encode_group(group)]
