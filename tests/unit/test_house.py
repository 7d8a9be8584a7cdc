"""Rules that no linter checks: purity at run time, and one version."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from broker.shared.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
IMPURE = ("zmq", "asyncio", "socket", "threading", "logging", "random", "openvino", "prometheus_client", "sanic")
PURE = ("broker.wire.protocol", "broker.core.scheduler", "frontend.session.session", "workers.session.session")


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_load_nothing_impure(module: str) -> None:
    code = f"import sys; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not set(IMPURE) & set(loaded.split())


def test_version_equals_the_one_in_pyproject() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION
