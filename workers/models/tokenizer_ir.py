"""Tokenizers that others have converted with openvino-tokenizers."""

from pathlib import Path

import openvino as ov
import openvino_tokenizers  # noqa: F401  registers its operations with every ov.Core

from workers.models.json_files import REMEDY, ModelError, get_last_line, summarize_error
from workers.models.tokenizers import expose_ragged_ids

#: Kept, because the operations of a tokenizer are in a library that is unloaded with the last core that uses it.
_CORE = ov.Core()


def read_tokenizer_ir(path: Path) -> ov.Model:
    """Return the tokenizer of an openvino_tokenizer.xml in the form of `workers.models.tokenizers`.

    A limit that the exporter put into the tokenizer has no effect. Raise `ModelError` if the file is damaged.
    """
    try:
        converted = _CORE.read_model(path)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO could not read {path}: {summarize_error(get_last_line(error))}; {REMEDY}") from None
    return expose_ragged_ids(converted, path)
