"""Tokenizer of a model folder, written as a file that the engine loads: IR for BERT's rules, or else tokenizer.json.

openvino-tokenizers gives other ids than Hugging Face's tokenizers for some texts of every kind but BERT's.
"""

import json
from pathlib import Path
from typing import Any

from workers.models.folder import ModelFolder
from workers.models.json_files import REMEDY, ModelError, read_object, summarize_error

#: Word that is in no vocabulary.
_UNKNOWN = "\ue000"


def write_tokenizer(folder: ModelFolder, vocabulary_size: int, into: Path) -> Path:
    """Write the tokenizer of a folder into another folder, and return the file.

    Raise `ModelError` if the tokenizer is damaged or does not fit the model.
    """
    from workers.models.tokenizers import convert_bert, is_bert, read_max_characters

    path = folder.tokenizer_path
    if path.suffix == ".xml":
        return _write_ir(path, into)
    spec = read_object(path)
    if not folder.has_special_tokens:
        spec["post_processor"] = None
    if is_bert(spec):
        read_max_characters(path, spec)
    library = _load_library(path, spec, vocabulary_size)
    special = len(library.encode("").ids)
    if special >= folder.max_tokens:
        raise ModelError(
            f"{folder.path} limits inputs to {folder.max_tokens} tokens, but its tokenizer adds {special} to each "
            "text; correct max_position_embeddings of config.json, max_seq_length of sentence_bert_config.json or "
            "model_max_length of tokenizer_config.json"
        )
    if is_bert(spec):
        import openvino as ov

        written = into / "tokenizer.xml"
        ov.save_model(convert_bert(path, spec), written, compress_to_fp16=False)
    else:
        written = into / "tokenizer.json"
        library.save(str(written), pretty=False)
    return written


def _write_ir(path: Path, into: Path) -> Path:
    """Write a tokenizer that is in OpenVINO IR already."""
    import openvino as ov

    from workers.models.tokenizer_ir import read_tokenizer_ir

    ov.save_model(read_tokenizer_ir(path), into / "tokenizer.xml", compress_to_fp16=False)
    return into / "tokenizer.xml"


def _load_library(path: Path, spec: dict[str, Any], vocabulary_size: int) -> Any:
    """Return Hugging Face's tokenizer of a tokenizer.json, without truncation and padding.

    Raise `ModelError` if the library rejects the file, or if its vocabulary is larger than the model's.
    """
    import tokenizers

    try:
        library = tokenizers.Tokenizer.from_str(json.dumps(spec))
        library.no_truncation()
        library.no_padding()
        # Fails if the unknown token is not in the vocabulary. An added token may be beyond the model's vocabulary, as
        # in Gemma: only a text with this token is rejected.
        vocabulary = library.get_vocab(with_added_tokens=False)
        highest = max(*vocabulary.values(), *library.encode(_UNKNOWN).ids)
    except Exception as error:  # the library raises many kinds, all because of this file
        raise ModelError(f"could not convert {path}: {summarize_error(error)}; {REMEDY}") from error
    if highest >= vocabulary_size:
        raise ModelError(
            f"{path} has the token id {highest}, but vocab_size of config.json is {vocabulary_size}; {REMEDY}"
        )
    return library
