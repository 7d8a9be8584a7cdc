"""API keys: the file, look-ups, reloads, and the command that makes a key."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from frontend.rest.api_keys import CHECK_INTERVAL_S, Key, Keys, KeysError, read_keys
from tests.harness.api_keys import hash_key, make_entry
from tests.harness.damage import DAMAGE
from tests.harness.processes import until

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file of two keys."""
    path = tmp_path / "keys.toml"
    path.write_text(
        make_entry("one", "secret", jobs_in_flight=5, tokens_per_minute=7) + make_entry("two", "other", admin=True)
    )
    return path


def test_file_is_read(path: Path) -> None:
    assert read_keys(path) == [
        Key(name="one", sha256=hash_key("secret"), jobs_in_flight=5, tokens_per_minute=7),
        Key(name="two", sha256=hash_key("other"), admin=True),
    ]
    path.write_text("key = []")
    assert read_keys(path) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[key]\n", "cannot be used"),
        (make_entry("a", "x", jobs_in_fligth=1), "jobs_in_fligth"),
        (make_entry("a", "x", jobs_in_flight='"many"'), "jobs_in_flight"),
        (make_entry("a", "x", jobs_in_flight=-1), "jobs_in_flight"),
        (make_entry("a", "x", jobs_in_flight=0), "jobs_in_flight"),
        (make_entry("a", "x", tokens_per_minute=0), "tokens_per_minute"),
        (make_entry("", "x"), "name"),
        ('[[key]]\nname = "a"\nsha256 = "secret"\n', "sha256"),
        ('[[key]]\nname = "a"\n', "sha256"),
        ("[[keys]]\n", "keys"),
        (make_entry("a", "x") + make_entry("a", "y"), "two keys have the name 'a'"),
        (make_entry("a", "x") + make_entry("b", "x"), "two keys have the sha256"),
    ],
)
def test_error_names_file_and_reason(path: Path, text: str, reason: str) -> None:
    path.write_text(text)
    with pytest.raises(KeysError, match=reason) as caught:
        Keys(str(path), "")
    assert str(path) in str(caught.value)


def test_missing_file_is_error(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"none\.toml"):
        Keys(str(tmp_path / "none.toml"), "")


def test_keys_of_file_and_environment_are_found(path: Path) -> None:
    keys = Keys(str(path), "from-outside")
    found = [keys.find_key(f"Bearer {key}") for key in ("secret", "other", "from-outside")]
    assert [key and key.name for key in found] == ["one", "two", "API_KEY"]
    assert [key and key.admin for key in found] == [False, True, True]
    assert keys.find_key("bearer secret")


@pytest.mark.parametrize("header", ["Bearer  secret", " BEARER secret", "Bearer secret \t"])
def test_blanks_around_scheme_and_key_are_ignored(path: Path, header: str) -> None:
    assert Keys(str(path), "").find_key(header)


@pytest.mark.parametrize("around", ["{}\r", "{}\r\n", " {}\t", "\n{}"])
def test_blanks_around_environment_key_are_stripped(around: str) -> None:
    assert Keys("", around.format("secret")).find_key("Bearer secret")


@pytest.mark.parametrize(
    ("value", "reason"),
    [("se\rcret", "inside"), ("se cret", "inside"), ("se\0cret", "inside"), ("\r\n", "only blanks")],
)
def test_unusable_environment_key_is_refused(value: str, reason: str) -> None:
    with pytest.raises(KeysError, match=rf"^the variable API_KEY cannot be used: .*{reason}") as caught:
        Keys("", value)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "secret",
        "Basic secret",
        "Bearer sec ret",
        "Bearersecret",
        "Bearer \udcff",
        f"Bearer {hash_key('secret')}",
    ],
)
def test_other_headers_have_no_key(path: Path, header: str) -> None:
    assert Keys(str(path), "").find_key(header) is None


def test_key_is_required_when_configured(path: Path) -> None:
    assert Keys(str(path), "").required
    assert Keys("", "x").required
    assert not Keys("", "").required
    path.write_text("key = []")
    assert Keys(str(path), "").required


def test_changed_file_is_read_again(path: Path) -> None:
    keys = Keys(str(path), "")
    assert not keys.refresh(100.0)
    path.write_text(make_entry("three", "new"))
    assert not keys.refresh(100.0)
    assert keys.refresh(100.0 + CHECK_INTERVAL_S)
    assert keys.find_key("Bearer new")
    assert keys.find_key("Bearer secret") is None


def test_broken_file_keeps_keys_and_raises_once(path: Path) -> None:
    keys = Keys(str(path), "")
    path.write_text("[[key]\n")
    with pytest.raises(KeysError):
        keys.refresh(100.0)
    assert not keys.refresh(200.0)
    assert keys.find_key("Bearer secret")
    path.unlink()
    with pytest.raises(KeysError):
        keys.refresh(300.0)
    assert keys.find_key("Bearer secret")
    path.write_text(make_entry("three", "new"))
    assert keys.refresh(400.0)


def test_file_with_restored_mode_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(str(path), "")
    path.write_text(make_entry("three", "new"))
    written = path.stat().st_ctime_ns
    with monkeypatch.context() as patch:
        # Patched, because root can read a file whatever its mode.
        patch.setattr(os, "open", fail_to_open)
        with pytest.raises(KeysError):
            keys.refresh(100.0)
    # The kernel's clock of file times may not have ticked since.
    until(lambda: change_mode(path) != written)
    assert keys.refresh(200.0)
    assert keys.find_key("Bearer new")


def change_mode(path: Path) -> int:
    """Change the file's mode, and return its change time."""
    path.chmod(0o640)
    return path.stat().st_ctime_ns


def fail_to_open(path: Path, flags: int) -> int:
    """Replacement of `os.open` that raises."""
    raise PermissionError(13, "Permission denied", str(path))


TWO = make_entry("one", "secret") + make_entry("two", "other")
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
def test_damaged_file_is_rejected_and_keeps_keys(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(str(path), "")
    reason = "cannot be used"
    if kind in DAMAGED_TEXTS:
        content, reason = DAMAGED_TEXTS[kind]
        path.write_bytes(content)
    elif kind == "unreadable":
        path.touch()
        monkeypatch.setattr(os, "open", fail_to_open)
    else:
        DAMAGE[kind](path)
    for read in (lambda: keys.refresh(100.0), keys.reload, lambda: Keys(str(path), "")):
        with pytest.raises(KeysError) as caught:
            read()
        assert str(caught.value).startswith(f"{path} cannot be used: ")
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
    # Raised once for each change, not for every request.
    assert not keys.refresh(200.0)
    assert keys.find_key("Bearer secret")
    assert keys.find_key("Bearer other")


def test_error_with_two_line_name_is_one_line(path: Path) -> None:
    path.write_text((make_entry("a", "x") + make_entry("a", "y")).replace('"a"', '"a\\nb"'))
    with pytest.raises(KeysError, match="two keys have the name 'a") as caught:
        read_keys(path)
    assert "\n" not in str(caught.value)


def test_file_written_on_windows_is_read(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + TWO.replace("\n", "\r\n").encode())
    assert [key.name for key in read_keys(path)] == ["one", "two"]


def test_explicitly_empty_list_rejects_all_keys(path: Path) -> None:
    keys = Keys(str(path), "")
    path.write_text("key = []")
    assert keys.refresh(100.0)
    assert keys.find_key("Bearer secret") is None
    assert keys.required


def test_largest_file_is_read(path: Path) -> None:
    path.write_text("".join(make_entry(str(number), str(number)) for number in range(25_000)))
    assert len(read_keys(path)) == 25_000


def test_reload_returns_whether_keys_changed(path: Path) -> None:
    keys = Keys(str(path), "")
    assert not keys.reload()
    path.write_text(make_entry("one", "secret"))
    assert keys.reload()
    assert not keys.reload()
    path.write_text(make_entry("one", "other"))
    assert keys.refresh(100.0)
    assert keys.reload()
    assert not keys.reload()
    assert not Keys("", "x").reload()


# --- scripts/api-key -------------------------------------------------------------------------------------------------


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/api-key."""
    command = [sys.executable, "-P", "-m", "frontend.new_key", *arguments]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_new_key_is_printed_and_its_hash_stored(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    first = run_command(
        'a "name"', "--file", str(path), "--jobs-in-flight", "3", "--tokens-per-minute", "9"
    ).stdout.strip()
    second = run_command("another", "--file", str(path), "--admin").stdout.strip()
    keys = Keys(str(path), "")
    assert first not in path.read_text()
    first_key, second_key = keys.find_key(f"Bearer {first}"), keys.find_key(f"Bearer {second}")
    assert first_key
    assert second_key
    assert (first_key.name, first_key.jobs_in_flight, first_key.tokens_per_minute, first_key.admin) == (
        'a "name"',
        3,
        9,
        False,
    )
    assert second_key.admin
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["keys.toml"]


def test_new_key_without_file_prints_its_entry(tmp_path: Path) -> None:
    result = run_command("a")
    path = tmp_path / "keys.toml"
    path.write_text(result.stderr)
    assert Keys(str(path), "").find_key(f"Bearer {result.stdout.strip()}")


def test_new_key_needs_no_packages(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-S", "-m", "frontend.new_key", "a"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    bare = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    (tmp_path / "keys.toml").write_text(bare.stderr)
    assert Keys(str(tmp_path / "keys.toml"), "").find_key(f"Bearer {bare.stdout.strip()}")
    command += ["--file", str(tmp_path / "keys.toml")]
    bare = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (bare.returncode, bare.stdout, bare.stderr.count("\n")) == (2, "", 1)
    assert "omit --file and append the entry" in bare.stderr


@pytest.mark.parametrize("flag", ["--tokens-per-minute", "--jobs-in-flight"])
@pytest.mark.parametrize("limit", ["0", "x", "-1", "1.5"])
def test_invalid_limit_is_rejected(flag: str, limit: str) -> None:
    result = run_command("a", flag, limit)
    assert result.returncode == 2
    assert f"{flag}: {limit!r} is not a whole number of at least 1" in result.stderr or limit == "-1"
    assert result.stdout == ""


def test_new_key_without_name_is_refused(path: Path) -> None:
    before = path.read_text()
    result = run_command(" ", "--file", str(path))
    assert (result.returncode, result.stdout) == (2, "")
    assert "name: it is empty; give the name of a client" in result.stderr
    assert path.read_text() == before


@pytest.mark.parametrize("content", ["key = []\n", "# nobody\nkey=[ ] # yet", "\ufeffkey = []"])
def test_new_key_replaces_list_without_keys(path: Path, content: str) -> None:
    path.write_text(content)
    path.chmod(0o640)
    result = run_command("new", "--file", str(path))
    assert result.returncode == 0, result.stderr
    assert [key.name for key in read_keys(path)] == ["new"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_existing_name_leaves_file(path: Path) -> None:
    before = path.read_text()
    result = run_command("one", "--file", str(path))
    assert result.returncode == 2
    assert result.stderr == f"vecmill: {path} with the new key cannot be used: two keys have the name 'one'\n"
    assert result.stdout == ""
    assert path.read_text() == before


@pytest.mark.parametrize("kind", ["binary", "fifo", "directory", "huge"])
def test_new_key_for_damaged_file_is_error(path: Path, kind: str) -> None:
    DAMAGE[kind](path)
    result = run_command("new", "--file", str(path))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"vecmill: {path} cannot be used: ")
    assert [file.name for file in path.parent.iterdir()] == ["keys.toml"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"[[key]\n", "with the new key cannot be used: "), (b"# " + b"x" * 4095, "with the new key cannot be used: ")],
)
def test_new_key_for_invalid_file_leaves_file(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)
    result = run_command("new", "--file", str(path))
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"vecmill: {path} {reason}")
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["keys.toml"]


def test_unwritable_file_is_error(tmp_path: Path) -> None:
    path = tmp_path / "none" / "keys.toml"
    result = run_command("new", "--file", str(path))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"vecmill: {path} cannot be written: No such file or directory\n"
