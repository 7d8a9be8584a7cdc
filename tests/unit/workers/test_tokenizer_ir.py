"""Tokenizers that openvino-tokenizers 2024.5 converted, as OVMS's exporter of that time wrote them."""

import json
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset15 as op
import pytest
import tokenizers

from tests.unit.workers.test_model_folder import make_tokenizer
from workers.engine.tokenizer import Tokenizer
from workers.models.json_files import ModelError
from workers.models.tokenizer_ir import read_tokenizer_ir

DATA = Path(__file__).resolve().parents[2] / "data" / "tokenizers"

#: Ids of transformers 4.46.3 and sentencepiece 0.2.3, by text.
SENTENCEPIECE_IDS = {
    "hello world": [0, 4, 7, 6, 6, 5, 4, 11, 5, 8, 6, 9, 2],
    "": [0, 2],
    "the fox": [0, 4, 10, 7, 4, 17, 5, 24, 2],
    " ": [0, 2],
}


def load(name: str, folder: Path) -> Tokenizer:
    ov.save_model(read_tokenizer_ir(DATA / f"{name}.xml"), folder / "tokenizer.xml", compress_to_fp16=False)
    return Tokenizer(folder / "tokenizer.xml")


def test_wordpiece_of_2024_is_ragged_and_not_truncated(tmp_path: Path) -> None:
    ours = load("wordpiece-2024.5", tmp_path)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(make_tokenizer()))
    theirs.no_truncation()
    texts = ["hello world.", "", "abcdefghij hello", "a" * 90, "hello " * 50]  # the exported limit is 8 tokens
    assert [ids.tolist() for ids in ours.encode_texts(texts)] == [theirs.encode(text).ids for text in texts]
    assert (ours.before.tolist(), ours.after.tolist()) == ([2], [3])


def test_sentencepiece_of_2024_is_served(tmp_path: Path) -> None:
    ours = load("sentencepiece-2024.5", tmp_path)
    assert [ids.tolist() for ids in ours.encode_texts(list(SENTENCEPIECE_IDS))] == list(SENTENCEPIECE_IDS.values())
    assert [ids.tolist() for ids in ours.encode_texts(["", ""])] == [[0, 2], [0, 2]]
    assert (ours.before.tolist(), ours.after.tolist()) == ([0], [2])


def test_other_graph_is_refused(tmp_path: Path) -> None:
    parameter = op.parameter([-1, -1], np.int64)
    ov.save_model(ov.Model([op.relu(parameter)], [parameter]), tmp_path / "openvino_tokenizer.xml")
    with pytest.raises(ModelError, match=r"could not convert .*openvino_tokenizer\.xml because"):
        read_tokenizer_ir(tmp_path / "openvino_tokenizer.xml")
