"""Settings that replace those of tokenizer.json, compared with transformers, and tokenizers that are refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.unit.workers.test_model_folder import make_tokenizer, write_folder, write_json
from workers.engine.tokenizer import Tokenizer
from workers.models.folder import read_folder
from workers.models.json_files import ModelError
from workers.models.tokenizer_files import write_tokenizer

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "Größe über alles",
    "日本語の文章",
    "hello hello world 123",
] * 9
TEXTS = [
    "",
    " ",
    "\n\t",
    "\0a\0",
    "Hello  World",
    "the fox <s>dog</s> <mask> x<mask>",
    "e\u0301 \u0301a\u0323\u0308",
    "\u0639\u064e\u0651 \u05d0",
    "🙂\u200d🙂",
    "[CLS] x [SEP][MASK]",
    "Größe ÜBER 日本語",
]


def train(kind: str) -> Any:
    """Return a small tokenizer of one kind, as models are published with it."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made: Any
    trainer: Any
    if kind == "unigram":
        made = tokenizers.Tokenizer(models.Unigram())
        made.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
        )
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    elif kind == "gemma":
        made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        made.normalizer = normalizers.Replace(" ", "▁")
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    else:
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    made.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    return made


def write_tokenizer_folder(path: Path, spec: dict[str, Any], settings: dict[str, Any] | None = None) -> Path:
    write_folder(path)
    write_json(path / "tokenizer.json", spec)
    if settings is not None:
        write_json(path / "tokenizer_config.json", settings)
    return path


def convert(folder: Path) -> Tokenizer:
    return Tokenizer(write_tokenizer(read_folder(folder), 1000, folder.parent))


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in tokenizer.encode_texts(texts)]


def encode_with_transformers(folder: Path, texts: list[str]) -> list[list[int]]:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    return [theirs(text)["input_ids"] for text in texts]


@pytest.mark.parametrize("kind", ["unigram", "bytes", "gemma"])
def test_ids_equal_those_of_the_library(tmp_path: Path, kind: str) -> None:
    theirs = train(kind)
    folder = write_tokenizer_folder(tmp_path / "tiny", json.loads(theirs.to_str()))
    texts = [*TEXTS, *CORPUS, *(f"{text} a {text}" for text in TEXTS)]
    assert encode(convert(folder), texts) == [encoding.ids for encoding in theirs.encode_batch(texts)]


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": True, "tokenize_chinese_chars": False},
        {"do_lower_case": True, "strip_accents": None, "mask_token": "hello"},
        {"do_lower_case": True, "additional_special_tokens": ["lo w", "[NEW]"]},
        {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False},
    ],
)
def test_settings_of_bert_apply_as_in_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    letters = "abcdefghijklorwxABHWÄäöüÜé日本語"
    spec = make_tokenizer([*letters, *(f"##{letter}" for letter in letters)])
    settings = {"tokenizer_class": "BertTokenizer"} | settings
    folder = write_tokenizer_folder(tmp_path / "tiny", spec | {"truncation": None}, settings)
    texts = [*TEXTS, "Hello World", "hello Wörld [NEW]", "Ähé äh", "a日本b", "x hello x"]
    assert encode(convert(folder), texts) == encode_with_transformers(folder, texts)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ([0], [2])),
        ({"add_eos_token": True}, ([0], [4])),
        ({"add_bos_token": True, "add_eos_token": True}, ([3], [4])),
        ({"add_bos_token": False}, ([0], [2])),  # as Qwen's folders have it
        ({"add_bos_token": False, "add_eos_token": False, "tokenizer_class": "LlamaTokenizer"}, ([], [])),
        ({"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "GemmaTokenizerFast"}, ([3], [])),
        ({"add_eos_token": True, "eos_token": None}, ([0], [2])),
    ],
)
def test_settings_choose_the_end_tokens(
    tmp_path: Path, settings: dict[str, Any], expected: tuple[list[int], list[int]]
) -> None:
    names = {"bos_token": {"content": "<unk>", "__type": "AddedToken"}, "eos_token": "<mask>"}
    folder = write_tokenizer_folder(tmp_path / "tiny", json.loads(train("bytes").to_str()), names | settings)
    ours = convert(folder)
    assert (ours.before.tolist(), ours.after.tolist()) == expected
    inner = encode(ours, ["fox"])[0]
    assert inner == [*expected[0], *inner[len(expected[0]) : len(inner) - len(expected[1])], *expected[1]]


def test_end_token_without_prefix_is_found(tmp_path: Path) -> None:
    spec = json.loads(train("bytes").to_str())
    end = {"SpecialToken": {"id": "<pad>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [text, end],
        "pair": [text, end],
        "special_tokens": {"<pad>": {"id": "<pad>", "ids": [1], "tokens": ["<pad>"]}},
    }
    ours = convert(write_tokenizer_folder(tmp_path / "tiny", spec, {"pad_token": "<pad>", "eos_token": "<mask>"}))
    assert (ours.before.tolist(), ours.after.tolist()) == ([], [1])


def test_prefix_space_of_the_settings_is_used(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True}
    folder = write_tokenizer_folder(tmp_path / "tiny", json.loads(train("bytes").to_str()), settings)
    assert encode(convert(folder), ["fox"]) == encode(convert(folder), [" fox"])


def test_special_tokens_can_be_plain_text(tmp_path: Path) -> None:
    folder = write_tokenizer_folder(tmp_path / "tiny", json.loads(train("bytes").to_str()))
    whole = encode(convert(folder), ["<mask>"])
    write_json(folder / "tokenizer_config.json", {"split_special_tokens": True})
    split = encode(convert(folder), ["<mask>"])
    assert (len(whole[0]), len(split[0])) == (3, 8)
    assert (split[0][0], split[0][-1]) == (0, 2)


def test_texts_are_lower_cased_before_the_tokenizer(tmp_path: Path) -> None:
    folder = write_tokenizer_folder(tmp_path / "tiny", json.loads(train("bytes").to_str()))
    path = write_tokenizer(read_folder(folder), 1000, tmp_path)
    texts = ["Größe", "ΟΔΟΣ", "İ"]
    assert encode(Tokenizer(path, lower_case=True), texts) == encode(Tokenizer(path), [text.lower() for text in texts])


def test_token_beyond_the_vocabulary_rejects_only_its_text(tmp_path: Path) -> None:
    theirs = train("bytes")
    theirs.add_special_tokens(["<image>"])
    folder = write_tokenizer_folder(tmp_path / "tiny", json.loads(theirs.to_str()))
    image = theirs.token_to_id("<image>")
    ours = Tokenizer(write_tokenizer(read_folder(folder), image, tmp_path))
    assert encode(ours, ["<image>"]) == [[0, image, 2]]
    with pytest.raises(ModelError, match=f"has the token id {image - 1}, but vocab_size of config.json is {image - 1}"):
        write_tokenizer(read_folder(folder), image - 1, tmp_path)


def list_vocabularies() -> list[tuple[dict[str, str], dict[str, Any]]]:
    words = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "W"])
    model = json.loads(train("bytes").to_str())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    byte_pairs = {"vocab.json": json.dumps(model["vocab"]), "merges.txt": merges}
    return [
        ({"vocab.txt": words}, {"tokenizer_class": "BertTokenizer"}),
        ({"vocab.txt": words}, {"do_lower_case": False}),
        (byte_pairs, {"tokenizer_class": "RobertaTokenizer"}),
        (byte_pairs, {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>", "pad_token": "</s>"}),
    ]


@pytest.mark.parametrize("number", range(4))
def test_older_vocabulary_files_are_converted(tmp_path: Path, number: int) -> None:
    files, settings = list_vocabularies()[number]
    folder = write_folder(tmp_path / "tiny")
    (folder / "tokenizer.json").unlink()
    for name, content in files.items():
        (folder / name).write_text(content)
    write_json(folder / "tokenizer_config.json", settings)
    texts = [text for text in TEXTS if "<" not in text] + CORPUS
    assert encode(convert(folder), texts) == encode_with_transformers(folder, texts)


def test_sentencepiece_model_alone_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    (folder / "tokenizer.json").rename(folder / "sentencepiece.bpe.model")
    with pytest.raises(ModelError, match=r"only as sentencepiece\.bpe\.model.*run: python -c .*save_pretrained"):
        read_folder(folder)


def test_exact_vocabulary_precedes_the_exported_tokenizer(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    (folder / "tokenizer.json").rename(folder / "sentencepiece.bpe.model")
    (folder / "openvino_tokenizer.xml").write_text("<net/>")
    assert read_folder(folder).tokenizer_path == folder / "openvino_tokenizer.xml"
    (folder / "vocab.txt").write_text("a")
    assert read_folder(folder).tokenizer_path == folder / "vocab.txt"


def test_vocabulary_of_an_unknown_class_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("a\n")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "EsmTokenizer"})
    with pytest.raises(ModelError, match=r"could not convert .*vocab\.txt to tokenizer\.json: .*save_pretrained"):
        convert(folder)


def test_settings_cannot_name_other_files(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "secret"]))
    folder = write_folder(tmp_path / "tiny")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"]))
    names = dict.fromkeys(("vocab_file", "vocab", "tokenizer_file", "name_or_path"), str(outside))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"} | names)
    assert encode(convert(folder), ["secret", "hello"]) == [[2, 1, 3], [2, 5, 3]]


def change_bytes(**parts: Any) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(train("bytes").to_str())
    return spec | parts


def list_explosions() -> list[dict[str, Any]]:
    def replace(text: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": {"String": "a"}, "content": text}

    def split(pattern: str) -> dict[str, Any]:
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}

    model = change_bytes()["model"]
    return [
        change_bytes(pre_tokenizer=split("(a+)+$")),
        change_bytes(pre_tokenizer=split("(")),
        change_bytes(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        change_bytes(normalizer={"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8AAAA="}),
        change_bytes(normalizer={"type": "Sequence", "normalizers": [replace("a" * 1000)] * 3}),
        change_bytes(model=model | {"merges": [["a", "b"], ["ab", "a"]]}),
        change_bytes(model=model | {"vocab": {"a": 2**40}}),
        change_bytes(model={"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]}),
        change_bytes(model={"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}),
        change_bytes(model={"type": "Unigram", "unk_id": 0, "vocab": []}),
        change_bytes(post_processor={"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": 3}),
        change_bytes(added_tokens=[{"id": -1, "content": "x"}]),
    ]


@pytest.mark.parametrize("number", range(12))
def test_tokenizer_that_fails_is_refused(tmp_path: Path, number: int, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_tokenizer_folder(tmp_path / "tiny", list_explosions()[number])
    with pytest.raises(ModelError, match=r"could not convert .*tiny") as caught:
        convert(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "settings",
    [
        {"added_tokens_decoder": {"x": {"content": "y"}}},
        {"added_tokens_decoder": [3]},
        {"added_tokens_decoder": {"3": {}}},
        {"added_tokens_decoder": {"3": {"content": 3}}},
        {"add_eos_token": True, "eos_token": "\0$A:x"},
        {"do_lower_case": "yes"},
        {"add_prefix_space": 3},
    ],
)
def test_wrong_setting_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    spec = change_bytes(normalizer={"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True})
    spec["normalizer"] |= {"strip_accents": None, "lowercase": True}
    with pytest.raises(ModelError, match=r"could not convert .*tokenizer.*\.json"):
        convert(write_tokenizer_folder(tmp_path / "tiny", spec, settings))


def test_tokenizer_of_200_mb_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    with (folder / "tokenizer.json").open("w") as file:
        file.truncate(200_000_000)
    with pytest.raises(ModelError, match=r"tokenizer\.json: it is larger than"):
        convert(folder)
