"""Converted models on disk: whole or not there, whoever is killed and whatever is damaged."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.workers.test_model_folder import CONFIG, save, tensors, write_folder, write_json
from workers.models import cache
from workers.models.folder import ModelError
from workers.models.prepare import PreparedModel, prepare_model

ROOT = Path(__file__).resolve().parents[3]
CLI = [sys.executable, "-W", "error", "-m", "workers.models.prepare"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def prepare(folder: Path, place: Path) -> tuple[PreparedModel, bool]:
    """The prepared model, and whether it was converted for it."""
    said: list[str] = []
    return prepare_model(folder, place, said.append), bool(said)


def left_over(place: Path) -> list[str]:
    return [path.name for path in (place / "models").glob(".making-*")]


def test_the_second_time_it_is_there(folder: Path, place: Path) -> None:
    first, converted = prepare(folder, place)
    assert converted
    assert prepare(folder, place) == (first, False)
    assert left_over(place) == []


def test_a_warm_cache_loads_no_converter(folder: Path, place: Path) -> None:
    prepare(folder, place)
    code = (
        "import sys; from pathlib import Path; from workers.models.prepare import prepare_model\n"
        f"prepare_model(Path({str(folder)!r}), Path({str(place)!r}), print)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"transformers", "openvino", "openvino_tokenizers", "numpy"} & set(done.stdout.split())


def test_reading_takes_no_lock(folder: Path, place: Path) -> None:
    first, _ = prepare(folder, place)
    (place / "models" / ".lock").unlink()
    assert prepare(folder, place) == (first, False)
    assert not (place / "models" / ".lock").exists()


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "tokenizer.bin", "tokenizer.xml", "model.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_entry_is_made_again(folder: Path, place: Path, name: str, damage: str) -> None:
    first, _ = prepare(folder, place)
    path = first.model_path.parent / name
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    assert prepare(folder, place) == (first, True)
    assert prepare(folder, place) == (first, False)
    assert left_over(place) == []


@pytest.mark.parametrize("facts", [b"", b"{}", b"null", b"\xff", b'{"files": {}}'])
def test_facts_that_are_none_are_not_believed(folder: Path, place: Path, facts: bytes) -> None:
    first, _ = prepare(folder, place)
    (first.model_path.parent / cache.FACTS).write_bytes(facts)
    assert prepare(folder, place) == (first, True)


def test_what_another_version_made_is_made_again(folder: Path, place: Path) -> None:
    first, _ = prepare(folder, place)
    facts = first.model_path.parent / cache.FACTS
    facts.write_text(facts.read_text().replace("openvino 2", "openvino 1"))
    assert prepare(folder, place) == (first, True)


def change_weights(folder: Path) -> None:
    save(folder / "model.safetensors", tensors(seed=1))


def change_pooling(folder: Path) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "cls"})


def change_normalisation(folder: Path) -> None:
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    write_json(folder / "modules.json", modules)


def change_length(folder: Path) -> None:
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 11})


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"hello"', '"jello"'))


def change_activation(folder: Path) -> None:
    write_json(folder / "config.json", CONFIG | {"hidden_act": "relu"})


def change_default_prompt(folder: Path) -> None:
    config = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    write_json(folder / "config_sentence_transformers.json", config)


@pytest.mark.parametrize(
    "change",
    [
        change_weights,
        change_pooling,
        change_normalisation,
        change_length,
        change_tokenizer,
        change_activation,
        change_default_prompt,
    ],
)
def test_whatever_changes_vectors_is_another_revision(
    folder: Path, place: Path, change: Callable[[Path], None]
) -> None:
    first, _ = prepare(folder, place)
    change(folder)
    second, converted = prepare(folder, place)
    assert converted
    assert second.revision != first.revision
    assert first.model_path.is_file()


def test_names_and_authors_are_not_part_of_the_revision(folder: Path, place: Path, tmp_path: Path) -> None:
    first, _ = prepare(folder, place)
    by = {"_name_or_path": "x", "transformers_version": "9", "torch_dtype": "float16", "architectures": ["X"]}
    write_json(folder / "config.json", CONFIG | by)
    folder.rename(tmp_path / "other")
    assert prepare(tmp_path / "other", place) == (first, False)


def test_what_only_says_how_to_use_a_model_is_not_part_of_the_revision(folder: Path, place: Path) -> None:
    first, _ = prepare(folder, place)
    write_json(folder / "config.json", CONFIG | {"is_matryoshka": True, "matryoshka_dimensions": [8]})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: "}})
    second, converted = prepare(folder, place)
    assert (second.revision, converted) == (first.revision, False)
    assert second.matryoshka.dimensions == [8]
    assert second.prompts.texts == {"query": "query: "}


def test_a_conversion_that_fails_leaves_nothing(folder: Path, place: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError):
        prepare(folder, place)
    assert [path.name for path in (place / "models").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_told(folder: Path, place: Path) -> None:
    place.write_text("a file")
    with pytest.raises(ModelError, match=str(place)):
        prepare(folder, place)


KILLED = """
import os, signal, sys
from pathlib import Path
from workers.models.cache import lock_folder
models = Path(sys.argv[1]) / "models"
with lock_folder(models) as made:
    (made / "model.bin").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_never_used(folder: Path, place: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(place)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(left_over(place)) == 1
    assert prepare(folder, place)[1]
    assert left_over(place) == []


def test_two_at_once_are_both_right_and_convert_once(folder: Path, place: Path) -> None:
    command = [*CLI, "--model", str(folder), "--cache", str(place)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    said = [one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert sum("building" in errors for _, errors in said) == 1
    assert prepare(folder, place)[1] is False


def test_a_maker_waits_for_the_other_and_leaves_its_folder_alone(place: Path) -> None:
    code = "import sys; from pathlib import Path; from workers.models.cache import lock_folder\n"
    code += "print('started', flush=True)\nwith lock_folder(Path(sys.argv[1])) as made: print(made.name, flush=True)"
    with cache.lock_folder(place) as made:
        (made / "kept").touch()
        other = subprocess.Popen([sys.executable, "-c", code, str(place)], cwd=ROOT, stdout=-1, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "started\n"
        assert (made / "kept").exists()
        assert [path.name for path in place.glob(".making-*")] == [made.name]
    assert other.communicate()[0].startswith(".making-")
    assert other.returncode == 0


def test_the_command_prints_the_entry_and_tells_errors_in_one_line(folder: Path, place: Path) -> None:
    def run(model: Path) -> subprocess.CompletedProcess[str]:
        command = [*CLI, "--model", str(model), "--cache", str(place)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert os.listdir(done.stdout.strip())
    done = run(folder / "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("vecmill: the model folder")
    assert done.stderr.count("\n") == 1
