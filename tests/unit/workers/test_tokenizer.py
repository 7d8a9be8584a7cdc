"""The tokenizer IR, compared with Hugging Face's tokenizer id by id."""

# ruff: noqa: RUF001  these tests are about letters that look alike

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.workers.test_model_folder import make_tokenizer, write_folder, write_json
from workers.engine.batch_inputs import truncate_ids
from workers.engine.tokenizer import GROUP_CHARACTERS, Tokenizer, group_texts
from workers.models.folder import read_folder
from workers.models.json_files import ModelError
from workers.models.tokenizer_files import write_tokenizer
from workers.models.tokenizers import compile_charsmap

#: Letters of the vocabulary. Two letters that are not in it would have the same id.
LETTERS = "abcdefghijxzABJXZéßſςσΣµμϕφϵεкиіІщЩאבגعغกขคあいアイㅏ中国々〇가각각µ²½ªºﬁ①Ωωå€“—…¿!#,.'"
VOCABULARY = [*dict.fromkeys(LETTERS), *(f"##{letter}" for letter in dict.fromkeys(LETTERS)), "hello", "world"]


def convert_both(folder: Path, spec: dict[str, Any]) -> tuple[Tokenizer, Any]:
    """Return our tokenizer and Hugging Face's, without truncation and padding."""
    write_json(folder / "tokenizer.json", spec)
    written = write_tokenizer(read_folder(folder), 300, folder.parent)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(spec))
    theirs.no_truncation()
    return Tokenizer(written), theirs


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    return convert_both(write_folder(tmp_path_factory.mktemp("models") / "tiny"), make_tokenizer(VOCABULARY))


def find_differences(ours: Tokenizer, theirs: Any, texts: list[str]) -> list[str]:
    """Return the texts that have different ids."""
    expected = [encoding.ids for encoding in theirs.encode_batch(texts)]
    found = [ids.tolist() for ids in ours.encode_texts(texts)]
    return [text for text, ids, others in zip(texts, found, expected, strict=True) if ids != others]


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
def test_ids_match_hugging_face(both: tuple[Tokenizer, Any], text: str) -> None:
    assert find_differences(*both, [text, f"a {text} b", text * 7]) == []


def test_word_limit_counts_characters_and_not_bytes(both: tuple[Tokenizer, Any]) -> None:
    lengths = (1, 11, 12, 33, 34, 50, 51, 99, 100, 101, 102, 400)
    words = [letter * length for letter in "aкก가中." for length in lengths]
    assert find_differences(*both, [*words, *(f"b {word}. b" for word in words)]) == []


@pytest.mark.parametrize(
    ("lowercase", "accents", "chinese"), [(True, None, True), (False, None, True), (True, False, False)]
)
def test_every_unicode_character_matches_hugging_face(
    tmp_path: Path, chinese: bool, lowercase: bool, accents: bool | None
) -> None:
    rules = {"lowercase": lowercase, "strip_accents": accents, "handle_chinese_chars": chinese}
    ours, theirs = convert_both(write_folder(tmp_path / "tiny"), make_tokenizer(VOCABULARY, **rules))
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    chunks = [points[start : start + 64] for start in range(0, len(points), 64)]
    assert find_differences(ours, theirs, [" ".join(f"a{chr(point)}b" for point in chunk) for chunk in chunks]) == []


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_matches_hugging_face(tmp_path: Path, side: str) -> None:
    folder = write_folder(tmp_path / "tiny")
    text = "abcdefghij hello. a"
    for max_tokens in (3, 4, 9, 14, 15, 16):
        ours, theirs = convert_both(folder, make_tokenizer())
        whole = ours.encode_texts([text])[0]
        theirs.enable_truncation(max_tokens, direction=side)
        assert (
            truncate_ids(whole, max_tokens, ours.before, ours.after, at_start=side == "left").tolist()
            == theirs.encode(text).ids
        )
        assert len(whole) == 15


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_keeps_special_tokens_on_one_side(tmp_path: Path, side: str) -> None:
    end_token = {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}
    template = {"type": "TemplateProcessing", "special_tokens": {"[SEP]": end_token}}
    text, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    folder = write_folder(tmp_path / "tiny")
    for order, before, after in (([text, end, end], 0, 2), ([end, text], 1, 0), ([text], 0, 0)):
        pair = [*order, {"Sequence": {"id": "B", "type_id": 1}}]
        ours, theirs = convert_both(
            folder, make_tokenizer() | {"post_processor": template | {"single": order, "pair": pair}}
        )
        assert (ours.before.tolist(), ours.after.tolist()) == ([3] * before, [3] * after)
        theirs.enable_truncation(6, direction=side)
        whole = ours.encode_texts(["abcdefghij"])[0]
        assert (
            truncate_ids(whole, 6, ours.before, ours.after, at_start=side == "left").tolist()
            == theirs.encode("abcdefghij").ids
        )


def test_long_text_does_not_pad_other_texts(both: tuple[Tokenizer, Any]) -> None:
    ids = both[0].encode_texts(["a", "hello " * 100_000, *["b"] * 62])
    assert [len(text_ids) for text_ids in ids] == [3, 100_002, *[3] * 62]
    assert all(text_ids.base is None for text_ids in ids)  # no view keeps the array of the whole batch in memory


@pytest.mark.parametrize("blank", ["", " ", "\0", "\n\t"])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_blank_texts_have_a_row_each(both: tuple[Tokenizer, Any], blank: str, number: int) -> None:
    alone = both[0].encode_texts([blank, "a"])[0].tolist()
    assert [ids.tolist() for ids in both[0].encode_texts([blank] * number)] == [alone] * number


@given(st.lists(st.integers(0, 3 * GROUP_CHARACTERS // 2), max_size=30) | st.lists(st.integers(0, 9), max_size=300))
def test_groups_keep_the_order_and_stay_small(lengths: list[int]) -> None:
    texts = [FakeLongText(length) for length in lengths]
    made = list(group_texts(texts)) if texts else []
    assert [text for group in made for text in group] == texts
    for group in made:
        assert len(group) == 1 or max(map(len, group)) * len(group) <= GROUP_CHARACTERS


class FakeLongText(str):
    """Empty text that reports another length."""

    length: int

    def __new__(cls, length: int) -> "FakeLongText":
        text = super().__new__(cls, length)
        text.length = length
        return text

    def __len__(self) -> int:
        return self.length


def test_encoding_does_not_block_the_interpreter(both: tuple[Tokenizer, Any]) -> None:
    running, gaps = threading.Event(), [0.0]
    done = threading.Event()

    def record_gaps() -> None:
        last = time.perf_counter()
        while not done.is_set():
            now = time.perf_counter()
            gaps[0], last = max(gaps[0], now - last), now
            running.set()

    ticker = threading.Thread(target=record_gaps)
    ticker.start()
    running.wait()
    started = time.perf_counter()
    both[0].encode_texts(["hello, " * 1_000_000])
    seconds = time.perf_counter() - started
    done.set()
    ticker.join()
    assert gaps[0] < seconds / 2


def test_unknown_kind_of_tokenizer_is_rejected(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    for break_it in list_breakages():
        spec = make_tokenizer()
        break_it(spec)
        write_json(folder / "tokenizer.json", spec)
        with pytest.raises(ModelError, match=r"tokenizer\.json"):
            write_tokenizer(read_folder(folder), 300, tmp_path)


def list_breakages() -> list[Callable[[dict[str, Any]], object]]:
    return [
        lambda spec: spec.pop("model"),
        lambda spec: spec["model"].update(type="Magic"),
        lambda spec: spec["model"].pop("vocab"),
        lambda spec: spec["model"].update(vocab={"a": 0}),
    ]


def test_other_rules_than_berts_run_in_the_library(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    ours, theirs = convert_both(folder, make_tokenizer() | {"pre_tokenizer": {"type": "WhitespaceSplit"}})
    assert (tmp_path / "tokenizer.json").is_file()
    assert find_differences(ours, theirs, ["", "hello. world", "a.b c", "\0 [SEP]", "x" * 200]) == []


def test_compiled_charsmap_finds_every_key() -> None:
    points = [*range(1, 900, 7), *range(0x4E00, 0x9000, 3), 0x10FFFF]
    table = {chr(point): f"<{point}>" for point in points}
    blob = compile_charsmap(table)
    size = int.from_bytes(blob[:4], "little")
    units = memoryview(blob[4 : 4 + size]).cast("I")
    values = blob[4 + size :]

    def look_up(key: bytes) -> str | None:
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
    assert {key: value for key in every if (value := look_up(key.encode()))} == table


@pytest.mark.parametrize(
    "piece",
    ["a", "!", " ", "a ", "\n", "[CLS]", "[", "\1", "中", "각", "\ufdfa", "\u0301", "\u0301\u0316", "hello"],
    ids=ascii,
)
def test_encoding_time_grows_linearly(both: tuple[Tokenizer, Any], piece: str) -> None:
    ours, _ = both
    # Short texts come first, so that faster growth fails early. 8 MB take at most a tenth of the limit.
    for doubled in range(16, 24):
        text = piece * (2**doubled // len(piece.encode()))
        started = time.process_time()
        ours.encode_texts([text])
        assert time.process_time() - started < 10
