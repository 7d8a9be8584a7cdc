"""`scripts/embed`: reading inputs, and the files of an output. Needs no server."""

import contextlib
import errno
import os
import sys
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from embed import begin, compare  # noqa: E402  after the path is set
from embed_errors import RefusedError  # noqa: E402
from embed_export import export_file, list_files  # noqa: E402
from embed_inputs import Part, count_rows, find_inputs, read_parts  # noqa: E402
from embed_local import show_messages  # noqa: E402
from embed_options import DTYPES, Options  # noqa: E402
from embed_part import OpenPart, make_vectors, read_vectors  # noqa: E402
from embed_plan import Answer, Manifest, RowError  # noqa: E402
from embed_readers import Columns, choose_columns  # noqa: E402
from embed_store import Store  # noqa: E402

TEXT = Columns(("", "text", ""))


def options(**changes: object) -> Options:
    return Options(inputs=("a",), output=Path("out"), format="parquet")._replace(**changes)  # type: ignore[arg-type]


def read_all(path: Path, columns: Columns = TEXT, part_rows: int = 100, limit: int = 0) -> list[Part]:
    inputs = find_inputs([str(path)], "", has_fields=True)
    return list(read_parts(inputs, columns, part_rows, limit))


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_parts_have_fixed_ranges_of_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{number}\n" for number in range(10_001)))
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfx\r\n\ny")
    parts = read_all(tmp_path, part_rows=4000)
    assert [(part.number, part.first_row, len(part.texts)) for part in parts] == [
        (0, 0, 4000),
        (1, 4000, 4000),
        (2, 8000, 2004),
    ]
    assert parts[2].texts[-4:] == ["10000", "x", "", "y"]
    assert parts[1].columns.column("id").to_pylist() == list(range(4000, 8000))
    assert [len(part.texts) for part in read_all(tmp_path, part_rows=4000, limit=4100)] == [4000, 100]
    assert count_rows(find_inputs([str(tmp_path)], "", has_fields=False)) == 10_003


def test_template_joins_columns() -> None:
    columns = choose_columns(options(template=r"{title}:\n{body}\\{n}"))
    assert columns.text_names == ("title", "body", "n")
    assert columns.make_text({"title": "T", "body": "B", "n": 1}) == "T:\nB\\1"
    for row in ({"title": "T", "body": None, "n": 1}, {"title": "T"}, {"title": [1], "body": "B", "n": 1}):
        with pytest.raises(ValueError, match=r"the row has no 'body'|is not a text"):
            columns.make_text(row)
    with pytest.raises(RefusedError, match="names no column"):
        choose_columns(options(template="title"))


def test_damaged_lines_are_problems_of_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "n": 1}\n[1]\n{"text": null}\n\xff\n{"text": "\xff"}\n\n{"text": 5, "n": 2}')
    (part,) = read_all(path, TEXT._replace(keep=("n",)))
    assert part.texts == ["a", None, None, None, None, None, "5"]
    assert sorted(part.problems) == [1, 2, 3, 4, 5]
    assert part.columns.column("n").to_pylist() == [1, None, None, None, None, None, 2]


def test_kept_columns_have_the_first_blocks_types(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "i": 1, "f": 1, "m": "s", "l": [1]}\n{"text": "b", "f": 0.5, "m": 2}\n')
    (part,) = read_all(path, TEXT._replace(keep=("*",)))
    assert {field.name: str(field.type) for field in part.columns.schema if field.name != "id"} == {
        "text": "string",
        "i": "int64",
        "f": "double",
        "m": "string",
        "l": "string",
    }
    assert part.columns.column("l").to_pylist() == ["[1]", None]
    (tmp_path / "b.jsonl").write_text('{"text": "c", "i": "odd", "f": 1, "m": "s", "l": [1]}\n')
    with pytest.raises(RefusedError, match=r"'i' has string in .*b\.jsonl, but int64 at the start"):
        read_all(tmp_path, TEXT._replace(keep=("i",)))


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (Columns(("", "none", "")), "no column 'none'"),
        (TEXT._replace(id="none"), "no column 'none'"),
        (TEXT._replace(keep=("id",)), "set --id id"),
        (TEXT._replace(keep=("embedding",)), "'embedding'"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "arrow"])
def test_wrong_columns_are_refused(tmp_path: Path, columns: Columns, text: str, ending: str) -> None:
    table = pa.table({"id": [1], "text": ["a"], "embedding": [2]})
    path = tmp_path / f"a.{ending}"
    if ending == "csv":
        path.write_text("id,text,embedding\n1,a,2\n")
    elif ending == "jsonl":
        path.write_text('{"id": 1, "text": "a", "embedding": 2}\n')
    elif ending == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
    with pytest.raises(RefusedError, match=text):
        read_all(path, columns)
    (part,) = read_all(path, TEXT._replace(id="id"))
    assert (part.texts, [str(one) for one in part.columns.column("id").to_pylist()]) == (["a"], ["1"])


def test_missing_and_unreadable_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").touch()
    (tmp_path / "a.parquet").write_text("no Parquet")
    for name, text in (
        ("a.bin", "set --input-format"),
        ("none*", "there is no input"),
        ("a.parquet", "cannot be read"),
    ):
        with pytest.raises(RefusedError, match=text):
            read_all(tmp_path / name)
    with pytest.raises(RefusedError, match="given twice"):
        find_inputs([str(tmp_path / "a.parquet")] * 2, "", has_fields=True)


def test_messages_of_a_ready_server_wait(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = tmp_path / "messages"
    path.write_bytes(b"starting\nvecmill: ready after 1 s\nstopping\n")
    with path.open("rb") as file:
        end = show_messages(file.fileno(), show_messages(file.fileno(), 0, b"ready after"), b"ready after")
        assert (end, capfdbinary.readouterr().err) == (9, b"starting\n")
        show_messages(file.fileno(), end)
    assert capfdbinary.readouterr().err == b"vecmill: ready after 1 s\nstopping\n"


# --- outputs ---------------------------------------------------------------------------------------------------------


def make_part(rows: int = 4) -> Part:
    return Part(0, 0, [f"text {row}" for row in range(rows)], {}, pa.table({"id": range(rows)}))


def make_answer(*rows: int) -> Answer:
    return Answer(list(rows), np.outer(rows, [1.0, -2.0]).astype("<f4").tobytes(), 5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "out")
    with store.lock():
        return store


def test_journal_survives_and_goes_with_its_part(store: Store) -> None:
    part = OpenPart(make_part(), 2)
    for answer in (make_answer(2), make_answer(0, 1)):
        part.add(answer)
        part.unsaved.append(answer)
        store.save_rows(part, 1)
    journal = store.state / "000000.journal"
    journal.write_bytes(journal.read_bytes()[:-3])
    again = store.open_part(make_part(), 2, "float32")
    assert again.list_pending() == [0, 1, 3]
    for row in (0, 1, 3):
        again.add(make_answer(row))
        again.unsaved.append(make_answer(row))
    store.save_rows(again, 1)
    assert store.open_part(make_part(), 2, "float32").list_pending() == [1, 3]
    assert store.check_part(make_part()) is None
    store.write_part(again, "float32")
    assert (store.check_part(make_part()), journal.exists()) == (0, False)
    assert pq.read_table(store.list_parts()[0]).column("embedding").to_pylist() == [[n, -2.0 * n] for n in range(4)]


def test_parts_of_other_rows_are_refused(store: Store) -> None:
    part = store.open_part(make_part(), 2, "float32")
    part.unsaved.append(make_answer(1))
    store.save_rows(part, 1)
    other = make_part()._replace(texts=["other"] * 4)
    with pytest.raises(RefusedError, match="part 0 of the inputs has other rows"):
        store.open_part(other, 2, "float32")
    part.add(make_answer(0, 1, 2, 3))
    store.write_part(part, "float32")
    with pytest.raises(RefusedError, match="part 0 of the inputs has other rows"):
        store.check_part(other)


@pytest.mark.parametrize("name", ["000000.journal", "../part-000000.parquet.tmp", "000000.errors.tmp"])
def test_full_disk_leaves_no_torn_file(store: Store, name: str) -> None:
    part = OpenPart(make_part(), 2)
    part.add(make_answer(0, 1, 2, 3))
    part.errors[3] = RowError("invalid_input", "bad")
    part.unsaved.append(make_answer(0, 1, 2, 3))
    (store.state / name).symlink_to("/dev/full")
    save = store.save_rows if "journal" in name else lambda part, _: store.write_part(part, "float32")
    with pytest.raises(OSError, match="No space left"):
        save(part, 1)
    (store.state / name).unlink(missing_ok=True)
    assert store.list_parts() == []
    assert not list(store.folder.rglob("*.tmp"))
    store.write_part(part, "float32")
    assert store.check_part(make_part()) == 1


def test_failed_append_leaves_an_intact_journal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(descriptor: int, content: bytes) -> None:
        os.write(descriptor, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    part = OpenPart(make_part(), 2)
    part.unsaved = [make_answer(0), make_answer(1)]
    for saved in (0, 1):
        with monkeypatch.context() as patched:
            patched.setattr("embed_store._write_all", write_half)
            with pytest.raises(OSError, match="No space left"):
                store.save_rows(part, 1)
        store.save_rows(part, 1)
        assert store.open_part(make_part(), 2, "float32").list_pending() == list(range(saved + 1, 4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_of_each_dtype_read_back(dtype: str) -> None:
    part = OpenPart(make_part(3), 10)
    part.vectors[:] = np.linspace(-1, 1, 30).reshape(3, 10)
    part.errors[1] = RowError("", "")
    column = make_vectors(part, dtype)
    present, vectors = read_vectors(pa.chunked_array([column]), dtype, 10)
    assert present.tolist() == [True, False, True]
    again = OpenPart(make_part(3), 10)
    again.vectors[present] = vectors
    again.errors = part.errors
    assert make_vectors(again, dtype).equals(column)


def test_only_errors_are_tried_again(store: Store) -> None:
    part = OpenPart(make_part(), 2)
    part.add(make_answer(0, 1, 2, 3))
    part.errors[3] = RowError("internal_error", "fault")
    store.write_part(part, "float32")
    assert (store.check_part(make_part()), store.check_part(make_part(), retry=True)) == (1, None)
    again = store.open_part(make_part(), 2, "float32")
    assert again.list_pending() == [3]
    again.add(make_answer(3))
    store.write_part(again, "float32")
    assert store.check_part(make_part(), retry=True) == 0
    errors = store.folder / "_errors.jsonl"
    errors.touch()
    store.gather_errors(errors)
    assert not errors.exists()


def fail_part(store: Store) -> None:
    """Save a part whose last row has an error, as a run that is killed before it deletes the journal."""
    part = store.open_part(make_part(), 2, "float32")
    for row in part.list_pending():
        part.add(make_answer(row))
        part.unsaved.append(make_answer(row))
    part.unsaved[-1].errors = part.errors = {3: RowError("internal_error", "fault")}
    store.save_rows(part, 4)
    journal = store.state / "000000.journal"
    left = journal.read_bytes()
    store.write_part(part, "float32")
    journal.write_bytes(left)


def test_leftover_journal_is_not_added_twice(store: Store) -> None:
    for tokens in (20, 25, 30):
        fail_part(store)
        assert store.check_part(make_part(), retry=True) is None
        again = store.open_part(make_part(), 2, "float32")
        assert (again.list_pending(), again.tokens) == ([3], tokens)
        assert not (store.state / "000000.journal").exists()


def test_journal_of_a_retry_is_resumed(store: Store) -> None:
    fail_part(store)
    again = store.open_part(make_part(), 2, "float32")
    again.unsaved.append(make_answer(3))
    store.save_rows(again, 1)
    resumed = store.open_part(make_part(), 2, "float32")
    assert (resumed.complete, resumed.tokens) == (True, 25)
    store.part_path(0).unlink()
    assert store.open_part(make_part(), 2, "float32").list_pending() == [0, 1, 2, 3]
    journal = store.state / "000000.journal"
    journal.write_bytes(journal.read_bytes()[:-1])
    assert store.open_part(make_part(), 2, "float32").list_pending() == [0, 1, 2, 3]
    assert not journal.exists()


def finish(store: Store, rows: int = 12) -> Manifest:
    """Write all parts of a finished run of parts of 4 rows, and return its manifest."""
    for number in range(rows // 4):
        part = OpenPart(make_part()._replace(number=number), 2)
        part.add(make_answer(0, 1, 2, 3))
        store.write_part(part, "float32")
    manifest = Manifest(inputs=[], options={}, model="m", revision="r", dimension=2, part_rows=4)
    manifest = msgspec.structs.replace(manifest, rows=rows, digests=store.list_digests())
    store.write_manifest(manifest)
    return manifest


@pytest.mark.parametrize("kills", range(5))
def test_killed_overwrite_leaves_no_finished_run(
    store: Store, monkeypatch: pytest.MonkeyPatch, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = finish(store)
    new = msgspec.structs.replace(manifest, rows=None, digests=[])
    calls = iter(range(10))
    unlink = Path.unlink

    def unlink_some(path: Path, missing_ok: bool = False) -> None:
        if next(calls) == kills:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(Path, "unlink", unlink_some)
        store.clear()
    assert len(store.list_parts()) == max(0, 3 - kills)
    with store.lock():
        assert begin(options(output=store.folder), store, new) == new
    assert "lost parts" not in capsys.readouterr().err


@pytest.mark.parametrize("number", range(3))
def test_lost_part_of_a_finished_run_is_missed(store: Store, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = finish(store)
    new = msgspec.structs.replace(manifest, rows=None, digests=[])
    assert begin(options(output=store.folder), store, new) == manifest
    store.part_path(number).unlink()
    repaired = msgspec.structs.replace(manifest, rows=None)
    assert begin(options(output=store.folder), store, new) == store.read_manifest() == repaired
    assert "has lost parts, so that their rows are embedded again" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "id_column"), [("out.npy", ""), ("out.npy", "id"), ("out.jsonl", "id")])
def test_lost_file_of_a_finished_run_is_missed(store: Store, name: str, id_column: str) -> None:
    output = store.folder.parent / name
    chosen = options(output=output, format=name.partition(".")[2], id=id_column)
    manifest = Manifest(inputs=[], options={}, model="m", revision="r", dimension=2, part_rows=4, rows=4)
    files = list_files(output, chosen.format, with_ids=bool(id_column))
    for lost in files:
        store.write_manifest(manifest)
        for path in files:
            path.touch()
        new = msgspec.structs.replace(manifest, rows=None)
        assert begin(chosen, store, new) == manifest
        lost.unlink()
        assert begin(chosen, store, new) == new


def test_damaged_manifest_does_not_prevent_overwriting(store: Store) -> None:
    (store.folder / "_vecmill.json").write_text("{")
    store.clear()
    assert store.read_manifest() is None


def test_inputs_that_end_too_early_are_refused(store: Store) -> None:
    part = store.open_part(make_part(), 2, "float32")
    part.add(make_answer(0, 1, 2, 3))
    store.write_part(part, "float32")
    store.check_end(1)
    with pytest.raises(RefusedError, match=r"the inputs end after 0 parts, but .* has rows of part 0"):
        store.check_end(0)
    later = OpenPart(make_part()._replace(number=2), 2)
    later.unsaved.append(make_answer(1))
    store.save_rows(later, 1)
    store.check_end(3)
    with pytest.raises(RefusedError, match="rows of part 2"):
        store.check_end(2)


@pytest.mark.parametrize("format_name", ["npy", "jsonl"])
def test_export_of_missing_rows_is_refused(store: Store, format_name: str) -> None:
    part = store.open_part(make_part(), 2, "float32")
    part.add(make_answer(0, 1, 2, 3))
    store.write_part(part, "float32")
    path = store.folder.parent / "whole"
    for rows in (0, 5):
        with pytest.raises(RefusedError, match=f"have 4 rows, but the inputs have {rows}"):
            export_file(store, path, format_name, rows, with_ids=False)
    assert not path.exists()
    export_file(store, path, format_name, 4, with_ids=False)
    assert path.exists()


def test_wrong_flags_keep_the_old_output(store: Store) -> None:
    path = store.folder.parent / "out.npy"
    path.touch()
    manifest = Manifest(inputs=[], options={}, model="m", revision="r", dimension=2, part_rows=4)
    with pytest.raises(RefusedError, match="--retry-errors needs an output of Parquet parts"):
        begin(options(format="npy", output=path, overwrite=True, retry_errors=True), store, manifest)
    assert path.exists()
    assert store.read_manifest() is None


def test_stdin_is_compared_with_digests() -> None:
    part = make_part()
    path = Path("out.npy")
    assert list(compare(iter([part]), [part.digest()], path)) == [part]
    cases: list[tuple[list[Part], list[str], str]] = [
        ([part], ["other"], "other rows than out.npy, from row 0 on"),
        ([part, part], [part.digest()], "other rows"),
        ([part], [part.digest()] * 2, "ends after 1 parts, but out.npy has 2"),
    ]
    for parts, digests, text in cases:
        with pytest.raises(RefusedError, match=text):
            list(compare(iter(parts), digests, path))


@pytest.mark.parametrize("truncated", [0, 1])
def test_truncate_changes_if_no_text_was_cut(store: Store, truncated: int) -> None:
    old = Manifest(inputs=[], options={"truncate": ""}, model="m", revision="r", dimension=2, part_rows=4)
    new = msgspec.structs.replace(old, options={"truncate": "end"})
    assert store.begin(old) == old
    part = store.open_part(make_part(), 2, "float32")
    part.add(make_answer(0, 1, 2, 3))
    part.truncated = truncated
    store.write_part(part, "float32")
    for retry in (False, True):
        if retry and not truncated:
            assert store.begin(new, retry=True) == new
        else:
            with pytest.raises(RefusedError, match="begun with no --truncate, not with --truncate end"):
                store.begin(new, retry=retry)


def test_foreign_folders_and_second_runs_are_refused(store: Store) -> None:
    with store.lock(), pytest.raises(RefusedError, match="another scripts/embed writes"), Store(store.folder).lock():
        pass
    manifest = Manifest(inputs=[], options={}, model="m", revision="r", dimension=2, part_rows=4)
    foreign = store.folder.parent
    (foreign / "letter.txt").touch()
    with pytest.raises(RefusedError, match=r"has letter\.txt, but no _vecmill\.json"), Store(foreign).lock():
        pass
    assert sorted(path.name for path in foreign.iterdir()) == ["letter.txt", "out"]
    assert store.begin(manifest) == manifest
    assert store.begin(msgspec.structs.replace(manifest, model="n")).model == "n"
    (store.folder / "letter.txt").touch()
    (store.folder / "part-000000.parquet").touch()
    store.clear()
    assert sorted(path.name for path in store.folder.iterdir()) == ["_vecmill", "letter.txt"]
    assert store.begin(manifest) == manifest
    (store.folder / "_vecmill.json").write_text("{")
    with pytest.raises(RefusedError, match="damaged"):
        store.begin(manifest)
