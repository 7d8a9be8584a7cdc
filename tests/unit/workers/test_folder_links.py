"""Links, devices and pipes in model folders: only the model's own files are read."""

import os
from pathlib import Path

import pytest

from tests.unit.workers.test_model_folder import CONFIG, get_error, write_folder, write_json
from tests.unit.workers.test_modules import write_modules
from workers.models.folder import read_folder
from workers.models.prepare import prepare_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny")


LINKED = ["config.json", "tokenizer.json", "model.safetensors", "modules.json", "1_Pooling", "1_Pooling/config.json"]
LINKED += ["sentence_bert_config.json", "config_sentence_transformers.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", LINKED)
def test_link_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    write_json(folder / "config_sentence_transformers.json", {})
    write_json(folder / "tokenizer_config.json", {})
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    assert get_error(folder) == f"{folder / name} is a link out of the model folder; replace it by the file itself"


def test_link_in_the_middle_of_a_path_is_refused(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "1_Pooling").rename(folder.parent / "1_Pooling")
    (folder / "a" / "b").symlink_to(folder.parent)
    write_modules(folder, ("Transformer", ""), ("Pooling", "a/b/1_Pooling"))
    assert f"{folder / 'a/b/1_Pooling'} is a link out of the model folder" in get_error(folder)


@pytest.mark.parametrize("name", ["config.json", "modules.json"])
def test_link_to_itself_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(name)
    assert name in get_error(folder)


def test_link_within_the_folder_is_followed(folder: Path) -> None:
    (folder / "config.json").rename(folder / "1_Pooling" / "other.json")
    (folder / "config.json").symlink_to("1_Pooling/other.json")
    assert read_folder(folder).family == "bert"


def test_folder_itself_may_be_a_link(folder: Path) -> None:
    (folder.parent / "linked").symlink_to(folder)
    assert read_folder(folder.parent / "linked").family == "bert"


def test_cache_of_the_hub_is_read(tmp_path: Path) -> None:
    hub = tmp_path / "models--acme--tiny"
    snapshot = write_folder(hub / "snapshots" / "0123abc")
    (hub / "blobs").mkdir()
    for number, path in enumerate(path for path in sorted(snapshot.rglob("*")) if path.is_file()):
        blob = hub / "blobs" / str(number)
        path.rename(blob)
        path.symlink_to(Path(*[".."] * (len(path.relative_to(hub).parts) - 1)) / "blobs" / str(number))
    assert prepare_model(snapshot, tmp_path / "cache", print).dimension == 16
    secret = tmp_path / "secret.json"
    write_json(secret, CONFIG)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(secret)
    assert "config.json is a link out of the model folder" in get_error(snapshot)


@pytest.mark.parametrize("name", ["modules.json", "config.json", "model.safetensors"])
def test_device_is_not_read(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert get_error(folder) == f"{folder / name} is neither a file nor a folder; remove it"
