"""Tokenizer of a model folder, written as a file that the engine loads: IR for BERT's rules, or else tokenizer.json.

openvino-tokenizers gives other ids than Hugging Face's tokenizers for some texts of every kind but BERT's.
"""

from pathlib import Path

from workers.models.folder import ModelFolder
from workers.models.json_files import read_object
from workers.models.library import Job, convert_tokenizer
from workers.models.tokenizer_settings import TOKENIZER


def write_tokenizer(folder: ModelFolder, vocabulary_size: int, into: Path) -> Path:
    """Write the tokenizer of a folder into another folder, and return the file.

    Raise `ModelError` if the tokenizer is damaged or does not fit the model.
    """
    import openvino as ov

    from workers.models.tokenizer_ir import read_tokenizer_ir

    source, written = folder.tokenizer_path, into / "tokenizer.json"
    if source.suffix != ".xml":
        special_tokens = folder.has_special_tokens
        return write_from(Job(str(source.parent), str(written), vocabulary_size, folder.max_tokens, special_tokens))
    written = written.with_suffix(".xml")
    ov.save_model(read_tokenizer_ir(source), written, compress_to_fp16=False)
    return written


def write_from(job: Job) -> Path:
    """Do a job and return the written file, which is an IR if the tokenizer has BERT's rules.

    Raise `ModelError` if the tokenizer is damaged or does not fit the model.
    """
    import openvino as ov

    from workers.models.tokenizers import convert_bert, is_bert

    convert_tokenizer(job)
    written = Path(job.output)
    spec = read_object(written)
    if not is_bert(spec):
        return written
    written.unlink()
    written = written.with_suffix(".xml")
    ov.save_model(convert_bert(Path(job.folder) / TOKENIZER, spec), written, compress_to_fp16=False)
    return written
