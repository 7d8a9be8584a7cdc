"""Flags and variables of `scripts/serve`: what is refused, and what is named because it has no effect."""

import argparse
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
        (("--log-level", "loud"), "choose from 'debug', 'info', 'warning', 'error'"),
        (("--max-inputs", "7"), "unrecognized arguments: --max-inputs 7; set VECMILL_FRONTEND_MAX_INPUTS instead"),
        (("--batch-ms=7",), "set VECMILL_WORKER_BATCH_MS instead"),
        (("--rest_port", "7"), "unrecognized arguments: --rest_port 7\n"),
    ],
)
def test_unusable_flag_is_refused(flags: tuple[str, ...], sentence: str) -> None:
    done = parse(*flags)
    assert done.returncode == 2
    assert sentence in done.stderr


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
    "variable", ["VECMILL_SERVICE_HOST", "VECMILL_IMAGE", "VECMILL_FRONTEND_TRUNCATE", "VECMILL_WORKER_STREAMS"]
)
def test_other_variable_is_left_to_its_owner(variable: str) -> None:
    assert parse(**{variable: "1"}).stderr == ""


def test_flags_of_processes_are_known_as_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import serve_flags
    import supervise

    monkeypatch.setattr(sys, "argv", ["serve", "--metrics-bind", ""])
    options: argparse.Namespace = serve_flags.parse_arguments()
    groups = supervise.create_children(options, Path("folder"), Path("sockets"), [Path("health")])
    passed = {}
    for prefix, (child, *_) in zip(("VECMILL_BROKER_", "VECMILL_WORKER_", "VECMILL_FRONTEND_"), groups, strict=True):
        names = {word.removeprefix("--").replace("-", "_").upper() for word in child.command if word.startswith("--")}
        # These are also variables of scripts/serve.
        passed[prefix] = names - {"API_KEYS", "TLS_CERT", "TLS_KEY"}
    assert passed == {prefix: set(names) for prefix, names in serve_flags.PASSED.items()}
