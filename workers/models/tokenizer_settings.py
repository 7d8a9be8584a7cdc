"""Tokenizer files of a model folder, and the settings that replace fields of tokenizer.json. Imports no library.

The settings are applied as transformers does. Where its versions 4 and 5 differ, this module follows version 4, with
which most models were trained: version 5 ignores `add_eos_token` if there is a tokenizer.json, and pools the last word
of e5-mistral instead of its end token.
"""

from pathlib import Path
from typing import Any

from workers.models.json_files import ModelError, is_present, read_object

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
#: Files that transformers converts to tokenizer.json, without torch and sentencepiece.
_VOCABULARIES = (("vocab.txt",), ("vocab.json", "merges.txt"))
#: Files that transformers converts with sentencepiece.
_MODELS = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "spm.model")
#: Settings; those of a later file take precedence.
SETTINGS_FILES = ("special_tokens_map.json", CONFIG)

#: Settings that replace fields of BERT's normalizer.
_NORMALIZER_FIELDS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
#: Names of special tokens, which are added to the vocabulary.
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: Lists of special tokens without names.
LISTS = ("additional_special_tokens", "extra_special_tokens")
#: Classes for which transformers does not change the normalizer.
_GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")
#: Beginnings of the names of classes whose flags also remove tokens.
_REMOVING = ("Llama", "CodeLlama", "Gemma", "Cohere")


def find_vocabulary(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that hold a folder's vocabulary, empty if Vecmill reads none of them."""
    choices = ((TOKENIZER,), *_VOCABULARIES)
    return next((names for names in choices if all(is_present(folder / name) for name in names)), ())


def refuse_sentencepiece(folder: Path) -> None:
    """Raise `ModelError` if a folder without other tokenizers has one that only sentencepiece reads."""
    if found := [name for name in _MODELS if is_present(folder / name)]:
        raise ModelError(
            f"{folder} has its tokenizer only as {found[0]}, which Vecmill does not read; {advise(folder)}"
        )


def advise(folder: Path) -> str:
    """Return the command that writes tokenizer.json."""
    return (
        'where transformers, sentencepiece and protobuf are installed, run: python -c "from transformers import '
        f"AutoTokenizer as T; T.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def list_tokenizer_files(path: Path) -> list[Path]:
    """Return the files on which the ids of a tokenizer depend. `path` is the tokenizer IR, or a vocabulary file."""
    if path.suffix == ".xml":
        optional = [path.with_suffix(".bin")]
    else:
        optional = [path.parent / name for name in (*find_vocabulary(path.parent)[1:], *SETTINGS_FILES)]
    return [path, *(file for file in optional if is_present(file))]


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a folder. Raise `ModelError` if a file cannot be read."""
    settings: dict[str, Any] = {}
    for name in SETTINGS_FILES:
        if is_present(folder / name):
            settings |= {key: value for key, value in read_object(folder / name).items() if value is not None}
    return settings


def change_spec(spec: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the content of tokenizer.json with the fields that settings replace."""
    spec = dict(spec)
    normalizer, splitter, tokens = spec.get("normalizer"), spec.get("pre_tokenizer"), spec.get("added_tokens")
    is_generic = str(settings.get("tokenizer_class")).startswith(_GENERIC)
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer" and not is_generic:
        fields = {field: settings[key] for key, field in _NORMALIZER_FIELDS.items() if key in settings}
        spec["normalizer"] = normalizer | fields
    if isinstance(splitter, dict) and "add_prefix_space" in splitter and "add_prefix_space" in settings:
        spec["pre_tokenizer"] = splitter | {"add_prefix_space": settings["add_prefix_space"]}
    if settings.get("split_special_tokens") is True and isinstance(tokens, list):
        # Special tokens in a text are words like all others.
        spec["added_tokens"] = [token for token in tokens if not (isinstance(token, dict) and token.get("special"))]
    return spec


def get_content(token: Any) -> str | None:
    """Return the text of a token, which is written as text or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def list_special_tokens(settings: dict[str, Any]) -> list[str]:
    """Return the special tokens that settings name."""
    tokens = [settings.get(name) for name in NAMES]
    for name in LISTS:
        listed = settings.get(name)
        tokens += listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else []
    return [content for token in tokens if (content := get_content(token)) is not None]


def choose_end(settings: dict[str, Any], side: str) -> str | None:
    """Return the token to put at an end of each text, "" for none, or None for that of tokenizer.json.

    `side` is "bos" or "eos".
    """
    flag = settings.get(f"add_{side}_token")
    if flag is True:
        return get_content(settings.get(f"{side}_token"))
    is_removing = str(settings.get("tokenizer_class")).startswith(_REMOVING)
    return "" if flag is False and is_removing else None
