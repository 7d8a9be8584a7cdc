"""Models of the Hugging Face hub, fetched from a hub on this machine."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.harness.fake_hub import FakeHub, FakeModel, run_fake_hub
from tests.unit.workers.test_model_folder import write_folder
from workers.models.export import ExportOptions, export_model
from workers.models.hub import choose_weights, fetch_model, is_hub_name
from workers.models.json_files import ModelError
from workers.models.sources import choose_model_name

ROOT = Path(__file__).resolve().parents[2]
#: What is fetched of the model `acme/tiny`.
FETCHED = ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json"]
FETCHED += ["sentence_bert_config.json", "tokenizer.json"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with run_fake_hub() as running:
        folder = write_folder(tmp_path / "files")
        for name in ("pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "README.md", "modeling_tiny.py"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"x")
        running.models["acme/tiny"] = FakeModel(folder)
        # The library reads HF_ENDPOINT when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield running


def list_files(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(file for file in files if not file.startswith(".cache/"))


def fetch(name: str, cache: Path) -> tuple[Path, list[str]]:
    """Return the folder of a model and the lines that were reported."""
    lines: list[str] = []
    return fetch_model(name, cache, lines.append), lines


def test_only_needed_files_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    folder, lines = fetch("acme/tiny", tmp_path / "cache")
    assert folder == tmp_path / "cache" / "hub" / "acme" / "tiny" / ("a" * 40)
    assert list_files(folder) == FETCHED == hub.list_downloads()
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "files" / "model.safetensors").read_bytes()
    assert not (folder / "model.safetensors").is_symlink()
    assert lines == [f"fetching acme/tiny at commit {'a' * 40}; to keep this commit, set --model acme/tiny@{'a' * 40}"]


def test_fetched_model_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    first, _ = fetch("acme/tiny", tmp_path)
    hub.requests.clear()
    assert fetch("acme/tiny", tmp_path)[0] == first
    assert hub.list_downloads() == []


def test_kept_commit_needs_no_hub(hub: FakeHub, tmp_path: Path) -> None:
    first, _ = fetch("acme/tiny", tmp_path)
    hub.requests.clear()
    hub.models["acme/tiny"].commit = "b" * 40
    assert fetch(f"acme/tiny@{'a' * 40}", tmp_path) == (first, [])
    assert hub.requests == []


def test_new_commit_has_its_own_folder(hub: FakeHub, tmp_path: Path) -> None:
    first, _ = fetch("acme/tiny", tmp_path)
    hub.models["acme/tiny"].commit = "b" * 40
    second, _ = fetch("acme/tiny", tmp_path)
    assert (first.name, second.name) == ("a" * 40, "b" * 40)
    assert list_files(first) == list_files(second) == FETCHED


@pytest.mark.filterwarnings("ignore")
def test_interrupted_download_continues(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.breaks_after = 5000
    folder, _ = fetch("acme/tiny", tmp_path)
    assert list_files(folder) == FETCHED
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "files" / "model.safetensors").read_bytes()
    assert "bytes=5000-" in [wanted for _, path, wanted in hub.requests if path.endswith("model.safetensors")]


def test_unreachable_hub_falls_back(hub: FakeHub, tmp_path: Path) -> None:
    first, _ = fetch("acme/tiny", tmp_path)
    hub.status = 500
    folder, lines = fetch("acme/tiny", tmp_path)
    assert folder == first
    assert lines == [
        f"could not fetch acme/tiny, because {hub.url} answered with status 500; "
        f"using commit {'a' * 40}, which was fetched before"
    ]
    with pytest.raises(ModelError, match="answered with status 500; check the network and HF_ENDPOINT, or set --model"):
        fetch("acme/tiny", tmp_path / "other")


def test_partial_download_is_not_used(hub: FakeHub, tmp_path: Path) -> None:
    weights = hub.models["acme/tiny"].folder / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    (hub.models["acme/tiny"].folder / "onnx" / "model.onnx").unlink()
    with pytest.raises(
        ModelError, match=r"acme/tiny has no model\.safetensors on the hub, but only .*pytorch_model\.bin"
    ):
        fetch("acme/tiny", tmp_path)
    weights.write_bytes(content)
    hub.status = 500
    with pytest.raises(ModelError, match="check the network"):
        fetch("acme/tiny", tmp_path)


def test_refused_connection_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ModelError, match=r"could not fetch acme/tiny from http://127\.0\.0\.1:9 \(.*Connection refused\)"
    ):
        fetch("acme/tiny", tmp_path)


def test_unknown_model_gets_similar_names(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model acme/tinny, or HF_TOKEN .*; did you mean acme/tiny\?"):
        fetch("acme/tinny", tmp_path)
    with pytest.raises(ModelError, match="has no model other/thing, or HF_TOKEN may not read it; check the name"):
        fetch("other/thing", tmp_path)


@pytest.mark.parametrize("name", ["a--b/c", "a/b..c", "owner/" + "x" * 200])
def test_name_that_the_hub_cannot_have_is_refused(hub: FakeHub, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"is no name of a model on the hub: "):
        fetch(name, tmp_path)


def test_unknown_revision_is_named(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="acme/tiny has no revision v2 on http"):
        fetch("acme/tiny@v2", tmp_path)


@pytest.mark.parametrize("kind", ["gated", "private"])
def test_token_opens_closed_models(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    setattr(hub.models["acme/tiny"], kind, True)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    wanted = "is gated; accept its conditions at" if kind == "gated" else "has no model acme/tiny, or HF_TOKEN may not"
    with pytest.raises(ModelError, match=wanted):
        fetch("acme/tiny", tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert list_files(fetch("acme/tiny", tmp_path)[0]) == FETCHED


def test_full_disk_is_one_sentence(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.HfApi.snapshot_download", fail)
    with pytest.raises(ModelError, match=r"could not write acme/tiny to .*: No space left on device"):
        fetch("acme/tiny", tmp_path)


def test_offline_mode_is_honored(hub: FakeHub, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from workers.models.hub import fetch_model\n"
        "try: print(fetch_model('acme/tiny', Path(sys.argv[1]), print))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "HF_ENDPOINT": hub.url}
    offline = subprocess.run(
        command, cwd=ROOT, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True
    )
    assert offline.stdout.startswith("ModelError could not fetch acme/tiny because HF_HUB_OFFLINE is set;")
    assert hub.requests == []
    online = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert online.stdout.splitlines()[-1] == str(tmp_path / "hub" / "acme" / "tiny" / ("a" * 40))
    assert online.stderr == ""


def test_model_is_exported_under_its_name(hub: FakeHub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    options = ExportOptions(source="acme/tiny", repository=models, config_path=models / "config.json")
    target = export_model(options, tmp_path / "cache", lambda _: None)
    assert target == models / "acme" / "tiny"
    content = json.loads((models / "config.json").read_text())
    assert content["model_config_list"] == [{"config": {"name": "acme/tiny", "base_path": "acme/tiny"}}]


def test_settings_are_fetched_without_weights(hub: FakeHub, tmp_path: Path) -> None:
    (hub.models["acme/tiny"].folder / "model.safetensors").unlink()
    (hub.models["acme/tiny"].folder / "onnx" / "model.onnx").unlink()
    folder = fetch_model("acme/tiny", tmp_path, lambda _: None, weights=False)
    assert list_files(folder) == [file for file in FETCHED if file != "model.safetensors"]


@pytest.mark.parametrize(
    ("files", "folders", "chosen"),
    [
        (["model.safetensors", "onnx/model.onnx"], [""], ["model.safetensors"]),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            [""],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            ["0_T/model.safetensors", "2_Dense/model.safetensors", "2_Dense_64/model.safetensors"],
            ["0_T", "1_Pooling", "2_Dense"],
            ["0_T/model.safetensors", "2_Dense/model.safetensors"],
        ),
        (
            ["openvino_model.bin", "openvino_model.xml", "openvino_tokenizer.xml"],
            [""],
            ["openvino_model.bin", "openvino_model.xml", "openvino_tokenizer.xml"],
        ),
        (
            ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_O3.onnx"],
            [""],
            ["onnx/model.onnx", "onnx/model.onnx_data"],
        ),
        (["openvino_tokenizer.xml", "pytorch_model.bin"], [""], []),
    ],
)
def test_weights_are_chosen_by_kind(files: list[str], folders: list[str], chosen: list[str]) -> None:
    assert choose_weights(files, folders) == chosen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("BAAI/bge-small-en-v1.5", True),
        ("acme/tiny@refs/pr/1", True),
        ("tiny", False),
        ("./acme/tiny", False),
        ("/acme/tiny", False),
        ("../acme/tiny", False),
        ("acme/tiny/1", False),
        ("acme/..", False),
    ],
)
def test_names_differ_from_paths(text: str, expected: bool) -> None:
    assert is_hub_name(text) is expected


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("acme/tiny", "acme/tiny"),
        ("acme/tiny@v2", "acme/tiny"),
        (f"/cache/hub/acme/tiny/{'a' * 40}", "acme/tiny"),
        (f"/cache/hub/models--acme--tiny--x/snapshots/{'a' * 40}", "acme/tiny--x"),
        ("/models/tiny", "tiny"),
        (f"/models/{'a' * 40}", "a" * 40),
        ("/models/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
    ],
)
def test_model_has_its_name_on_the_hub(folder: str, name: str) -> None:
    assert choose_model_name(Path(folder)) == name


def test_existing_folder_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("acme/tiny")
    (tmp_path / "acme" / "tiny").mkdir(parents=True)
    assert not is_hub_name("acme/tiny")
