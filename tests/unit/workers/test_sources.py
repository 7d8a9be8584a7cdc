"""Where the models to serve are found."""

from pathlib import Path

import pytest

from tests.harness.ovms_folders import CONFIG, GRAPH_TODAY, write_files, write_seed_layout, write_today_layout
from workers.models.json_files import ModelError
from workers.models.sources import Found, Options, Overrides, Refused, Source, find_sources


def find(**options: object) -> Found:
    return find_sources(Options(**options), Path("cache"), lambda _: None)  # type: ignore[arg-type]


def test_folder_is_one_model(tmp_path: Path) -> None:
    write_files(tmp_path, {"minilm/config.json": {"model_type": "bert"}})
    folder = tmp_path / "minilm"
    assert find(model=str(folder)) == Found([Source("minilm", folder)])
    assert find(model=str(folder), name="a/b") == Found([Source("a/b", folder)])


def test_missing_folder_is_one_model(tmp_path: Path) -> None:
    # Reading the folder tells what is wrong, and the worker announces it.
    assert find(model=str(tmp_path / "x")).sources == [Source("x", tmp_path / "x")]


def test_default_model_has_its_full_name(tmp_path: Path) -> None:
    (source,) = find(model=str(tmp_path / "all-MiniLM-L6-v2")).sources
    assert source.name == "sentence-transformers/all-MiniLM-L6-v2"


def test_graph_of_a_folder_is_followed(tmp_path: Path) -> None:
    write_today_layout(tmp_path)
    (source,) = find(model=str(tmp_path / "acme/tiny")).sources
    assert source.overrides.pooling == "MEAN"
    write_seed_layout(tmp_path)
    (source,) = find(model=str(tmp_path / "models")).sources
    assert source.folder == tmp_path / "models/tiny-gte-embeddings/1"


def test_latest_version_of_a_folder_is_served(tmp_path: Path) -> None:
    write_files(tmp_path, {"m/1/openvino_model.xml": "", "m/2/openvino_model.xml": ""})
    assert find(model=str(tmp_path / "m")).sources[0].folder == tmp_path / "m/2"


def test_config_of_ovms_is_read(tmp_path: Path) -> None:
    config = write_today_layout(tmp_path)
    assert [source.name for source in find(config=str(config)).sources] == ["acme/tiny"]


def test_folder_with_config_of_ovms_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {"config.json": CONFIG})
    with pytest.raises(ModelError, match="is a list of models for OVMS; serve it with --config-path"):
        find(model=str(tmp_path))


def test_repository_has_models_one_or_two_levels_deep(tmp_path: Path) -> None:
    files = {
        "minilm/config.json": {},
        "acme/tiny/graph.pbtxt": GRAPH_TODAY,
        "acme/large/2/model.xml": "",
        "acme/notes.txt": "",
        "empty/deeper/than/model.onnx": "",
        ".cache/config.json": {},
        "config.json": CONFIG,
    }
    write_files(tmp_path, files)
    found = find(repository=str(tmp_path))
    assert [source.name for source in found.sources] == ["acme/large", "acme/tiny", "minilm"]
    assert [source.folder.name for source in found.sources] == ["2", "tiny", "minilm"]
    assert not found.refused


def test_bad_model_of_a_repository_is_refused_alone(tmp_path: Path) -> None:
    write_files(tmp_path, {"good/config.json": {}, "bad/graph.pbtxt": "node {"})
    found = find(repository=str(tmp_path))
    assert [source.name for source in found.sources] == ["good"]
    assert [refused.name for refused in found.refused] == ["bad"]


def test_link_out_of_a_repository_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {"outside/config.json": {}, "repository/good/config.json": {}})
    (tmp_path / "repository/link").symlink_to(tmp_path / "outside")
    root = tmp_path / "repository"
    reason = f"{root}/link is a link that leads out of {root}; serve it with --model"
    assert find(repository=str(root)).refused == [Refused("link", reason)]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_repository_without_models_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ModelError, match=r"the model repository .*/(missing does not exist|empty has no model folders)"
    ):
        find(repository=str(tmp_path / name))


def test_command_line_overrides_every_model(tmp_path: Path) -> None:
    config = write_today_layout(tmp_path)
    wanted = Overrides(pooling="LAST", truncate=False, properties={"PERFORMANCE_HINT": "LATENCY"})
    (source,) = find(config=str(config), overrides=wanted).sources
    assert source.overrides == Overrides(
        pooling="LAST",
        normalize=True,
        truncate=False,
        device="CPU",
        properties={"NUM_STREAMS": "2", "PERFORMANCE_HINT": "LATENCY"},
    )


@pytest.mark.parametrize("name", ["graph.pbtxt", "subconfig.json", "config.json"])
def test_link_out_of_a_repository_is_unread(tmp_path: Path, name: str) -> None:
    write_seed_layout(tmp_path / "repository")
    folder = tmp_path / "repository/models"
    if name == "config.json":
        write_files(folder, {name: CONFIG})
        (folder / "graph.pbtxt").unlink()
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    (refused,) = [refused for refused in find(repository=str(tmp_path / "repository")).refused]
    assert refused.reason == f"{folder / name} is a link out of the model folder; replace it by the file itself"


def test_path_with_nul_spares_other_models(tmp_path: Path) -> None:
    write_seed_layout(tmp_path)
    values = {"model_config_list": [{"config": {"name": "embeddings_model", "base_path": "a\0b"}}]}
    write_files(tmp_path, {"models/subconfig.json": values, "good/config.json": {}})
    found = find(repository=str(tmp_path))
    assert [source.name for source in found.sources] == ["good"]
    assert "null byte" in found.refused[0].reason
