"""Bodies that cost a server the most to read: what each kind is like at a given length, in bytes."""

from collections.abc import Callable

#: Of the largest body that a frontend takes by default.
LONGEST = 8 * 1024 * 1024


def _request(value: bytes) -> bytes:
    return b'{"model":"fake","input":' + value + b"}"


def _fields(size: int) -> bytes:
    return b"{" + b",".join(b'"%07d":1' % number for number in range(size // 12 - 1)) + b"}"


def _arrays(size: int) -> bytes:
    """As many as may be, all of the same length."""
    inner = b"[" + b"1000," * max(0, size // 99_000 // 5 - 1) + b"1],"
    return _request(b"[" + inner * min(99_000, size // len(inner) - 20) + b"[1]]")


#: None is a request that a frontend takes: each is answered 400, or 404 for its model.
BODIES: dict[str, Callable[[int], bytes]] = {
    "string without an end": lambda size: b"[" * 101 + b'"' + b'\\"' * (size // 2 - 51),
    "string that ends in a backslash": lambda size: b"[" * 101 + b'"' + b'\\"' * (size // 2 - 52) + b"\\",
    "escaped quotes": lambda size: _request(b"[1," + b'"' + b"[" * 101 + b'\\"' * (size // 2 - 90) + b'"]'),
    "backslashes": lambda size: _request(b"[1," + b'"' + b"[" * 101 + b"\\\\" * (size // 2 - 90) + b'"]'),
    "quotes": lambda size: b"[" * 101 + b'"' * (size - 101),
    "brackets": lambda size: b"[" * size,
    "brackets that close": lambda size: b"[" * 101 + b"]" * (size - 101),
    "objects": lambda size: b'{"a":' * (size // 5),
    "fields": _fields,
    "arrays": _arrays,
    "texts": lambda size: _request(b"[" + b'"a",' * (size // 4 - 10) + b"1]"),
    "token ids": lambda size: _request(b"[" + b"1," * (size // 2 - 20) + b"-1]"),
    "long token ids": lambda size: _request(b"[" + (b"9" * 4300 + b",") * (size // 4301 - 1) + b"1]"),
    "fractions": lambda size: _request(b"[" + b"1.5," * (size // 4 - 10) + b"1]"),
    # Whose nearest float is found only by arithmetic with long numbers.
    "fractions near a float": lambda size: _request(b"[" + b"1.7976931348623158079e308," * (size // 26 - 2) + b"1]"),
    "a long fraction": lambda size: _request(b"[0." + b"1" * (size - 40) + b"]"),
    "a long number": lambda size: _request(b"[" + b"9" * (size - 40) + b"]"),
    "a long name": lambda size: b'{"input":"a","model":"' + b"\\u0001" * (size // 6 - 6) + b'"}',
    "blanks": lambda size: b" " * (size - 40) + _request(b"1"),
}  # fmt: skip
