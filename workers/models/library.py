"""Tokenizer of a model folder as Hugging Face's `tokenizers` library loads it.

A damaged file can make the library panic, allocate or search without end. Therefore `convert_tokenizer` runs this
module as a process of its own, with limits. The process writes the tokenizer as tokenizer.json and exits with status 0,
or prints a sentence and exits with status 2.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from workers.models.json_files import REMEDY, ModelError, read_count, read_object, summarize_error
from workers.models.tokenizer_settings import (
    CONFIG,
    LISTS,
    NAMES,
    TOKENIZER,
    advise,
    change_spec,
    choose_end,
    find_vocabulary,
    list_special_tokens,
    read_settings,
)

#: Longest word in characters: one less than the largest number in a regular expression of Oniguruma.
MAX_WORD_CHARACTERS = 99_999
#: Limits of the process: address space in bytes, and CPU time in seconds.
_MAX_MEMORY_BYTES, _MAX_CPU_S = 4 << 30, 60
#: Longest conversion in seconds, also of a process that sleeps, or that waits for a CPU that others use.
_MAX_S = 600
#: Texts that the process encodes, because a bad regular expression takes time that grows with the length.
_PROBES = [piece * 4096 + end for piece in ("a", " ", "\n", "!", "1", "中", "\u0301", "a ", "a1") for end in ("", "-")]
#: Character that is in no vocabulary.
_UNKNOWN = "\ue000"
#: Status of the process after it has printed a sentence.
_REFUSED = 2


class Job(msgspec.Struct, frozen=True):
    """What the process converts."""

    #: Folder of the tokenizer's files.
    folder: str
    #: File to write.
    output: str
    #: Token ids are below this number.
    vocabulary_size: int
    #: Longest input, special tokens included.
    max_tokens: int
    #: Whether texts get special tokens.
    special_tokens: bool


def convert_tokenizer(job: Job) -> None:
    """Write the tokenizer of a folder to a file, in a process of its own.

    Raise `ModelError` if the files are damaged or do not fit the model, or if the process exceeds its limits.
    """
    # The process runs in another folder.
    job = msgspec.structs.replace(job, folder=os.path.abspath(job.folder), output=os.path.abspath(job.output))
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, msgspec.json.encode(job).decode()],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_MAX_S,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"could not convert the tokenizer of {job.folder} within {_MAX_S} s; {REMEDY}") from None
    if done.returncode == _REFUSED:
        raise ModelError(done.stdout.decode())
    if done.returncode:
        raise ModelError(
            f"could not convert the tokenizer of {job.folder}: the tokenizers library needs more than "
            f"{_MAX_MEMORY_BYTES >> 30} GiB or {_MAX_CPU_S} s for it, or crashes; {REMEDY}"
        )


def load_tokenizer(job: Job) -> Any:
    """Return the tokenizer of a folder, a `tokenizers.Tokenizer` without truncation and padding.

    Raise `ModelError` if the files are damaged or do not fit the model.
    """
    import tokenizers

    folder = Path(job.folder)
    path = folder / TOKENIZER
    # The libraries of static models read only tokenizer.json.
    settings = read_settings(folder) if job.special_tokens else {}
    spec = change_spec(read_spec(folder), settings)
    model = spec.get("model")
    if isinstance(model, dict) and model.get("type") == "WordPiece":
        read_count(path, model, "max_input_chars_per_word", highest=MAX_WORD_CHARACTERS, default=100)
    if not job.special_tokens:
        spec["post_processor"] = None
    with naming(path):
        library = tokenizers.Tokenizer.from_str(json.dumps(spec))
        library.no_truncation()
        library.no_padding()
        # Fails if the unknown token is not in the vocabulary. An added token may be beyond the model's vocabulary, as
        # one of Gemma's is: the worker rejects only a text that has this token.
        highest = max(*library.get_vocab(with_added_tokens=False).values(), *library.encode(_UNKNOWN).ids)
        library.encode_batch_fast(_PROBES)
    with naming(folder / CONFIG):
        add_tokens(library, settings)
        if job.special_tokens:
            change_ends(library, settings)
    if highest >= job.vocabulary_size:
        raise ModelError(
            f"{path} has the token id {highest}, but vocab_size of config.json is {job.vocabulary_size}; {REMEDY}"
        )
    special = sum(map(len, find_ends(library)))
    if special >= job.max_tokens:
        raise ModelError(
            f"{folder} limits inputs to {job.max_tokens} tokens, but its tokenizer adds {special} to each text; "
            "correct max_position_embeddings of config.json, max_seq_length of sentence_bert_config.json or "
            "model_max_length of tokenizer_config.json"
        )
    return library


def read_spec(folder: Path) -> dict[str, Any]:
    """Return the content of tokenizer.json, or what transformers makes of older files.

    Raise `ModelError` if the files cannot be read.
    """
    names = find_vocabulary(folder)
    if names and TOKENIZER not in names:
        return _convert_vocabulary(folder, names)
    return read_object(folder / TOKENIZER)


def _convert_vocabulary(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the content of the tokenizer.json that transformers makes of other files.

    transformers gets copies, because a setting can name a file outside the folder.
    """
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # it warns about the missing PyTorch
    from transformers import AutoTokenizer

    kept = {"tokenizer_class", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"}
    settings = {key: value for key, value in read_settings(folder).items() if key in kept.union(NAMES, LISTS)}
    config = {"model_type": read_object(folder / "config.json").get("model_type")}
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        for name in names:
            (copy / name).write_bytes((folder / name).read_bytes())
        (copy / "tokenizer_config.json").write_text(json.dumps(settings))
        (copy / "config.json").write_text(json.dumps(config))
        try:
            made = AutoTokenizer.from_pretrained(copy, local_files_only=True, trust_remote_code=False)
            spec: dict[str, Any] = json.loads(made.backend_tokenizer.to_str())
        except Exception as error:  # transformers raises many kinds, all because of these files
            reason = summarize_error(error)
            raise ModelError(
                f"could not convert {folder / names[0]} to tokenizer.json: {reason}; {advise(folder)}"
            ) from None
    return spec


def add_tokens(library: Any, settings: dict[str, Any]) -> None:
    """Add the tokens of settings to the vocabulary, unless they are in it."""
    from tokenizers import AddedToken

    listed = settings.get("added_tokens_decoder", {})
    tokens = [listed[key] for key in sorted(listed, key=int)]
    flags = [{name: value for name, value in token.items() if isinstance(value, bool)} for token in tokens]
    # In one call, because each call builds the search tree of all added tokens, and Gemma has 6,400.
    library.add_tokens([AddedToken(token["content"], **flag) for token, flag in zip(tokens, flags, strict=True)])
    known = {token.content for token in library.get_added_tokens_decoder().values()}
    missing = [content for content in list_special_tokens(settings) if content not in known]
    library.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in missing])


def change_ends(library: Any, settings: dict[str, Any]) -> None:
    """Put the tokens before and after each text that settings require.

    Raise `ModelError` if the vocabulary lacks one.
    """
    from tokenizers.processors import TemplateProcessing

    chosen = [choose_end(settings, side) for side in ("bos", "eos")]
    if chosen == [None, None]:
        return
    ends = []
    for content, ids in zip(chosen, find_ends(library), strict=True):
        ends.append(
            [library.id_to_token(number) for number in ids] if content is None else [content] if content else []
        )
    names = {name: library.token_to_id(name) for name in ends[0] + ends[1]}
    library.post_processor = TemplateProcessing(single=[*ends[0], "$A", *ends[1]], special_tokens=list(names.items()))


def find_ends(library: Any) -> tuple[list[int], list[int]]:
    """Return the ids that the library puts before and after each text."""
    encoding = library.encode("a")
    ids, flags = encoding.ids, encoding.special_tokens_mask
    start = next((at for at, flag in enumerate(flags) if not flag), len(ids))
    end = len(ids) - next((at for at, flag in enumerate(reversed(flags)) if not flag), 0)
    return ids[:start], ids[end:]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise a `ModelError` that names the file for whatever the library raises. A panic is no `Exception`."""
    try:
        yield
    except (ModelError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ModelError(f"could not convert {path}: {summarize_error(error)}; {REMEDY}") from None


def main() -> None:
    """Run the process."""
    for kind, limit in ((resource.RLIMIT_AS, _MAX_MEMORY_BYTES), (resource.RLIMIT_CPU, _MAX_CPU_S)):
        allowed = resource.getrlimit(kind)[1]
        limit = limit if allowed == resource.RLIM_INFINITY else min(limit, allowed)
        resource.setrlimit(kind, (limit, limit))
    job = msgspec.json.decode(sys.argv[1], type=Job)
    try:
        load_tokenizer(job).save(job.output, pretty=False)
    except ModelError as error:
        print(error, end="")
        sys.exit(_REFUSED)


if __name__ == "__main__":
    main()
