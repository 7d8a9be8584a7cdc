"""Flags and variables of `scripts/serve`: what is refused, and what is named because it has no effect."""

import argparse
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.processes import ROOT


def parse(*flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the parser alone."""
    command = [sys.executable, "scripts/serve_flags.py", *flags]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--port", "0"), "'0' is not a port from 1 to 65535, or ADDRESS:PORT"),
        (("--port", "70000"), "'70000' is not a port"),
        (("--port", "x"), "'x' is not a port"),
        (("--workers", "0"), "--workers: '0' is not a whole number of at least 1"),
        (("--frontends", "x"), "--frontends: 'x' is not a whole number of at least 1"),
        (("--truncate", "middle"), "--truncate is 'middle', but must be one of 'none', 'start', 'end'; see "),
        (("--log-level", "loud"), "--log-level is 'loud', but must be one of 'debug', 'info', 'warning', 'error'"),
        (("--host-workers", "2"), "unrecognized arguments: --host-workers 2; set --workers instead"),
        (("--processes", "2"), "unrecognized arguments: --processes 2; set --frontends instead"),
        (("--frontend-bind", "x"), "--frontend-bind x; scripts/serve itself sets --frontend-bind; see"),
        (("--work", "2"), "unrecognized arguments: --work 2; did you mean --workers?"),
        (("--max-inputs", "7"), "unrecognized arguments: --max-inputs 7; set VECMILL_FRONTEND_MAX_INPUTS instead"),
        (("--batch-ms=7",), "set VECMILL_WORKER_BATCH_MS instead"),
        (("--unknown_flag", "7"), "unrecognized arguments: --unknown_flag 7; see"),
        (("--rest_port", "x"), "--port: 'x' is not a port from 1 to 65535"),
    ],
)
def test_unusable_flag_is_refused(flags: tuple[str, ...], sentence: str) -> None:
    done = parse(*flags)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("variable", "similar"),
    [("VECMILL_PROT", "VECMILL_PORT"), ("VECMILL_API_KEYS", "VECMILL_FRONTEND_API_KEYS")],
)
def test_misspelled_variable_is_refused(variable: str, similar: str) -> None:
    done = parse(**{variable: "1"})
    assert done.returncode == 2
    text = f"the variable {variable} is unknown; did you mean {similar}? Rename or unset it"
    assert done.stderr == f"vecmill: {text}\n"


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        ("VECMILL_XYZZY", "is unknown and was ignored"),
        ("VECMILL_FRONTEND_PORT", "has no effect on scripts/serve"),
        ("VECMILL_WORKER_DEVICE", "has no effect on scripts/serve"),
    ],
)
def test_variable_without_effect_is_named(variable: str, reason: str) -> None:
    done = parse(**{variable: "1"})
    assert done.returncode == 0
    assert done.stderr.startswith(f"vecmill: warning: the variable {variable} {reason}")


@pytest.mark.parametrize(
    "variable", ["VECMILL_SERVICE_HOST", "VECMILL_IMAGE", "VECMILL_FRONTEND_NO_TOKEN_IDS", "VECMILL_WORKER_STREAMS"]
)
def test_other_variable_is_left_to_its_owner(variable: str) -> None:
    assert parse(**{variable: "1"}).stderr == ""


def test_line_of_the_seed_is_accepted() -> None:
    done = parse("--port", "9000", "--rest_port", "8000", "--config_path", "/workspace/config.json")
    assert done.returncode == 0
    assert done.stderr == (
        "vecmill: warning: --port has no effect in Vecmill: it is the port of gRPC, which Vecmill does not have; "
        "--rest_port is served\n"
    )


@pytest.mark.parametrize(("content", "reason"), [("", "is empty, but must be an API key"), (None, "could not read")])
def test_unusable_key_file_of_ovms_is_refused(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "key").write_text(content)
    done = parse("--api_key_file", str(tmp_path / "key"))
    assert done.returncode == 2
    assert reason in done.stderr


def test_key_file_of_ovms_replaces_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import serve_flags

    (tmp_path / "key").write_text("secret\nsecond line\n")
    monkeypatch.setenv("API_KEY", "other")
    monkeypatch.setattr(sys, "argv", ["serve", "--api_key_file", str(tmp_path / "key")])
    serve_flags.parse_arguments()
    assert os.environ["API_KEY"] == "secret"


@pytest.mark.parametrize(
    ("flags", "variable", "passed"),
    [
        ([], "", []),
        (["--truncate", "false"], "", ["none"]),
        ([], "none", ["none"]),
        (["--truncate", "end"], "", ["end"]),
    ],
)
def test_truncate_is_passed_if_given(
    flags: list[str], variable: str, passed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import serve_flags
    import supervise

    if variable:
        monkeypatch.setenv("VECMILL_FRONTEND_TRUNCATE", variable)
    monkeypatch.setattr(sys, "argv", ["serve", "--metrics-bind", "", *flags])
    options = serve_flags.parse_arguments()
    *_, (frontend,) = supervise.create_children(options, Path("sockets"), ["CPU"], [Path("health")])
    command = frontend.command
    assert [after for word, after in itertools.pairwise(command) if word == "--truncate"] == passed


def test_mix_of_floats_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import serve_flags
    import supervise

    monkeypatch.setenv("VECMILL_MIX_FLOATS", "false")
    monkeypatch.setattr(sys, "argv", ["serve"])
    command = supervise.list_worker_flags(serve_flags.parse_arguments(), "CPU")
    assert ("--mix-floats", "false") in itertools.pairwise(command)
    # The workers run in one container or unit.
    assert ("--share-quota", "true") in itertools.pairwise(command)
    assert "VECMILL_WORKER_MIX_FLOATS: ${VECMILL_MIX_FLOATS:-true}" in (ROOT / "compose.yaml").read_text()


def test_flags_of_processes_are_known_as_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import serve_flags
    import supervise

    monkeypatch.setattr(sys, "argv", ["serve", "--metrics-bind", ""])
    options: argparse.Namespace = serve_flags.parse_arguments()
    groups = supervise.create_children(options, Path("sockets"), ["CPU"], [Path("health")])
    passed = {}
    broker, workers, _, frontends = groups
    roles = ("VECMILL_BROKER_", broker), ("VECMILL_WORKER_", workers), ("VECMILL_FRONTEND_", frontends)
    for prefix, (child, *_) in roles:
        names = {word.removeprefix("--").replace("-", "_").upper() for word in child.command if word.startswith("--")}
        # These are also variables of scripts/serve.
        passed[prefix] = names - {"API_KEYS", "DATA", "TLS_CERT", "TLS_KEY", "TRUNCATE"}
    assert passed == {prefix: set(names) for prefix, names in serve_flags.PASSED.items()}


@pytest.mark.parametrize(("flag", "runners"), [("none", 0), ("folder", 1)])
def test_data_folder_gets_a_runner(flag: str, runners: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import serve_flags
    import supervise

    monkeypatch.setattr(sys, "argv", ["serve", "--metrics-bind", "", "--data", flag])
    options = serve_flags.parse_arguments()
    *_, found, (frontend,) = supervise.create_children(options, Path("sockets"), ["CPU"], [Path("health")])
    assert len(found) == runners
    passed = str(Path("folder").absolute()) if runners else ""
    for child in (*found, frontend):
        assert ("--data", passed) in itertools.pairwise(child.command)


def test_default_data_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import supervise

    (tmp_path / "file").touch()
    monkeypatch.setattr(supervise, "DATA", tmp_path / "file" / "data")
    assert supervise.choose_data(None) == ""
    assert "no /v1/files and /v1/batches" in "".join(capsys.readouterr())
    assert supervise.choose_data("given") == "given"
