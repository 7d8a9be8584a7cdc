"""The tokenizer IR against Hugging Face's tokenizer, id by id."""

# ruff: noqa: RUF001  letters that look alike and are not are what this is about

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino as ov
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.workers.test_model_folder import tokenizer, write_folder, write_json
from workers.engine.batch_inputs import truncate_ids
from workers.engine.tokenizer import GROUP_CHARACTERS, Tokenizer, group_texts
from workers.models.folder import ModelError, read_folder
from workers.models.tokenizers import compile_charsmap, convert_tokenizer

#: Letters that a vocabulary must have for a difference between two of them to be seen.
LETTERS = "abcdefghijxzABJXZéßſςσΣµμϕφϵεкиіІщЩאבגعغกขคあいアイㅏ中国々〇가각각µ²½ªºﬁ①Ωωå€“—…¿!#,.'"
VOCABULARY = [*dict.fromkeys(LETTERS), *(f"##{one}" for one in dict.fromkeys(LETTERS)), "hello", "world"]


def convert(folder: Path, spec: dict[str, Any]) -> tuple[Tokenizer, Any]:
    """Ours and Hugging Face's, which neither truncates nor pads."""
    write_json(folder / "tokenizer.json", spec)
    ov.save_model(convert_tokenizer(read_folder(folder)), folder / "tokenizer.xml", compress_to_fp16=False)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(spec))
    theirs.no_truncation()
    return Tokenizer(folder / "tokenizer.xml"), theirs


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    return convert(write_folder(tmp_path_factory.mktemp("models") / "tiny"), tokenizer(VOCABULARY))


def different(ours: Tokenizer, theirs: Any, texts: list[str]) -> list[str]:
    """The texts whose ids are not the same."""
    expected = [one.ids for one in theirs.encode_batch(texts)]
    got = [one.tolist() for one in ours.encode_texts(texts)]
    return [text for text, ids, others in zip(texts, got, expected, strict=True) if ids != others]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\0",
        "a\0b\0",
        "\0[SEP]\0",
        "hello, world!",
        "Hello\r\n\tWORLD\x0b\x1f\x85\xa0\u2028\u3000x",
        "👩\u200d👩\u200d👧 🇩🇪 ☕\ufe0f",
        "a\u200bb\ufeffc\u00ad\u202ed",
        "[CLS] a [SEP][MASK]b[PAD] [UNK] [cls] [ MASK ]",
        "ς Σ ΟΔΟΣ µ μ ϕ ϵ ſ ﬁ ½ ① İ ı ß ẞ",
        "中国語の々と〇 가각 ｱ",
        "e\u0301 é a\u0308\u0323 \u0301",
        "\ue000a \U000f0000 \ufffd \uffff",
    ],
)
def test_ids_are_hugging_faces(both: tuple[Tokenizer, Any], text: str) -> None:
    assert different(*both, [text, f"a {text} b", text * 7]) == []


def test_a_word_is_unknown_by_its_characters_not_its_bytes(both: tuple[Tokenizer, Any]) -> None:
    lengths = (1, 11, 12, 33, 34, 50, 51, 99, 100, 101, 102, 400)
    words = [letter * length for letter in "aкก가中." for length in lengths]
    assert different(*both, [*words, *(f"b {word}. b" for word in words)]) == []


@pytest.mark.parametrize(
    ("lowercase", "accents", "chinese"), [(True, None, True), (False, None, True), (True, False, False)]
)
def test_every_character_of_unicode(tmp_path: Path, chinese: bool, lowercase: bool, accents: bool | None) -> None:
    rules = {"lowercase": lowercase, "strip_accents": accents, "handle_chinese_chars": chinese}
    ours, theirs = convert(write_folder(tmp_path / "tiny"), tokenizer(VOCABULARY, **rules))
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    chunks = [points[start : start + 64] for start in range(0, len(points), 64)]
    assert different(ours, theirs, [" ".join(f"a{chr(point)}b" for point in chunk) for chunk in chunks]) == []


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_is_the_tokenizers_own(tmp_path: Path, side: str) -> None:
    folder = write_folder(tmp_path / "tiny")
    text = "abcdefghij hello. a"
    for max_tokens in (3, 4, 9, 14, 15, 16):
        ours, theirs = convert(folder, tokenizer())
        whole = ours.encode_texts([text])[0]
        theirs.enable_truncation(max_tokens, direction=side)
        assert (
            truncate_ids(whole, max_tokens, ours.before, ours.after, at_start=side == "left").tolist()
            == theirs.encode(text).ids
        )
        assert len(whole) == 15


@pytest.mark.parametrize("side", ["right", "left"])
def test_special_tokens_on_one_side_only_survive_truncation(tmp_path: Path, side: str) -> None:
    end_token = {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}
    template = {"type": "TemplateProcessing", "special_tokens": {"[SEP]": end_token}}
    text, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    folder = write_folder(tmp_path / "tiny")
    for order, before, after in (([text, end, end], 0, 2), ([end, text], 1, 0), ([text], 0, 0)):
        pair = [*order, {"Sequence": {"id": "B", "type_id": 1}}]
        ours, theirs = convert(folder, tokenizer() | {"post_processor": template | {"single": order, "pair": pair}})
        assert (ours.before.tolist(), ours.after.tolist()) == ([3] * before, [3] * after)
        theirs.enable_truncation(6, direction=side)
        whole = ours.encode_texts(["abcdefghij"])[0]
        assert (
            truncate_ids(whole, 6, ours.before, ours.after, at_start=side == "left").tolist()
            == theirs.encode("abcdefghij").ids
        )


def test_a_very_long_text_does_not_pad_its_neighbours(both: tuple[Tokenizer, Any]) -> None:
    ids = both[0].encode_texts(["a", "hello " * 100_000, *["b"] * 62])
    assert [len(one) for one in ids] == [3, 100_002, *[3] * 62]
    assert all(one.base is None for one in ids)  # none of them keeps the whole batch alive


@pytest.mark.parametrize("blank", ["", " ", "\0", "\n\t"])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_texts_that_are_all_blank_have_a_row_each(both: tuple[Tokenizer, Any], blank: str, number: int) -> None:
    alone = both[0].encode_texts([blank, "a"])[0].tolist()
    assert [ids.tolist() for ids in both[0].encode_texts([blank] * number)] == [alone] * number


@given(st.lists(st.integers(0, 3 * GROUP_CHARACTERS // 2), max_size=30) | st.lists(st.integers(0, 9), max_size=300))
def test_groups_are_the_texts_in_their_order_and_not_too_large(lengths: list[int]) -> None:
    texts = [Long(length) for length in lengths]
    made = list(group_texts(texts)) if texts else []
    assert [text for group in made for text in group] == texts
    for group in made:
        assert len(group) == 1 or max(map(len, group)) * len(group) <= GROUP_CHARACTERS


class Long(str):
    """A text that says it is so long."""

    length: int

    def __new__(cls, length: int) -> "Long":
        text = super().__new__(cls, length)
        text.length = length
        return text

    def __len__(self) -> int:
        return self.length


def test_the_interpreter_is_free_while_a_text_is_encoded(both: tuple[Tokenizer, Any]) -> None:
    running, gaps = threading.Event(), [0.0]
    done = threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not done.is_set():
            now = time.perf_counter()
            gaps[0], last = max(gaps[0], now - last), now
            running.set()

    ticker = threading.Thread(target=tick)
    ticker.start()
    running.wait()
    started = time.perf_counter()
    both[0].encode_texts(["hello, " * 1_000_000])
    seconds = time.perf_counter() - started
    done.set()
    ticker.join()
    assert gaps[0] < seconds / 2


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    for break_it in _breakages():
        spec = tokenizer()
        break_it(spec)
        write_json(folder / "tokenizer.json", spec)
        with pytest.raises(ModelError, match=r"tokenizer\.json"):
            convert_tokenizer(read_folder(folder))


def _breakages() -> list[Callable[[dict[str, Any]], object]]:
    return [
        lambda spec: spec.pop("model"),
        lambda spec: spec["model"].update(type="Magic"),
        lambda spec: spec["model"].pop("vocab"),
        lambda spec: spec["model"].update(vocab={"a": 0}),
    ]


def test_a_compiled_table_finds_what_it_was_made_of() -> None:
    points = [*range(1, 900, 7), *range(0x4E00, 0x9000, 3), 0x10FFFF]
    table = {chr(point): f"<{point}>" for point in points}
    blob = compile_charsmap(table)
    size = int.from_bytes(blob[:4], "little")
    units = memoryview(blob[4 : 4 + size]).cast("I")
    values = blob[4 + size :]

    def find(key: bytes) -> str | None:
        at = units[0] >> 10
        for number, byte in enumerate(key):
            unit = units[at ^ byte]
            if unit & (1 << 31 | 255) != byte:
                return None
            at = at ^ byte ^ unit >> 10
            if number == len(key) - 1 and unit >> 8 & 1:
                start = units[at] & (1 << 31) - 1
                return values[start : values.index(b"\0", start)].decode()
        return None

    every = map(chr, [*range(1, 0x9100), 0x10FFFF])
    assert {key: value for key in every if (value := find(key.encode()))} == table


@pytest.mark.parametrize(
    "piece",
    ["a", "!", " ", "a ", "\n", "[CLS]", "[", "\1", "中", "각", "\ufdfa", "\u0301", "\u0301\u0316", "hello"],
    ids=ascii,
)
def test_text_is_read_in_a_time_that_grows_with_its_length(both: tuple[Tokenizer, Any], piece: str) -> None:
    ours, _ = both
    # From short to long: what grows faster fails soon. The slowest of 8 MB takes a tenth of this.
    for doubled in range(16, 24):
        text = piece * (2**doubled // len(piece.encode()))
        started = time.process_time()
        ours.encode_texts([text])
        assert time.process_time() - started < 10
