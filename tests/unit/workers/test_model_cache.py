"""The cache of converted models: entries are complete or absent, also after a kill or damage."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.workers.test_model_folder import CONFIG, make_tensors, save_tensors, write_folder, write_json
from workers.models import cache
from workers.models.json_files import ModelError
from workers.models.prepare import PreparedModel, prepare_model

ROOT = Path(__file__).resolve().parents[3]
CLI = [sys.executable, "-W", "error", "-m", "workers.models.prepare"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny")


@pytest.fixture
def cache_folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def prepare_tiny(folder: Path, cache_folder: Path) -> tuple[PreparedModel, bool]:
    """Return the prepared model and whether it was converted."""
    output: list[str] = []
    return prepare_model(folder, cache_folder, output.append), bool(output)


def list_scratch(cache_folder: Path) -> list[str]:
    return [path.name for path in (cache_folder / "models").glob(".making-*")]


def test_second_preparation_uses_the_cache(folder: Path, cache_folder: Path) -> None:
    first, converted = prepare_tiny(folder, cache_folder)
    assert converted
    assert prepare_tiny(folder, cache_folder) == (first, False)
    assert list_scratch(cache_folder) == []


def test_cached_model_imports_no_converter(folder: Path, cache_folder: Path) -> None:
    prepare_tiny(folder, cache_folder)
    code = (
        "import sys; from pathlib import Path; from workers.models.prepare import prepare_model\n"
        f"prepare_model(Path({str(folder)!r}), Path({str(cache_folder)!r}), print)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"transformers", "openvino", "openvino_tokenizers", "numpy"} & set(done.stdout.split())


def test_reading_takes_no_lock(folder: Path, cache_folder: Path) -> None:
    first, _ = prepare_tiny(folder, cache_folder)
    (cache_folder / "models" / ".lock").unlink()
    assert prepare_tiny(folder, cache_folder) == (first, False)
    assert not (cache_folder / "models" / ".lock").exists()


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "tokenizer.bin", "tokenizer.xml", "model.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_entry_is_converted_again(folder: Path, cache_folder: Path, name: str, damage: str) -> None:
    first, _ = prepare_tiny(folder, cache_folder)
    path = first.model_path.parent / name
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    assert prepare_tiny(folder, cache_folder) == (first, True)
    assert prepare_tiny(folder, cache_folder) == (first, False)
    assert list_scratch(cache_folder) == []


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "tokenizer.bin", "tokenizer.xml"])
def test_changed_byte_is_noticed(folder: Path, cache_folder: Path, name: str) -> None:
    first, _ = prepare_tiny(folder, cache_folder)
    path = first.model_path.parent / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert prepare_tiny(folder, cache_folder) == (first, True)
    assert prepare_tiny(folder, cache_folder) == (first, False)


@pytest.mark.parametrize("facts", [b"", b"{}", b"null", b"\xff", b'{"files": {}}'])
def test_invalid_facts_are_ignored(folder: Path, cache_folder: Path, facts: bytes) -> None:
    first, _ = prepare_tiny(folder, cache_folder)
    (first.model_path.parent / cache.FACTS).write_bytes(facts)
    assert prepare_tiny(folder, cache_folder) == (first, True)


def test_entry_of_another_version_is_replaced(folder: Path, cache_folder: Path) -> None:
    first, _ = prepare_tiny(folder, cache_folder)
    facts = first.model_path.parent / cache.FACTS
    facts.write_text(facts.read_text().replace("openvino 2", "openvino 1"))
    assert prepare_tiny(folder, cache_folder) == (first, True)


def change_weights(folder: Path) -> None:
    save_tensors(folder / "model.safetensors", make_tensors(seed=1))


def change_pooling(folder: Path) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "cls"})


def change_normalization(folder: Path) -> None:
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
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


def change_dimension(folder: Path) -> None:
    write_json(folder / "config_sentence_transformers.json", {"truncate_dim": 8})


def change_case(folder: Path) -> None:
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": True})


def change_prompt_pooling(folder: Path) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})


@pytest.mark.parametrize(
    "change",
    [
        change_dimension,
        change_case,
        change_prompt_pooling,
        change_weights,
        change_pooling,
        change_normalization,
        change_length,
        change_tokenizer,
        change_activation,
        change_default_prompt,
    ],
)
def test_each_change_of_vectors_changes_the_revision(
    folder: Path, cache_folder: Path, change: Callable[[Path], None]
) -> None:
    first, _ = prepare_tiny(folder, cache_folder)
    change(folder)
    second, converted = prepare_tiny(folder, cache_folder)
    assert converted
    assert second.revision != first.revision
    assert first.model_path.is_file()


def test_names_and_authors_do_not_change_the_revision(folder: Path, cache_folder: Path, tmp_path: Path) -> None:
    first, _ = prepare_tiny(folder, cache_folder)
    by = {"_name_or_path": "x", "transformers_version": "9", "torch_dtype": "float16", "architectures": ["X"]}
    write_json(folder / "config.json", CONFIG | by)
    folder.rename(tmp_path / "other")
    assert prepare_tiny(tmp_path / "other", cache_folder) == (first, False)


def test_prompts_and_matryoshka_do_not_change_the_revision(folder: Path, cache_folder: Path) -> None:
    first, _ = prepare_tiny(folder, cache_folder)
    write_json(folder / "config.json", CONFIG | {"is_matryoshka": True, "matryoshka_dimensions": [8]})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "query: "}})
    second, converted = prepare_tiny(folder, cache_folder)
    assert (second.revision, converted) == (first.revision, False)
    assert second.matryoshka.dimensions == [8]
    assert second.prompts.texts == {"query": "query: "}


def test_failed_conversion_leaves_no_file(folder: Path, cache_folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError):
        prepare_tiny(folder, cache_folder)
    assert [path.name for path in (cache_folder / "models").iterdir()] == [".lock"]


def test_unwritable_cache_is_reported(folder: Path, cache_folder: Path) -> None:
    cache_folder.write_text("a file")
    with pytest.raises(ModelError, match=str(cache_folder)):
        prepare_tiny(folder, cache_folder)


KILLED = """
import os, signal, sys
from pathlib import Path
from workers.models.cache import lock_folder
models = Path(sys.argv[1]) / "models"
with lock_folder(models) as made:
    (made / "model.bin").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_process_leaves_no_usable_entry(folder: Path, cache_folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(cache_folder)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list_scratch(cache_folder)) == 1
    assert prepare_tiny(folder, cache_folder)[1]
    assert list_scratch(cache_folder) == []


def test_two_processes_convert_once(folder: Path, cache_folder: Path) -> None:
    command = [*CLI, "--model", str(folder), "--cache", str(cache_folder)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    output = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], output
    assert output[0][0] == output[1][0]
    assert sum("building" in errors for _, errors in output) == 1
    assert prepare_tiny(folder, cache_folder)[1] is False


def test_second_process_waits_for_the_lock(cache_folder: Path) -> None:
    code = "import sys; from pathlib import Path; from workers.models.cache import lock_folder\n"
    code += "print('started', flush=True)\nwith lock_folder(Path(sys.argv[1])) as made: print(made.name, flush=True)"
    with cache.lock_folder(cache_folder) as made:
        (made / "file").touch()
        other = subprocess.Popen([sys.executable, "-c", code, str(cache_folder)], cwd=ROOT, stdout=-1, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "started\n"
        assert (made / "file").exists()
        assert [path.name for path in cache_folder.glob(".making-*")] == [made.name]
    assert other.communicate()[0].startswith(".making-")
    assert other.returncode == 0


def test_prepare_command_prints_the_entry_or_one_error(folder: Path, cache_folder: Path) -> None:
    def run_command(model: Path) -> subprocess.CompletedProcess[str]:
        command = [*CLI, "--model", str(model), "--cache", str(cache_folder)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run_command(folder)
    assert done.returncode == 0, done.stderr
    assert os.listdir(done.stdout.strip())
    done = run_command(folder / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vecmill: the model folder")
    assert done.stderr.count("\n") == 1


# --- unused entries --------------------------------------------------------------------------------------------------


def store_small_entry(cache_folder: Path, name: str, age_s: float = 0.0) -> cache.Entry:
    """Store an entry of 100 bytes and its facts, that was last used some seconds ago."""

    def write(into: Path) -> cache.Facts:
        (into / "model.bin").write_bytes(bytes(100))
        return cache.Facts(dimension=1, vocabulary_size=1, pad_id=0, tokenizer="t", made_by="")

    entry = cache.store_entry(cache_folder, name, "test", write)
    used_at = time.time() - age_s
    os.utime(cache_folder / "models" / name / cache.FACTS, (used_at, used_at))
    return entry


def list_entries(cache_folder: Path) -> set[str]:
    return {path.parent.name for path in cache_folder.glob(f"models/*/{cache.FACTS}")}


def test_entries_unused_for_long_are_removed(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_UNUSED_S", 100.0)
    for name in ("old", "used", "young"):
        store_small_entry(cache_folder, name, 90)
    monkeypatch.setattr(cache, "MAX_UNUSED_S", 80.0)
    for name in ("used", "young"):
        assert cache.find_entry(cache_folder, name, "test")
    store_small_entry(cache_folder, "new")
    assert list_entries(cache_folder) == {"used", "young", "new"}
    assert list_scratch(cache_folder) == []


def test_oldest_entries_beyond_the_size_are_removed(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_BYTES", 700)
    for age_s in (50, 40, 30, 20, 10):
        store_small_entry(cache_folder, str(age_s), age_s)
    assert list_entries(cache_folder) == {"20", "10"}
    monkeypatch.setattr(cache, "MAX_BYTES", 1)
    store_small_entry(cache_folder, "0")
    assert list_entries(cache_folder) == {"10", "0"}


def test_entry_in_use_stays(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MIN_ENTRIES", 0)
    monkeypatch.setattr(cache, "MAX_BYTES", 0)
    used = store_small_entry(cache_folder, "used", 1000)
    store_small_entry(cache_folder, "free", 1000)
    new = store_small_entry(cache_folder, "new")
    assert list_entries(cache_folder) == {"used", "new"}
    assert used == new
    del used, new
    store_small_entry(cache_folder, "newer")
    assert list_entries(cache_folder) == {"newer"}


def test_prepared_model_keeps_its_files(folder: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, _ = prepare_tiny(folder, cache_folder)
    monkeypatch.setattr(cache, "MIN_ENTRIES", 0)
    monkeypatch.setattr(cache, "MAX_BYTES", 0)
    store_small_entry(cache_folder, "new")
    assert prepared.model_path.exists()
    again, converted = prepare_tiny(folder, cache_folder)
    assert not converted
    del prepared, again
    store_small_entry(cache_folder, "newer")
    assert prepare_tiny(folder, cache_folder)[1]


def test_entry_that_is_being_removed_is_absent(cache_folder: Path) -> None:
    store_small_entry(cache_folder, "entry")
    with (cache_folder / "models" / "entry" / cache.FACTS).open() as facts:
        fcntl.flock(facts, fcntl.LOCK_EX)
        assert cache.find_entry(cache_folder, "entry", "test") is None
    assert cache.find_entry(cache_folder, "entry", "test")


def test_cache_without_locks_can_be_read(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_small_entry(cache_folder, "entry")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    assert cache.find_entry(cache_folder, "entry", "test")
