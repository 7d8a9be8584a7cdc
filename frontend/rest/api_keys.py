"""API keys: a file of hashes that may change at any time, and the key of the environment variable `API_KEY`.

The file has plain SHA-256 hashes, which suffice because keys are long and random. A key is looked up by a second hash
under a secret of this process, so that the time of a look-up does not depend on the file.
"""

import hashlib
import hmac
import logging
import os
import secrets
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from broker.shared.files import explain, read_small_file

log = logging.getLogger(__name__)

#: Minimum interval between two checks of the file for changes, in seconds.
CHECK_INTERVAL_S = 1.0
#: Maximum size of the file, about 25,000 keys. The event loop reads the file between requests.
MAX_FILE_BYTES = 4 << 20
#: Maximum characters in a line. For a line of dots tomllib's memory grows with the square of their number.
MAX_LINE = 4096


class KeysError(Exception):
    """File of API keys that cannot be used. The text is one sentence for its author."""

    def __init__(self, subject: object, reason: object) -> None:
        """`subject`, usually the file's path, begins the sentence."""
        super().__init__(f"{subject} cannot be used: {reason}")
        self.reason = reason


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """API key, as in the file."""

    #: Client's name, for logs and fair queueing.
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    #: SHA-256 hash of the key, in hexadecimal digits.
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    #: Limits of this key; 0, which a file cannot have, means no limit.
    tokens_per_minute: Annotated[int, Meta(ge=1, le=2**63 - 1)] = 0
    jobs_in_flight: Annotated[int, Meta(ge=1, lt=2**32)] = 0
    #: Whether the key may use operators' paths.
    admin: bool = False

    @property
    def client(self) -> str:
        """Name of the client for the broker, and owner of files and batches.

        It has a prefix, because the name of a key must differ from every hash of a client without a key.
        """
        return f"key {self.name}"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    key: list[Key] | None = None


def read_keys(path: Path) -> list[Key]:
    """Return the keys of a file. Raise `KeysError` if the file cannot be used.

    A file without any entry is an error, because it may be half written. `key = []` is valid and has no keys.
    """
    text = read_text(path)
    try:
        return _parse_keys(text)
    except RecursionError:
        raise KeysError(path, "its values are nested too deeply") from None
    except (ValueError, msgspec.ValidationError) as error:
        # A parser's message may quote a line of the file, but the file has no keys, only hashes.
        raise KeysError(path, error) from None


def read_text(path: Path) -> str:
    """Return the text of a file of keys. Raise `KeysError` if it cannot be read or is not UTF-8."""
    try:
        return read_small_file(path, MAX_FILE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise KeysError(path, "it is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise KeysError(path, explain(error)) from None


def _parse_keys(text: str) -> list[Key]:
    if any(len(line) > MAX_LINE for line in text.splitlines()):
        raise ValueError(f"it has a line of more than {MAX_LINE} characters")
    keys = msgspec.convert(tomllib.loads(text), _File).key
    if keys is None:
        raise ValueError(
            "it has no [[key]] entry; add one with scripts/api-key, or write `key = []` to reject all keys"
        )
    for field in ("name", "sha256"):
        value, count = Counter(getattr(key, field) for key in keys).most_common(1)[0] if keys else ("", 0)
        if count > 1:
            raise ValueError(f"two keys have the {field} {value!r}")
    return keys


class Keys:
    """The accepted API keys. If none is configured, requests need no key."""

    def __init__(self, path: str, environment: str) -> None:
        """Read the file at `path`, if not empty, and add the key `environment`, if not empty.

        Raise `KeysError` if one of them cannot be used.
        """
        self._path = Path(path) if path else None
        secret = _strip_secret(environment) if environment else ""
        self._environment = [Key(name="API_KEY", sha256=_hash_key(secret), admin=True)] if secret else []
        self._secret = secrets.token_bytes(32)
        self._by_hash: dict[bytes, Key] = {}
        #: What the file was like when it was last read.
        self._stat: tuple[int, ...] | None = None
        self._checked_at = 0.0
        #: Whether `refresh` has changed the keys since the last `reload`.
        self._refreshed = False
        self._read_file()

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._path or self._environment)

    def find_key(self, authorization: str) -> Key | None:
        """Return the key of an Authorization header, or None if the header has no accepted key."""
        scheme, _, text = authorization.strip(" \t").partition(" ")
        digest = _hash_key(text.lstrip(" "))
        key = self._by_hash.get(self._hash_digest(digest))
        if key is None or scheme.lower() != "bearer" or not hmac.compare_digest(key.sha256, digest):
            return None
        return key

    def refresh(self, now: float) -> bool:
        """Read the file again if it has changed, at most once per CHECK_INTERVAL_S. Return whether the keys changed.

        Log and raise `KeysError`, once for each change, if the file cannot be used; the keys stay as they were.
        """
        if self._path is None or now < self._checked_at + CHECK_INTERVAL_S:
            return False
        self._checked_at = now
        changed = self._stat != self._stat_file() and self._reload_file()
        self._refreshed = self._refreshed or changed
        return changed

    def reload(self) -> bool:
        """Read the file now. Return whether the keys changed since the last call.

        Log and raise `KeysError` if the file cannot be used; the keys stay as they were.
        """
        changed = self._reload_file() or self._refreshed
        self._refreshed = False
        return changed

    def _reload_file(self) -> bool:
        try:
            changed = self._read_file()
        except KeysError as error:
            log.error("could not reload API keys, keeping the old ones: %s", error)
            raise
        log.info("reloaded API keys: %s", "changed" if changed else "unchanged")
        return changed

    def _read_file(self) -> bool:
        self._stat = self._stat_file()
        keys = (read_keys(self._path) if self._path else []) + self._environment
        before, self._by_hash = self._by_hash, {self._hash_digest(key.sha256): key for key in keys}
        return before != self._by_hash

    def _stat_file(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._path) if self._path else None
        except OSError:
            return None
        # The change time covers a new mode, with which a file may become readable.
        return (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size) if found else None

    def _hash_digest(self, sha256: str) -> bytes:
        return hashlib.blake2b(sha256.encode(), key=self._secret, digest_size=32).digest()


def _strip_secret(text: str) -> str:
    """Return a key without the blanks and line ends around it, which no client can send.

    Raise `KeysError`, which does not contain the key, if one is inside or if the key is only that.
    """
    secret = text.strip()
    if not secret:
        raise KeysError("the variable API_KEY", "it has only blanks; set a key, or unset the variable for none")
    if not secret.isprintable() or " " in secret:
        raise KeysError("the variable API_KEY", "it has a blank or a line end inside; set a key without any")
    return secret


def _hash_key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
