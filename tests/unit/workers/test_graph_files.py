"""Which files of a folder are an exported model, its weights and its tokenizer."""

from pathlib import Path

import numpy as np
import pytest

from tests.harness.graphs import encode_field, encode_onnx
from workers.models.graph_files import (
    find_graph_file,
    find_tokenizer_file,
    list_graph_files,
    read_model_info,
    split_graph_path,
)
from workers.models.json_files import ModelError

TABLE = np.zeros((3, 2), np.float32)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["onnx/model.onnx", "openvino/openvino_model.xml"], "openvino/openvino_model.xml"),
        (["openvino_model.xml", "openvino_tokenizer.xml", "openvino_detokenizer.xml"], "openvino_model.xml"),
        (["onnx/model.onnx", "onnx/model_O4.onnx", "onnx/model_qint8_avx512.onnx"], "onnx/model.onnx"),
        (["onnx/model.onnx", "onnx/model_q4f16.onnx", "onnx/model_fp16.onnx"], "onnx/model.onnx"),
        (["openvino/openvino_model.xml", "openvino/openvino_model_qint8_quantized.xml"], "openvino/openvino_model.xml"),
        (["bge.onnx", "notes.txt"], "bge.onnx"),
        (["bge.xml", "bge-int8.xml", "openvino_tokenizer.xml"], "bge.xml"),
        (["model.xml", "model.onnx"], "model.xml"),
        (["config.json", "openvino_tokenizer.xml"], None),
    ],
)
def test_graph_is_chosen_by_its_name(tmp_path: Path, names: list[str], chosen: str | None) -> None:
    touch(tmp_path, *names)
    assert find_graph_file(tmp_path) == (tmp_path / chosen if chosen else None)


def test_named_graph_is_chosen(tmp_path: Path) -> None:
    touch(tmp_path, "onnx/model.onnx", "onnx/model_quantized.onnx")
    assert find_graph_file(tmp_path, "onnx/model_quantized.onnx") == tmp_path / "onnx/model_quantized.onnx"
    with pytest.raises(ModelError, match=r"has no file onnx/model_q4\.onnx"):
        find_graph_file(tmp_path, "onnx/model_q4.onnx")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.onnx", "b.onnx"], "has several models, a.onnx and b.onnx; name the one to serve: --model {root}/a.onnx"),
        (
            ["onnx/model_quantized.onnx"],
            "has only quantized models, model_quantized.onnx; name the one to serve: --model "
            "{root}/onnx/model_quantized.onnx",
        ),
    ],
)
def test_unclear_choice_is_refused(tmp_path: Path, names: list[str], reason: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(ModelError) as error:
        find_graph_file(tmp_path)
    assert str(error.value) == f"{tmp_path} {reason.format(root=tmp_path)}"


@pytest.mark.parametrize("name", ["m.xml", "onnx/m.onnx", "openvino/m.xml"])
def test_path_of_a_graph_is_split(tmp_path: Path, name: str) -> None:
    assert split_graph_path(tmp_path / name) == (tmp_path, name)


def test_path_of_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a file; set --model to the folder that holds it"):
        split_graph_path(tmp_path / "model.safetensors")


def test_files_of_an_ir_are_listed(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net/>")
    with pytest.raises(ModelError, match=r"has no m\.bin, which belongs to m\.xml; download the model again"):
        list_graph_files(tmp_path / "m.xml")
    touch(tmp_path, "m.bin")
    assert list_graph_files(tmp_path / "m.xml") == (tmp_path / "m.xml", tmp_path / "m.bin")
    (tmp_path / "m.xml").write_text("<html/>")
    with pytest.raises(ModelError, match=r"m\.xml is no OpenVINO model"):
        list_graph_files(tmp_path / "m.xml")


def test_files_of_an_onnx_model_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(encode_onnx(TABLE))
    assert list_graph_files(path) == (path,)
    path.write_bytes(encode_onnx(TABLE, "weights/m.onnx_data"))
    with pytest.raises(ModelError, match=r"has no weights/m\.onnx_data, which holds weights of m\.onnx"):
        list_graph_files(path)
    touch(tmp_path, "weights/m.onnx_data")
    assert list_graph_files(path) == (path, tmp_path / "weights/m.onnx_data")


@pytest.mark.parametrize("path", [(1, 5, 5), (1, 5, 10), (1, 5, 6, 5), (1, 5, 11, 1, 5, 5), (15, 1), (1, 5, 22, 2)])
def test_files_of_constants_in_nodes_are_listed(tmp_path: Path, path: tuple[int, ...]) -> None:
    entry = encode_field(1, b"location") + encode_field(2, b"weights.bin")
    message = encode_field(2, 1) + encode_field(13, entry)
    for number in reversed(path):
        message = encode_field(number, message)
    (tmp_path / "m.onnx").write_bytes(encode_onnx(TABLE) + encode_field(7, message))
    with pytest.raises(ModelError, match=r"has no weights\.bin, which holds weights of m\.onnx"):
        list_graph_files(tmp_path / "m.onnx")


def test_files_of_constants_in_functions_are_listed(tmp_path: Path) -> None:
    entry = encode_field(1, b"location") + encode_field(2, b"weights.bin")
    message = encode_field(13, entry)
    for number in (5, 5, 7, 25):
        message = encode_field(number, message)
    (tmp_path / "m.onnx").write_bytes(encode_onnx(TABLE) + message)
    with pytest.raises(ModelError, match=r"has no weights\.bin"):
        list_graph_files(tmp_path / "m.onnx")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "x\0y"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "m.onnx").write_bytes(encode_onnx(TABLE, location))
    with pytest.raises(ModelError, match="leads out of the model folder"):
        list_graph_files(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>", "unknown wire type 4 at byte 1"),
        (b"\x3a\x7f", "a field of 127 bytes at byte 2 does not fit"),
        (b"\xff" * 20, "a number at byte 0 does not end"),
        (b"\x3a", "a number at byte 1 does not end"),
        (b"\x09\x00", "a field of 8 bytes at byte 1 does not fit"),
        (encode_onnx(TABLE, "\ufffd").replace("\ufffd".encode(), b"\xff\xfe\xfd"), "can't decode byte"),
    ],
)
def test_damaged_onnx_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError) as error:
        list_graph_files(tmp_path / "m.onnx")
    assert str(error.value).startswith(f"{tmp_path}/m.onnx is damaged: ")
    assert reason in str(error.value)


def test_unknown_fields_of_an_onnx_file_are_skipped(tmp_path: Path) -> None:
    fixed = b"\x25\0\0\0\0" + b"\x29" + bytes(8)
    (tmp_path / "m.onnx").write_bytes(fixed + encode_onnx(TABLE))
    assert list_graph_files(tmp_path / "m.onnx") == (tmp_path / "m.onnx",)


def test_tokenizer_is_found_by_its_name(tmp_path: Path) -> None:
    assert find_tokenizer_file(tmp_path, alone=True) is None
    touch(tmp_path, "model.xml")
    assert find_tokenizer_file(tmp_path, alone=False) is None
    assert find_tokenizer_file(tmp_path, alone=True) == tmp_path / "model.xml"
    touch(tmp_path, "openvino_tokenizer.xml")
    assert find_tokenizer_file(tmp_path, alone=False) == tmp_path / "openvino_tokenizer.xml"


def test_config_in_an_ir_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.xml"
    info = '<model_info><max_position_embeddings value="512"/><model_type value="bert"/><pad_token_id value="None"/>'
    path.write_text(f"<net><layers><layer id='0'/></layers><rt_info>{info}</model_info></rt_info></net>")
    assert read_model_info(path) == {"max_position_embeddings": 512, "model_type": "bert"}
    path.write_text("<net></net>")
    assert read_model_info(path) == {}


@pytest.mark.parametrize("text", ["<net>", "", '<!DOCTYPE net SYSTEM "file:///etc/passwd"><net>&x;</net>'])
def test_damaged_ir_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.xml").write_text(text)
    with pytest.raises(ModelError, match=r"m\.xml is damaged: "):
        read_model_info(tmp_path / "m.xml")


def test_entities_of_an_ir_do_not_explode(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(12))
    (tmp_path / "m.xml").write_text(f'<!DOCTYPE net [<!ENTITY e0 "{"x" * 100}">{entities}]><net>&e12;</net>')
    with pytest.raises(ModelError, match=r"m\.xml is damaged: "):
        read_model_info(tmp_path / "m.xml")
