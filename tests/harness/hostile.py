"""Bodies that are expensive to parse: for each kind, a function that returns a body of about a length in bytes."""

from collections.abc import Callable

#: Largest body that a frontend accepts by default, in bytes.
LONGEST = 8 * 1024 * 1024


def _embed(value: bytes) -> bytes:
    """Return a request with this value as its input."""
    return b'{"model":"fake","input":' + value + b"}"


def _build_fields(size: int) -> bytes:
    return b"{" + b",".join(b'"%07d":1' % number for number in range(size // 12 - 1)) + b"}"


def _build_arrays(size: int) -> bytes:
    """Return nearly as many arrays as a body may have, all of the same length."""
    inner = b"[" + b"1000," * max(0, size // 99_000 // 5 - 1) + b"1],"
    return _embed(b"[" + inner * min(99_000, size // len(inner) - 20) + b"[1]]")


#: A frontend rejects each of them: with 404 if only the model is unknown, else with 400.
BODIES: dict[str, Callable[[int], bytes]] = {
    "string without an end": lambda size: b"[" * 101 + b'"' + b'\\"' * (size // 2 - 51),
    "string that ends in a backslash": lambda size: b"[" * 101 + b'"' + b'\\"' * (size // 2 - 52) + b"\\",
    "escaped quotes": lambda size: _embed(b"[1," + b'"' + b"[" * 101 + b'\\"' * (size // 2 - 90) + b'"]'),
    "backslashes": lambda size: _embed(b"[1," + b'"' + b"[" * 101 + b"\\\\" * (size // 2 - 90) + b'"]'),
    "quotes": lambda size: b"[" * 101 + b'"' * (size - 101),
    "brackets": lambda size: b"[" * size,
    "brackets that close": lambda size: b"[" * 101 + b"]" * (size - 101),
    "objects": lambda size: b'{"a":' * (size // 5),
    "fields": _build_fields,
    "arrays": _build_arrays,
    "texts": lambda size: _embed(b"[" + b'"a",' * (size // 4 - 10) + b"1]"),
    "token ids": lambda size: _embed(b"[" + b"1," * (size // 2 - 20) + b"-1]"),
    "long token ids": lambda size: _embed(b"[" + (b"9" * 4300 + b",") * (size // 4301 - 1) + b"1]"),
    "fractions": lambda size: _embed(b"[" + b"1.5," * (size // 4 - 10) + b"1]"),
    # Finding the nearest float takes arithmetic with long numbers.
    "fractions near a float": lambda size: _embed(b"[" + b"1.7976931348623158079e308," * (size // 26 - 2) + b"1]"),
    "a long fraction": lambda size: _embed(b"[0." + b"1" * (size - 40) + b"]"),
    "a long number": lambda size: _embed(b"[" + b"9" * (size - 40) + b"]"),
    "a long name": lambda size: b'{"input":"a","model":"' + b"\\u0001" * (size // 6 - 6) + b'"}',
    "blanks": lambda size: b" " * (size - 40) + _embed(b"1"),
}  # fmt: skip
