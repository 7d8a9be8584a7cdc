"""API keys for tests: entries of a file, and request headers."""

import hashlib


def make_entry(name: str, key: str, **fields: object) -> str:
    """Return a key's entry in the file."""
    lines = [f"{field} = {str(value).lower()}" for field, value in fields.items()]
    return "\n".join(["[[key]]", f'name = "{name}"', f'sha256 = "{hash_key(key)}"', *lines, ""])


def hash_key(key: str) -> str:
    """Return a key's SHA-256 hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def make_header(key: str) -> dict[str, str]:
    """Return the header with a key."""
    return {"Authorization": f"Bearer {key}"}
