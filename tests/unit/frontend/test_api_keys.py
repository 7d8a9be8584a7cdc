"""API keys: the file, who is let in, and the command that makes one."""

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from frontend.rest.api_keys import LOOK_S, Key, Keys, KeysError, read_keys
from tests.harness.damage import DAMAGE
from tests.harness.processes import until

ROOT = Path(__file__).resolve().parents[3]


def entry(name: str, key: str, **fields: object) -> str:
    """A key's entry."""
    lines = [f"{field} = {str(value).lower()}" for field, value in fields.items()]
    return "\n".join(["[[key]]", f'name = "{name}"', f'sha256 = "{digest(key)}"', *lines, ""])


def digest(key: str) -> str:
    """A key's hash."""
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two keys."""
    path = tmp_path / "keys.toml"
    path.write_text(entry("one", "secret", jobs_in_flight=5, tokens_per_minute=7) + entry("two", "other", admin=True))
    return path


def test_file_says_what_keys_there_are(path: Path) -> None:
    assert read_keys(path) == [
        Key(name="one", sha256=digest("secret"), jobs_in_flight=5, tokens_per_minute=7),
        Key(name="two", sha256=digest("other"), admin=True),
    ]
    path.write_text("key = []")
    assert read_keys(path) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[key]\n", "cannot be used"),
        (entry("a", "x", jobs_in_fligth=1), "jobs_in_fligth"),
        (entry("a", "x", jobs_in_flight='"many"'), "jobs_in_flight"),
        (entry("a", "x", jobs_in_flight=-1), "jobs_in_flight"),
        (entry("a", "x", jobs_in_flight=0), "jobs_in_flight"),
        (entry("a", "x", tokens_per_minute=0), "tokens_per_minute"),
        (entry("", "x"), "name"),
        ('[[key]]\nname = "a"\nsha256 = "secret"\n', "sha256"),
        ('[[key]]\nname = "a"\n', "sha256"),
        ("[[keys]]\n", "keys"),
        (entry("a", "x") + entry("a", "y"), "two keys have the name 'a'"),
        (entry("a", "x") + entry("b", "x"), "two keys have the sha256"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_name(path: Path, text: str, told: str) -> None:
    path.write_text(text)
    with pytest.raises(KeysError, match=told) as caught:
        Keys(str(path), "")
    assert str(path) in str(caught.value)


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"none\.toml"):
        Keys(str(tmp_path / "none.toml"), "")


def test_keys_of_the_file_and_of_the_environment_are_found(path: Path) -> None:
    keys = Keys(str(path), "from outside")
    found = [keys.find(f"Bearer {key}") for key in ("secret", "other", "from outside")]
    assert [key and key.name for key in found] == ["one", "two", "API_KEY"]
    assert [key and key.admin for key in found] == [False, True, True]
    assert keys.find("bearer secret")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "secret",
        "Basic secret",
        "Bearer secret ",
        "Bearer  secret",
        "Bearer \udcff",
        f"Bearer {digest('secret')}",
    ],
)
def test_nothing_else_is_a_key(path: Path, header: str) -> None:
    assert Keys(str(path), "").find(header) is None


def test_key_is_needed_when_any_is_configured(path: Path) -> None:
    assert Keys(str(path), "").required
    assert Keys("", "x").required
    assert not Keys("", "").required
    path.write_text("key = []")
    assert Keys(str(path), "").required


def test_file_is_read_again_when_it_has_changed(path: Path) -> None:
    keys = Keys(str(path), "")
    assert not keys.refresh(100.0)
    path.write_text(entry("three", "new"))
    assert not keys.refresh(100.0)
    assert keys.refresh(100.0 + LOOK_S)
    assert keys.find("Bearer new")
    assert keys.find("Bearer secret") is None


def test_broken_file_leaves_the_keys_and_is_told_once(path: Path) -> None:
    keys = Keys(str(path), "")
    path.write_text("[[key]\n")
    with pytest.raises(KeysError):
        keys.refresh(100.0)
    assert not keys.refresh(200.0)
    assert keys.find("Bearer secret")
    path.unlink()
    with pytest.raises(KeysError):
        keys.refresh(300.0)
    assert keys.find("Bearer secret")
    path.write_text(entry("three", "new"))
    assert keys.refresh(400.0)


def test_file_that_may_be_read_again_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(str(path), "")
    path.write_text(entry("three", "new"))
    written = path.stat().st_ctime_ns
    with monkeypatch.context() as patch:
        # As for a file of somebody else: root, who may run this, can read anything.
        patch.setattr(os, "open", refuse_to_open)
        with pytest.raises(KeysError):
            keys.refresh(100.0)
    # The kernel's clock for this may not have ticked since.
    until(lambda: allow(path) != written)
    assert keys.refresh(200.0)
    assert keys.find("Bearer new")


def allow(path: Path) -> int:
    """Change the file's mode; when it was changed last."""
    path.chmod(0o640)
    return path.stat().st_ctime_ns


def refuse_to_open(path: Path, flags: int) -> int:
    """In the place of opening a file."""
    raise PermissionError(13, "Permission denied", str(path))


TWO = entry("one", "secret") + entry("two", "other")
DAMAGED_TEXTS: dict[str, tuple[bytes, str]] = {
    "only comments": (b"# nobody yet\n", "it has no [[key]] entry"),
    "half an entry": (TWO.encode()[:-30], "cannot be used"),
    "another encoding": (TWO.encode("utf-16"), "it is not UTF-8 text"),
    "nested arrays": (b"key = " + b"[\n" * 100_000, "nested too deeply"),
    "dotted keys": (b"a." * 200_000 + b"a = 1", "a line of more than"),
    "a number of many digits": (b"key = " + b"9" * 4000 + b"\n" + b"[[key]]\n", "cannot be used"),
    "a table in the place of a list": (b"[key]\nname = 'a'\n", "array"),
    "a number in the place of a list": (b"key = 1\n", "array"),
}


@pytest.mark.parametrize("kind", [*DAMAGED_TEXTS, *DAMAGE, "unreadable"])
def test_damaged_file_is_told_at_start_and_leaves_the_keys_at_a_reload(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(str(path), "")
    told = "cannot be used"
    if kind in DAMAGED_TEXTS:
        content, told = DAMAGED_TEXTS[kind]
        path.write_bytes(content)
    elif kind == "unreadable":
        path.touch()
        monkeypatch.setattr(os, "open", refuse_to_open)
    else:
        DAMAGE[kind](path)
    for read in (lambda: keys.refresh(100.0), keys.reload, lambda: Keys(str(path), "")):
        with pytest.raises(KeysError) as caught:
            read()
        assert str(caught.value).startswith(f"{path} cannot be used: ")
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
    # Told once a change, not at every request.
    assert not keys.refresh(200.0)
    assert keys.find("Bearer secret")
    assert keys.find("Bearer other")


def test_a_name_of_two_lines_is_told_in_one(path: Path) -> None:
    path.write_text((entry("a", "x") + entry("a", "y")).replace('"a"', '"a\\nb"'))
    with pytest.raises(KeysError, match="two keys have the name 'a") as caught:
        read_keys(path)
    assert "\n" not in str(caught.value)


def test_file_with_a_byte_order_mark_and_line_ends_of_windows_is_read(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + TWO.replace("\n", "\r\n").encode())
    assert [key.name for key in read_keys(path)] == ["one", "two"]


def test_list_that_is_said_to_be_empty_lets_nobody_in(path: Path) -> None:
    keys = Keys(str(path), "")
    path.write_text("key = []")
    assert keys.refresh(100.0)
    assert keys.find("Bearer secret") is None
    assert keys.required


def test_as_many_keys_as_fit_the_file_are_read_soon(path: Path) -> None:
    path.write_text("".join(entry(str(number), str(number)) for number in range(25_000)))
    assert len(read_keys(path)) == 25_000


def test_reload_tells_whether_anything_is_new(path: Path) -> None:
    keys = Keys(str(path), "")
    assert not keys.reload()
    path.write_text(entry("one", "secret"))
    assert keys.reload()
    assert not keys.reload()
    path.write_text(entry("one", "other"))
    assert keys.refresh(100.0)
    assert keys.reload()
    assert not keys.reload()
    assert not Keys("", "x").reload()


# --- scripts/api-key -------------------------------------------------------------------------------------------------


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-P", "-m", "frontend.new_key", *arguments]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_new_key_is_printed_once_and_its_hash_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    first = make('a "name"', "--file", str(path), "--jobs-in-flight", "3", "--tokens-per-minute", "9").stdout.strip()
    second = make("another", "--file", str(path), "--admin").stdout.strip()
    keys = Keys(str(path), "")
    assert first not in path.read_text()
    one, two = keys.find(f"Bearer {first}"), keys.find(f"Bearer {second}")
    assert one
    assert two
    assert (one.name, one.jobs_in_flight, one.tokens_per_minute, one.admin) == ('a "name"', 3, 9, False)
    assert two.admin
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["keys.toml"]


def test_new_key_without_a_file_prints_its_entry(tmp_path: Path) -> None:
    made = make("a")
    path = tmp_path / "keys.toml"
    path.write_text(made.stderr)
    assert Keys(str(path), "").find(f"Bearer {made.stdout.strip()}")


@pytest.mark.parametrize("flag", ["--tokens-per-minute", "--jobs-in-flight"])
def test_limit_of_nothing_is_refused(flag: str) -> None:
    made = make("a", flag, "0")
    assert made.returncode == 2
    assert flag in made.stderr
    assert made.stdout == ""


def test_name_that_is_there_leaves_the_file(path: Path) -> None:
    before = path.read_text()
    made = make("one", "--file", str(path))
    assert made.returncode == 1
    assert made.stderr == f"vecmill: {path} with the new key cannot be used: two keys have the name 'one'\n"
    assert made.stdout == ""
    assert path.read_text() == before


@pytest.mark.parametrize("kind", ["binary", "fifo", "directory", "huge"])
def test_new_key_for_a_damaged_file_leaves_it_and_says_why(path: Path, kind: str) -> None:
    DAMAGE[kind](path)
    made = make("new", "--file", str(path))
    assert (made.returncode, made.stdout, made.stderr.count("\n")) == (1, "", 1)
    assert made.stderr.startswith(f"vecmill: {path} cannot be used: ")
    assert [one.name for one in path.parent.iterdir()] == ["keys.toml"]


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"[[key]\n", "with the new key cannot be used: "), (b"# " + b"x" * 4095, "with the new key cannot be used: ")],
)
def test_new_key_that_makes_no_good_file_is_told_by_the_files_name(path: Path, content: bytes, told: str) -> None:
    path.write_bytes(content)
    made = make("new", "--file", str(path))
    assert (made.returncode, made.stdout, made.stderr.count("\n")) == (1, "", 1)
    assert made.stderr.startswith(f"vecmill: {path} {told}")
    assert path.read_bytes() == content
    assert [one.name for one in path.parent.iterdir()] == ["keys.toml"]


def test_file_that_cannot_be_written_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "none" / "keys.toml"
    made = make("new", "--file", str(path))
    assert (made.returncode, made.stdout) == (1, "")
    assert made.stderr == f"vecmill: {path} cannot be written: No such file or directory\n"
