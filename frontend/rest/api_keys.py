"""API keys: a file of hashes that may change at any time, and one key of the environment.

Keys are random and long, so that a plain SHA-256 of them can be kept. A key that comes in is looked up in the same time
whatever the file holds: by a hash that nobody outside can compute.
"""

import hashlib
import hmac
import os
import secrets
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from broker.shared.files import explain, read_small_file

#: How often the file is looked at, at most, in seconds.
LOOK_S = 1.0
#: Largest file, some 25,000 keys; it is read between requests.
MAX_BYTES = 4 << 20
#: Longest line. For one of many dots tomllib takes memory by the square of their number.
MAX_LINE = 4096


class KeysError(Exception):
    """A file of keys cannot be used; the text is one sentence for the person who wrote it."""

    def __init__(self, what: object, reason: object) -> None:
        """`what` begins the sentence: the file."""
        super().__init__(f"{what} cannot be used: {reason}")
        self.reason = reason


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody who may use the server."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    #: Of the key, in hexadecimal digits.
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    #: Its own limits; 0 when it has none, which a file says by leaving them out.
    tokens_per_minute: Annotated[int, Meta(ge=1, le=2**63 - 1)] = 0
    jobs_in_flight: Annotated[int, Meta(ge=1, lt=2**32)] = 0
    #: Whether it opens what is for operators.
    admin: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True):
    key: list[Key] | None = None


def read_keys(path: Path) -> list[Key]:
    """Return the keys of a file. Raise KeysError, which says what is wrong with it.

    A file without any entry is an error, for it may be one that is being written. `key = []` is none: it says that
    there are no keys.
    """
    text = read_text(path)
    try:
        return _parse(text)
    except RecursionError:
        raise KeysError(path, "its values are nested too deeply") from None
    except (ValueError, msgspec.ValidationError) as error:
        # A parser's message may hold a line of the file, which holds no key.
        raise KeysError(path, error) from None


def read_text(path: Path) -> str:
    """Return what is in a file of keys. Raise KeysError if that is no text, or cannot be read."""
    try:
        return read_small_file(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise KeysError(path, "it is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise KeysError(path, explain(error)) from None


def _parse(text: str) -> list[Key]:
    if any(len(line) > MAX_LINE for line in text.splitlines()):
        raise ValueError(f"it has a line of more than {MAX_LINE} characters")
    keys = msgspec.convert(tomllib.loads(text), _File).key
    if keys is None:
        raise ValueError("it has no [[key]] entry; add one with scripts/api-key, or write `key = []` to let nobody in")
    for what in ("name", "sha256"):
        value, times = Counter(getattr(key, what) for key in keys).most_common(1)[0] if keys else ("", 0)
        if times > 1:
            raise ValueError(f"two keys have the {what} {value!r}")
    return keys


class Keys:
    """Who is let in. Without any key configured, everybody is."""

    def __init__(self, path: str, environment: str) -> None:
        """`path`: of the file, empty for none; `environment`: one more key. KeysError when the file cannot be used."""
        self._path = Path(path) if path else None
        self._of_environment = [Key(name="API_KEY", sha256=_sha256(environment), admin=True)] if environment else []
        self._secret = secrets.token_bytes(32)
        self._by_hash: dict[bytes, Key] = {}
        self._state: tuple[int, ...] | None = None
        self._looked = 0.0
        #: Whether `refresh` has found other keys since the last `reload`.
        self._refreshed = False
        self._read()

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._path or self._of_environment)

    def find(self, authorization: str) -> Key | None:
        """The key of an Authorization header, if it is one."""
        scheme, _, text = authorization.partition(" ")
        digest = _sha256(text)
        key = self._by_hash.get(self._hash(digest))
        if key is None or scheme.lower() != "bearer" or not hmac.compare_digest(key.sha256, digest):
            return None
        return key

    def refresh(self, now: float) -> bool:
        """Read the file again if it has changed; cheap enough for each request. KeysError (once a change) leaves the
        keys as they were."""
        if self._path is None or now < self._looked + LOOK_S:
            return False
        self._looked = now
        changed = self._state != self._look() and self._read()
        self._refreshed = self._refreshed or changed
        return changed

    def reload(self) -> bool:
        """Read the file now; whether its keys are others than at the last call. KeysError leaves them as they were."""
        changed = self._read() or self._refreshed
        self._refreshed = False
        return changed

    def _read(self) -> bool:
        self._state = self._look()
        keys = (read_keys(self._path) if self._path else []) + self._of_environment
        before, self._by_hash = self._by_hash, {self._hash(key.sha256): key for key in keys}
        return before != self._by_hash

    def _look(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._path) if self._path else None
        except OSError:
            return None
        # The time of its last change also tells of a mode that lets it be read now.
        return (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size) if found else None

    def _hash(self, sha256: str) -> bytes:
        return hashlib.blake2b(sha256.encode(), key=self._secret, digest_size=32).digest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
