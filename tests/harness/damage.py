"""Ways to damage a file. Each replaces whatever is at a path."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], None]


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _content(content: bytes) -> Damage:
    def write(path: Path) -> None:
        remove(path)
        path.write_bytes(content)

    return write


def _directory(path: Path) -> None:
    remove(path)
    path.mkdir()


def _fifo(path: Path) -> None:
    remove(path)
    os.mkfifo(path)


def _loop(path: Path) -> None:
    remove(path)
    path.symlink_to(path)


def _dangling(path: Path) -> None:
    remove(path)
    path.symlink_to(path.with_name("nowhere"))


def _huge(path: Path) -> None:
    remove(path)
    with path.open("wb") as file:
        file.truncate(1 << 30)


#: Damage of any file, by name.
DAMAGE: dict[str, Damage] = {
    "empty": _content(b""),
    "blanks": _content(b" \n\n"),
    "garbage": _content(b"garbage\n"),
    "binary": _content(bytes(range(256)) * 4),
    "zeros": _content(bytes(1000)),
    "directory": _directory,
    "fifo": _fifo,
    "loop of links": _loop,
    "dangling link": _dangling,
    "huge": _huge,
}
#: Damage of a CURVE key file, by name.
KEY_DAMAGE: dict[str, Damage] = DAMAGE | {
    "no fields": _content(b"metadata\ncurve\n"),
    "field without a value": _content(b"curve\n    public-key\n"),
    "empty value": _content(b'curve\n    public-key = ""\n'),
    "cut": _content(b'curve\n    public-key = "abcdefgh'),
    "39 characters": _content(b'public-key = "' + b"a" * 39 + b'"\n'),
    "45 characters": _content(b'public-key = "' + b"a" * 45 + b'"\n'),
    "not of Z85": _content(b'public-key = "' + b"~" * 40 + b'"\n'),
    "more than 32 bits": _content(b'public-key = "' + b"#" * 40 + b'"\n'),
}
