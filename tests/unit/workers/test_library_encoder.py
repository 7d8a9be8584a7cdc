"""The tokenizers library in the worker: threads, groups, failures, and truncation of its ids."""

import json
import threading
import time
from pathlib import Path

import pytest

from tests.unit.workers.test_tokenizer_settings import train
from workers.engine.batch_inputs import truncate_ids
from workers.engine.tokenizer import GROUP_CHARACTERS, Tokenizer

KINDS = ["unigram", "bytes", "gemma"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    for kind in KINDS:
        train(kind).save(str(folder / f"{kind}.json"))
    return {kind: folder / f"{kind}.json" for kind in KINDS}


def test_texts_of_a_group_do_not_affect_each_other(paths: dict[str, Path]) -> None:
    tokenizer = Tokenizer(paths["bytes"])
    texts = ["fox", "", "dog " * (GROUP_CHARACTERS // 4), "\0", *["lazy"] * 40]
    alone = [tokenizer.encode_texts([text])[0].tolist() for text in texts]
    assert [ids.tolist() for ids in tokenizer.encode_texts(texts)] == alone
    assert tokenizer.encode_texts([]) == []


def test_library_does_not_block_the_interpreter(paths: dict[str, Path]) -> None:
    tokenizer, done, gaps = Tokenizer(paths["bytes"]), threading.Event(), [0.0]

    def record_gaps() -> None:
        last = time.perf_counter()
        while not done.is_set():
            now = time.perf_counter()
            gaps[0], last = max(gaps[0], now - last), now

    ticker = threading.Thread(target=record_gaps)
    ticker.start()
    started = time.perf_counter()
    tokenizer.encode_texts(["hello, " * 400_000])
    seconds = time.perf_counter() - started
    done.set()
    ticker.join()
    assert gaps[0] < seconds / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", ["a", " ", "\n", "a ", "<s>", "中", "\u0301"], ids=ascii)
def test_library_time_grows_linearly(paths: dict[str, Path], kind: str, piece: str) -> None:
    tokenizer = Tokenizer(paths[kind])
    # Short texts come first, so that faster growth fails early. 1 MB takes at most a tenth of the limit.
    for doubled in range(14, 21):
        text = piece * (2**doubled // len(piece.encode()))
        started = time.process_time()
        tokenizer.encode_texts([text])
        assert time.process_time() - started < 10


def test_panic_of_the_library_fails_one_batch(tmp_path: Path) -> None:
    spec = json.loads(train("bytes").to_str())
    spec["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(x+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(RuntimeError, match="retry-limit-in-match over"):
        tokenizer.encode_texts(["x" * 60 + "-"])
    assert len(tokenizer.encode_texts(["fox"])) == 1


@pytest.mark.parametrize("at_start", [False, True])
def test_truncation_keeps_the_end_token(paths: dict[str, Path], at_start: bool) -> None:
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(paths["bytes"]))
    theirs.post_processor = tokenizers.processors.TemplateProcessing(single="$A <pad>", special_tokens=[("<pad>", 1)])
    path = paths["bytes"].with_name("end.json")
    theirs.save(str(path))
    ours = Tokenizer(path)
    whole = ours.encode_texts(["the quick brown fox jumps"])[0]
    for max_tokens in range(2, len(whole) + 1):
        theirs.enable_truncation(max_tokens, direction="left" if at_start else "right")
        ids = truncate_ids(whole, max_tokens, ours.before, ours.after, at_start=at_start).tolist()
        assert ids == theirs.encode("the quick brown fox jumps").ids
        assert ids[-1] == 1
