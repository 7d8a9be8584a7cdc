"""tokenizer.json to OpenVINO tokenizer IR. Imports transformers, which takes a second: only for a model's first use.

The IR takes texts and gives their ids, neither truncated nor padded: `begins` and `ends` [texts] say where each
text's ids are in `ids`.
"""

import os
import warnings
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op

from workers.models.folder import ModelError, ModelFolder


def convert_tokenizer(folder: ModelFolder) -> ov.Model:
    """The tokenizer of a folder; ModelError when it is of a kind that openvino-tokenizers cannot convert."""
    # transformers warns that PyTorch is missing, which is as it should be.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino_tokenizers
        from transformers import PreTrainedTokenizerFast

        try:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder.tokenizer))  # type: ignore[no-untyped-call]
            converted = openvino_tokenizers.convert_tokenizer(tokenizer)
        except Exception as error:  # a library's many kinds of refusal, all of which are about this one file
            raise ModelError(f"{folder.tokenizer} cannot be converted: {error}") from error
    return _ragged(converted, folder)


def _ragged(converted: ov.Model, folder: ModelFolder) -> ov.Model:
    """Take the ids where they are still ragged, and never truncate."""
    by_type: dict[str, list[Any]] = {}
    for node in converted.get_ordered_ops():
        by_type.setdefault(node.get_type_name(), []).append(node)
    combined, truncations = by_type.get("CombineSegments", []), by_type.get("Truncate", [])
    if len(combined) != 1 or len(truncations) > 1:
        raise ModelError(f"{folder.tokenizer} is converted to a graph of an unknown shape")
    for truncation in truncations:
        truncation.input(3).replace_source_output(op.constant(np.int32(2**31 - 1)).output(0))
    results = []
    for name, number in (("begins", 0), ("ends", 1), ("ids", 2)):
        result = op.result(combined[0].output(number))
        result.output(0).set_names({name})
        results.append(result)
    return ov.Model(results, converted.get_parameters(), "tokenizer")
