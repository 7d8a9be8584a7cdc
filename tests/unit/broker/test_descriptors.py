"""The limit of open descriptors."""

import resource
import subprocess
import sys

import pytest

from broker.shared.descriptors import raise_descriptor_limit
from tests.harness.processes import ROOT


def test_soft_limit_becomes_the_hard_one() -> None:
    script = (
        "import resource; from broker.shared.descriptors import raise_descriptor_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128)); raise_descriptor_limit()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "(128, 128)\n"


def test_system_that_refuses_keeps_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*limits: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_descriptor_limit()


@pytest.mark.parametrize("module", ["broker", "frontend", "workers"])
def test_every_program_raises_its_limit(module: str) -> None:
    """`--version` ends a program at once, after it has raised the limit."""
    script = (
        f"import resource, runpy, sys, atexit; sys.argv = [{module!r}, '--version']\n"
        "atexit.register(lambda: print(resource.getrlimit(resource.RLIMIT_NOFILE)))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "(128, 128)", done.stderr
