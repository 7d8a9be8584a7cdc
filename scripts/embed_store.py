"""Files of an output of `scripts/embed`: manifest, parts, journals and errors.

A part is written to a temporary file, synced and renamed, so that a part that exists is complete. Rows of parts that
are not complete are appended to a journal. Parquet readers skip names that start with `_`.

| file | |
|---|---|
| `part-000000.parquet` | rows of a complete part |
| `_vecmill.json` | `Manifest` |
| `_vecmill/000000.journal` | rows of a part that is not complete |
| `_vecmill/000000.errors` | errors of a complete part, as JSON lines |
| `_vecmill/lock` | locked by the run |
"""

import contextlib
import fcntl
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
from embed_errors import RefusedError
from embed_inputs import Part
from embed_part import OpenPart, make_vectors, read_vectors
from embed_plan import Manifest, decode_records, encode_record, find_difference

_DIGEST, _TOKENS = b"vecmill.digest", b"vecmill.tokens"
_TRUNCATED, _RETRIES = b"vecmill.truncated", b"vecmill.retries"


class Store:
    """Folder of an output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "_vecmill"
        self._lock = -1

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Create the folder, and keep other runs out of it. Raise `RefusedError` if it has files of something else."""
        names = sorted(path.name for path in self.folder.glob("*") if not path.name.startswith("_"))
        if names and not (self.folder / "_vecmill.json").exists():
            raise RefusedError(f"{self.folder} has {names[0]}, but no _vecmill.json; choose another output")
        self.state.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise RefusedError(f"another scripts/embed writes to {self.folder}; wait for its end") from None
        try:
            yield
        finally:
            os.close(self._lock)

    # --- manifest ----------------------------------------------------------------------------------------------------

    def read_manifest(self) -> Manifest | None:
        """Return the manifest of an earlier run, if there is one."""
        try:
            return msgspec.json.decode((self.folder / "_vecmill.json").read_bytes(), type=Manifest)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise RefusedError(
                f"{self.folder}/_vecmill.json is damaged: {error}; use --overwrite to begin again"
            ) from None

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest."""
        with replace_file(self.folder / "_vecmill.json") as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")

    def begin(self, manifest: Manifest, *, retry: bool = False) -> Manifest:
        """Return the manifest to go on with. Raise `RefusedError` if the output is of another run.

        With `retry`, `--truncate` can change if it has cut no text that has a vector.
        """
        old = self.read_manifest()
        if old is None:
            self.write_manifest(manifest)
            return manifest
        if retry and not self._has_cut_texts():
            old = msgspec.structs.replace(old, options=old.options | {"truncate": manifest.options.get("truncate")})
        difference = find_difference(old, manifest)
        if difference and old.rows is None and not self.list_parts() and not self._list_state("journal"):
            # The earlier run has saved no row, perhaps because its flags were wrong.
            self.write_manifest(manifest)
            return manifest
        if difference:
            raise RefusedError(f"{difference}; choose another output, or use --overwrite to begin again")
        return old

    def _has_cut_texts(self) -> bool:
        """Return whether the server has cut a text of a part, or may have cut one of a part that is not complete."""
        cut = any(int(pq.read_schema(path).metadata[_TRUNCATED]) for path in self.list_parts())
        return cut or bool(self._list_state("journal"))

    def clear(self) -> None:
        """Delete what runs have written, and no other file."""
        # A crash before the end must not leave the manifest of a finished run. A full disk has no space for another.
        with contextlib.suppress(RefusedError, OSError):
            if old := self.read_manifest():
                self.write_manifest(msgspec.structs.replace(old, rows=None, digests=[]))
        self.clear_parts()
        for path in [*self.folder.glob("_vecmill.json*"), *self.folder.glob("_errors.jsonl*")]:
            path.unlink()

    def clear_parts(self) -> None:
        """Delete all parts, journals and errors of parts."""
        for path in [*self.folder.glob("part-*.parquet*"), *self._list_state("journal"), *self._list_state("errors")]:
            path.unlink()

    def _list_state(self, kind: str) -> list[Path]:
        """Return the journals or the errors of parts, also unfinished ones."""
        return sorted(self.state.glob(f"*.{kind}*"))

    def check_end(self, parts: int) -> None:
        """Raise `RefusedError` if earlier runs have saved rows after the first `parts` parts, where the inputs end."""
        saved = [int(path.stem.removeprefix("part-")) for path in self.list_parts()]
        saved += [int(path.name.partition(".")[0]) for path in self._list_state("journal")]
        if saved and max(saved) >= parts:
            text = f"the inputs end after {parts} parts, but {self.folder} has rows of part {max(saved)}"
            raise RefusedError(f"{text}; give the same rows again, or use --overwrite to begin again")

    # --- parts -------------------------------------------------------------------------------------------------------

    def list_parts(self) -> list[Path]:
        """Return the paths of all complete parts, in order."""
        return sorted(self.folder.glob("part-*.parquet"))

    def has_parts(self, manifest: Manifest) -> bool:
        """Return whether the complete parts are exactly those of the rows of a finished run."""
        number = math.ceil((manifest.rows or 0) / manifest.part_rows)
        return set(self.list_parts()) == set(map(self.part_path, range(number)))

    def part_path(self, number: int) -> Path:
        """Return the path of a part."""
        return self.folder / f"part-{number:06}.parquet"

    def list_digests(self) -> list[str]:
        """Return the digests of the rows of all complete parts, in order."""
        return [_read_digest(path) for path in self.list_parts()]

    def check_part(self, part: Part, *, retry: bool = False) -> int | None:
        """Return the number of errors of a complete part, or None if the part is not complete.

        With `retry`, a part that has errors is not complete. Raise `RefusedError` if the part has been computed from
        other rows.
        """
        try:
            digest = _read_digest(self.part_path(part.number))
        except FileNotFoundError:
            return None
        if digest != part.digest():
            raise RefusedError(describe_other_rows(part.number, self.part_path(part.number)))
        errors = len(self._read_errors(part.number))
        if retry and errors:
            return None
        # A crash can leave the journal of a part that is complete.
        self._journal_path(part.number).unlink(missing_ok=True)
        return errors

    def open_part(self, part: Part, dimension: int, dtype: str) -> OpenPart:
        """Return a part with the rows of its journal, and with its vectors if only its errors are tried again."""
        opened = OpenPart(part, dimension)
        if self.part_path(part.number).exists():
            table = pq.read_table(self.part_path(part.number))
            present, vectors = read_vectors(table.column("embedding"), dtype, dimension)
            opened.vectors[present] = vectors
            opened.done |= present
            opened.tokens, opened.truncated = (int(table.schema.metadata[name]) for name in (_TOKENS, _TRUNCATED))
            opened.retries = int(table.schema.metadata.get(_RETRIES, 0)) + 1
        path = self._journal_path(part.number)
        if not path.exists():
            return opened
        data = path.read_bytes()
        digest, start = data[: len(opened.digest)], opened.journal_start
        if len(digest) == len(opened.digest) and digest != opened.digest.encode():
            raise RefusedError(describe_other_rows(part.number, path))
        if not data.startswith(start):
            # A crash can leave a part of the start, or the journal of a try that is in the part already.
            path.unlink()
            return opened
        answers, end = decode_records(data[len(start) :])
        # A crash or a full disk can leave a part of a record.
        os.truncate(path, len(start) + end)
        for answer in answers:
            opened.add(answer)
        return opened

    def save_rows(self, part: OpenPart, count: int) -> None:
        """Append the first `count` unsaved answers of a part to its journal."""
        unsaved = part.unsaved[:count]
        with self._journal_path(part.number).open("ab", buffering=0) as file:
            size = file.tell()
            start = b"" if size else part.journal_start
            try:
                _write_all(file.fileno(), start + b"".join(map(encode_record, unsaved)))
            except OSError:
                # What is appended later must not follow a torn record.
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise
        del part.unsaved[: len(unsaved)]

    def write_part(self, part: OpenPart, dtype: str) -> None:
        """Write a complete part and its errors, and delete its journal."""
        path = self.part_path(part.number)
        # The part is complete once it exists. A part that replaces another never has errors that its file lacks.
        again = path.exists()
        if not again:
            self._write_errors(part)
        counts = {_TOKENS: str(part.tokens), _TRUNCATED: str(part.truncated), _RETRIES: str(part.retries)}
        table = part.columns.append_column("embedding", make_vectors(part, dtype))
        table = table.replace_schema_metadata({_DIGEST: part.digest, **counts})
        plain = [name for name in table.column_names if name != "embedding"]
        # Vectors do not compress.
        compression = {name: "none" if name == "embedding" else "zstd" for name in table.column_names}
        with replace_file(path) as temporary:
            pq.write_table(
                table,
                temporary,
                compression=compression,
                use_dictionary=plain or False,
                write_statistics=plain or False,
            )
        if again:
            self._write_errors(part)
        self._journal_path(part.number).unlink(missing_ok=True)

    def _write_errors(self, part: OpenPart) -> None:
        """Replace the errors of a part."""
        path = self._errors_path(part.number)
        if not part.errors:
            path.unlink(missing_ok=True)
            return
        ids = part.columns.column("id")
        lines = [
            {"row": part.first_row + row, "id": ids[row].as_py(), "code": error.code, "message": error.message}
            for row, error in sorted(part.errors.items())
        ]
        with replace_file(path) as temporary:
            temporary.write_bytes(b"".join(msgspec.json.encode(line, enc_hook=str) + b"\n" for line in lines))

    def _read_errors(self, number: int) -> list[bytes]:
        """Return the lines of the errors of a complete part."""
        path = self._errors_path(number)
        return path.read_bytes().splitlines(keepends=True) if path.exists() else []

    def gather_errors(self, path: Path) -> None:
        """Write the errors of all complete parts to one file, or delete the file if there are none."""
        parts = self._list_state("errors")
        done = [part for part in parts if part.suffix == ".errors" and self.part_path(int(part.stem)).exists()]
        if not done:
            path.unlink(missing_ok=True)
            return
        with replace_file(path) as temporary, temporary.open("wb") as file:
            for part in done:
                with part.open("rb") as lines:
                    shutil.copyfileobj(lines, file)

    def _journal_path(self, number: int) -> Path:
        return self.state / f"{number:06}.journal"

    def _errors_path(self, number: int) -> Path:
        return self.state / f"{number:06}.errors"


def _read_digest(path: Path) -> str:
    """Return the digest of the rows of a part, or an empty text for a Parquet file of something else."""
    return str((pq.read_schema(path).metadata or {}).get(_DIGEST, b"").decode())


def describe_other_rows(number: int, path: Path) -> str:
    """Return the message for a part that was computed from other rows."""
    return f"part {number} of the inputs has other rows than {path}; use --overwrite to begin again"


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and give the file its name when the block has written it, or delete it after an error.

    The file is synced before, so that its name never stands for a part of it, not even after a power cut.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.rename(path)
        _sync(path.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
