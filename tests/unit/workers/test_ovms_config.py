"""OVMS's config.json and graph.pbtxt."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.harness.ovms_folders import (
    GRAPH_SEED,
    GRAPH_TODAY,
    SUBCONFIG_SEED,
    write_2024_05_layout,
    write_files,
    write_seed_layout,
    write_today_layout,
)
from workers.models.json_files import ModelError
from workers.models.ovms_config import read_ovms_config
from workers.models.ovms_graph import read_graph
from workers.models.source import Found, Overrides, Source


def read(path: Path) -> tuple[Found, list[str]]:
    lines: list[str] = []
    return read_ovms_config(path, lines.append), lines


def read_entries(root: Path, *entries: object, **lists: object) -> tuple[Found, list[str]]:
    """Read a config.json with these entries in its first list."""
    write_files(root, {"config.json": {"model_config_list": [{"config": entry} for entry in entries], **lists}})
    return read(root / "config.json")


def get_reason(found: Found) -> str:
    """Return why the only model is refused."""
    assert not found.sources
    (refused,) = found.refused
    return refused.reason


def test_layout_of_today_is_read(tmp_path: Path) -> None:
    found, lines = read(write_today_layout(tmp_path))
    overrides = Overrides(pooling="MEAN", normalize=True, truncate=True, device="CPU", properties={"NUM_STREAMS": "2"})
    assert found == Found([Source("acme/tiny", tmp_path / "acme/tiny", overrides)])
    assert not lines


def test_layout_of_the_seed_is_read(tmp_path: Path) -> None:
    found, lines = read(write_seed_layout(tmp_path))
    tokenizer = tmp_path / "models/tiny-gte-tokenizer/1"
    overrides = Overrides(pooling="CLS", normalize=True, truncate=False, device="CPU", tokenizer=tokenizer)
    folder = tmp_path / "models/tiny-gte-embeddings/1"
    assert found == Found([Source("acme/tiny-gte", folder, overrides, ("embeddings_model", "tokenizer"))])
    assert not lines


def test_layout_of_2024_5_is_read(tmp_path: Path) -> None:
    found, lines = read(write_2024_05_layout(tmp_path))
    (source,) = found.sources
    assert source.folder == tmp_path / "acme/tiny/embeddings/1"
    assert source.overrides.tokenizer == tmp_path / "acme/tiny/tokenizer/1"
    assert source.overrides.properties == {"NUM_STREAMS": 1}
    assert source.parts == ("acme/tiny_embeddings_model", "acme/tiny_tokenizer_model")
    assert not lines


def test_latest_version_is_served(tmp_path: Path) -> None:
    config = write_2024_05_layout(tmp_path)
    for version in ("2", "10", "0", "x", "11.bak"):
        (tmp_path / "acme/tiny/embeddings" / version).mkdir()
    (tmp_path / "acme/tiny/embeddings/12").touch()
    assert read(config)[0].sources[0].folder.name == "10"


@pytest.mark.parametrize(
    ("policy", "version"),
    [({"latest": {"num_versions": 2}}, "3"), ({"all": {}}, "3"), ({"specific": {"versions": [1, 2]}}, "2")],
)
def test_version_policy_chooses_the_version(tmp_path: Path, policy: object, version: str) -> None:
    for number in "123":
        (tmp_path / "m" / number).mkdir(parents=True)
    found, _ = read_entries(tmp_path, {"name": "m", "model_version_policy": policy})
    assert found.sources[0].folder == tmp_path / "m" / version


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"specific": {"versions": [7]}}, "{root}/m has no folder for version 7"),
        ({"specific": {"versions": "7"}}, "versions in model_version_policy of m must be a list of numbers"),
        ({"newest": {}}, 'model_version_policy of m must be {{"latest": {{}}}} or similar'),
        ("latest", 'model_version_policy of m must be {{"latest": {{}}}} or similar'),
    ],
)
def test_invalid_version_policy_refuses_the_model(tmp_path: Path, policy: object, reason: str) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    found, _ = read_entries(tmp_path, {"name": "m", "model_version_policy": policy})
    assert reason.format(root=tmp_path) in get_reason(found)


def test_seeds_version_is_served_though_a_later_exists(tmp_path: Path) -> None:
    config = write_seed_layout(tmp_path)
    (tmp_path / "models/tiny-gte-embeddings/2").mkdir()
    assert read(config)[0].sources[0].folder.name == "1"


def test_base_path_defaults_to_the_name(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    found, _ = read_entries(
        tmp_path, {"name": "a"}, {"name": "b", "base_path": ""}, {"name": "z", "base_path": str(tmp_path / "c")}
    )
    assert [(source.name, source.folder.name) for source in found.sources] == [("a", "a"), ("b", "b"), ("z", "c")]


def test_graph_in_version_folder_is_found(tmp_path: Path) -> None:
    write_files(tmp_path, {"m/1/graph.pbtxt": GRAPH_TODAY})
    found, _ = read_entries(tmp_path, {"name": "m"})
    assert found.sources[0].folder == tmp_path / "m/1"


def test_graph_path_and_subconfig_of_an_entry_are_used(tmp_path: Path) -> None:
    write_seed_layout(tmp_path)
    (tmp_path / "models/graph.pbtxt").rename(tmp_path / "models/other.pbtxt")
    (tmp_path / "models/subconfig.json").rename(tmp_path / "models/other.json")
    entry = {"name": "m", "base_path": "models", "graph_path": "other.pbtxt", "subconfig": "other.json"}
    found, _ = read_entries(tmp_path, mediapipe_config_list=[entry])
    assert found.sources[0].folder == tmp_path / "models/tiny-gte-embeddings/1"


def test_parts_in_config_are_not_served_alone(tmp_path: Path) -> None:
    write_seed_layout(tmp_path)
    (tmp_path / "models/subconfig.json").unlink()
    parts = [
        entry["config"] | {"base_path": f"models/{entry['config']['base_path']}"}
        for entry in SUBCONFIG_SEED["model_config_list"]
    ]
    graph = {"name": "m", "graph_path": str(tmp_path / "models/graph.pbtxt")}
    found, _ = read_entries(tmp_path, *parts, mediapipe_config_list=[graph])
    assert [source.name for source in found.sources] == ["m"]
    assert found.sources[0].overrides.tokenizer == tmp_path / "models/tiny-gte-tokenizer/1"
    assert not found.refused


def test_config_in_base_folder_replaces_missing_subconfig(tmp_path: Path) -> None:
    config = write_seed_layout(tmp_path)
    (tmp_path / "models/subconfig.json").rename(tmp_path / "models/config.json")
    assert len(read(config)[0].sources) == 1


def test_first_of_two_equal_names_is_served(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found, lines = read_entries(tmp_path, {"name": "m", "base_path": "a"}, {"name": "m", "base_path": "b"})
    assert [source.folder.name for source in found.sources] == ["a"]
    assert lines == [f"{tmp_path}/config.json has the name 'm' twice; the first entry is served"]


def test_settings_without_effect_are_reported(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    found, lines = read_entries(tmp_path, {"name": "m", "nireq": 4, "batch_size": "auto"}, monitoring={"metrics": {}})
    assert len(found.sources) == 1
    assert [line.removeprefix(f"{tmp_path}/config.json: ") for line in lines] == [
        "monitoring has no effect in Vecmill",
        "batch_size of m has no effect in Vecmill",
        "nireq of m has no effect in Vecmill",
    ]


def test_unset_options_leave_the_folders_own(tmp_path: Path) -> None:
    graph = 'node { calculator: "EmbeddingsCalculatorOV" options { [mediapipe.EmbeddingsCalculatorOVOptions.ext] {'
    write_files(tmp_path, {"m/graph.pbtxt": graph + "models_path: '.' } } }", "m/modules.json": []})
    found, _ = read_entries(tmp_path, {"name": "m"})
    assert found.sources[0].overrides == Overrides(normalize=True, truncate=False)


@pytest.mark.parametrize("value", ["1", "LAST", "LAST_TOKEN"])
def test_pooling_by_name_or_number(tmp_path: Path, value: str) -> None:
    write_files(tmp_path, {"m/graph.pbtxt": GRAPH_TODAY.replace("MEAN", value)})
    found, _ = read_entries(tmp_path, {"name": "m"})
    assert found.sources[0].overrides.pooling == "LAST"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "is not a JSON object; correct the file"),
        ("{", "could not read"),
        ('{"model_type": "bert", "vocab_size": 9}', "is the configuration of one model; set --model to its folder"),
        ("{}", 'has no model_config_list, which OVMS requires; add "model_config_list": []'),
        ('{"model_config_list": {}}', "model_config_list must be a list of objects"),
        ('{"model_config_list": [1]}', "model_config_list must be a list of objects"),
        ('{"model_config_list": [{}]}', "model_config_list must be a list of objects"),
        ('{"model_config_list": [{"config": {}}]}', "an entry of model_config_list has no name"),
        ('{"model_config_list": [], "mediapipe_config_list": 1}', "mediapipe_config_list must be a list"),
        ('{"model_config_list": [], "x": 1}', "has the unknown key 'x'; correct its name, or remove it"),
    ],
)
def test_invalid_config_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json") as error:
        read(tmp_path / "config.json")
    assert reason in str(error.value)
    assert "download" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"base_path": "missing"}, "base_path of m is {root}/missing, but there is no such folder"),
        ({"base_path": "../m"}, "base_path of m has '..'; write the whole path"),
        ({"base_path": 1}, "base_path of m is 1, but must be a text"),
        ({"graph_path": "x.pbtxt"}, "graph_path of m is {root}/m/x.pbtxt, but there is no such file"),
        ({"target_devise": "CPU"}, "m has the unknown key 'target_devise'"),
        ({"plugin_config": "x"}, "plugin_config of m is 'x', but must be a JSON object of OpenVINO properties"),
    ],
)
def test_invalid_entry_refuses_only_its_model(tmp_path: Path, entry: dict[str, Any], reason: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "good").mkdir()
    found, _ = read_entries(tmp_path, {"name": "m", **entry}, {"name": "good"})
    assert [source.name for source in found.sources] == ["good"]
    (refused,) = found.refused
    assert refused.name == "m"
    assert refused.reason.startswith(f"{tmp_path}/config.json: ")
    assert reason.format(root=tmp_path) in refused.reason


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("MEAN", "MAX", "pooling is 'MAX', but must be CLS, LAST or MEAN"),
        ("pooling: MEAN", "pooling {}", "pooling is a message, but must be a value"),
        ("truncate: true", "truncate: yes", "truncate is 'yes', but must be true or false"),
        ("truncate: true", "max_length: 9", "has the option 'max_length', which Vecmill does not know"),
        ("models_path", "target_device", 'has no models_path; add models_path: "./"'),
        ('{"NUM_STREAMS": "2"}', "{", "plugin_config is not JSON"),
        ('{"NUM_STREAMS": "2"}', "[]", "plugin_config is [], but must be a JSON object"),
        ("EmbeddingsCalculatorOV", "HttpLLMCalculator", "has HttpLLMCalculator, but Vecmill serves only embeddings"),
        ("node {", "note {", "has no calculator, but Vecmill serves only embeddings"),
        ("}", "", "could not read"),
        ("./", "../../../other", "models_path is '../../../other', which leads out of"),
        ("./", "/etc", "models_path is '/etc', which leads out of"),
    ],
)
def test_invalid_graph_refuses_its_model(tmp_path: Path, old: str, new: str, reason: str) -> None:
    config = write_today_layout(tmp_path)
    graph = tmp_path / "acme/tiny/graph.pbtxt"
    graph.write_text(GRAPH_TODAY.replace(old, new))
    text = get_reason(read(config)[0])
    assert text.startswith((str(graph), f"could not read {graph}"))
    assert reason in text


def test_models_path_may_stay_in_the_repository(tmp_path: Path) -> None:
    config = write_today_layout(tmp_path)
    (tmp_path / "acme/tiny/graph.pbtxt").write_text(GRAPH_TODAY.replace("./", "../../shared"))
    assert read(config)[0].sources[0].folder == tmp_path / "shared"


def test_models_path_may_name_a_file(tmp_path: Path) -> None:
    config = write_today_layout(tmp_path)
    write_files(tmp_path / "acme/tiny", {"m.xml": "", "m.gguf": "", "m.bin": ""})
    graph = tmp_path / "acme/tiny/graph.pbtxt"
    graph.write_text(GRAPH_TODAY.replace("./", "m.xml"))
    (source,) = read(config)[0].sources
    assert (source.folder, source.overrides.file) == (tmp_path / "acme/tiny", "m.xml")
    graph.write_text(GRAPH_TODAY.replace("./", "m.gguf"))
    assert "is a GGUF file, which Vecmill does not read" in get_reason(read(config)[0])
    graph.write_text(GRAPH_TODAY.replace("./", "m.bin"))
    assert "is a file; set --model to the folder that holds it" in get_reason(read(config)[0])


def test_link_in_models_path_is_refused(tmp_path: Path) -> None:
    config = write_today_layout(tmp_path / "repository")
    (tmp_path / "repository/acme/tiny/link").symlink_to(tmp_path)
    (tmp_path / "repository/acme/tiny/graph.pbtxt").write_text(GRAPH_TODAY.replace("./", "link"))
    assert "models_path is 'link', which leads out of" in get_reason(read(config)[0])


def test_folder_that_the_operator_lists_may_be_anywhere(tmp_path: Path) -> None:
    write_today_layout(tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    found, _ = read_entries(tmp_path / "here", {"name": "m", "base_path": str(tmp_path / "elsewhere/acme/tiny")})
    assert not found.refused
    assert found.sources[0].folder == tmp_path / "elsewhere/acme/tiny"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"base_path": "/etc"}, "base_path of embeddings_model is '/etc', which leads out of {root}"),
        ({"base_path": "../x"}, "base_path of embeddings_model has '..'; write the whole path"),
        ({"base_path": "x"}, "base_path of embeddings_model is {root}/models/x, but there is no such folder"),
        ({"name": "x"}, "graph.pbtxt names 'embeddings_model', but subconfig.json has no such entry; add one"),
        ({"x": 1}, "embeddings_model has the unknown key 'x'"),
    ],
)
def test_invalid_subconfig_refuses_its_model(tmp_path: Path, entry: dict[str, Any], reason: str) -> None:
    config = write_seed_layout(tmp_path)
    subconfig = json.loads(json.dumps(SUBCONFIG_SEED))
    subconfig["model_config_list"][1]["config"] |= entry
    write_files(tmp_path / "models", {"subconfig.json": subconfig})
    assert reason.format(root=tmp_path) in get_reason(read(config)[0])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('servable_version: "1"', 'servable_version: "x"', "servable_version 'x' is not a number"),
        ('servable_version: "1"', 'servable_version: "7"', "has no folder for version 7"),
        ("EMBEDDINGS_SESSION", "X", "no node with a servable_name provides the side packet of EMBEDDINGS_SESSION"),
        ("SESSION:tokenizer", "SESSION:other", "provides the side packet of TOKENIZER_SESSION"),
    ],
)
def test_invalid_sessions_refuse_their_model(tmp_path: Path, old: str, new: str, reason: str) -> None:
    config = write_seed_layout(tmp_path)
    (tmp_path / "models/graph.pbtxt").write_text(GRAPH_SEED.replace(old, new, 1))
    assert reason in get_reason(read(config)[0])


def test_graph_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m/graph.pbtxt").mkdir(parents=True)
    found, _ = read_entries(tmp_path, {"name": "m"})
    assert get_reason(found) == f"could not read {tmp_path}/m/graph.pbtxt: it is not a regular file; correct the file"


def test_unreadable_folder_refuses_its_model(tmp_path: Path) -> None:
    found, _ = read_entries(tmp_path, {"name": "n" * 300})
    assert "could not read" in get_reason(found)


def test_sources_can_be_compared(tmp_path: Path) -> None:
    config = write_today_layout(tmp_path)
    (first,), (second,) = read(config)[0].sources, read(config)[0].sources
    assert first == second
    assert first != msgspec.structs.replace(second, overrides=Overrides())


def test_graph_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "graph.pbtxt")
    with pytest.raises(ModelError, match="it is not a regular file; correct the file"):
        read_graph(tmp_path / "graph.pbtxt")


@pytest.mark.parametrize("name", ["m" * 513, "m" * 100_000])
def test_long_name_is_refused_by_itself(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, {"good/config.json": {}})
    found, _ = read_entries(tmp_path, {"name": name}, {"name": "good"})
    assert [source.name for source in found.sources] == ["good"]
    (refused,) = found.refused
    assert refused.name == "m" * 80 + "…"
    assert refused.reason.endswith(f"has {len(name)} characters, but at most 512 are allowed; shorten it")


def test_long_name_of_a_part_is_refused(tmp_path: Path) -> None:
    config = write_seed_layout(tmp_path)
    for path in (tmp_path / "models/graph.pbtxt", tmp_path / "models/subconfig.json"):
        path.write_text(path.read_text().replace("embeddings_model", "m" * 513))
    assert "at most 512 are allowed" in get_reason(read(config)[0])


def test_path_with_nul_is_refused(tmp_path: Path) -> None:
    config = write_seed_layout(tmp_path)
    values = {"model_config_list": [{"config": {"name": "embeddings_model", "base_path": "a\0b"}}]}
    write_files(tmp_path, {"models/subconfig.json": values})
    assert "null byte" in get_reason(read(config)[0])
