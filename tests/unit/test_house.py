"""Rules of the house that no linter sees: purity, imports, configuration."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

import broker.config
import frontend.config
import workers.config

ROOT = Path(__file__).resolve().parents[2]
IMPURE = ("zmq", "asyncio", "socket", "threading", "logging", "random", "openvino", "sanic")
#: What frontend and workers may import of the broker.
SHARED = {"broker", "broker.protocol", "broker.errors", "broker.curve", "broker.files", "broker.health", "broker.logs"}


@pytest.mark.parametrize(
    "module", ["broker.protocol", "broker.scheduler", "workers.session", "frontend.pending", "frontend.errors"]
)
def test_pure_modules_load_nothing_impure(module: str) -> None:
    code = f"import sys; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not set(IMPURE) & set(loaded.split())


def imports(folder: str) -> set[str]:
    """Every module that a package imports, by its full name."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_packages_know_only_the_wire_and_the_log_of_each_other() -> None:
    ours = ("broker", "workers", "frontend")
    for package in ours:
        foreign = {name for name in imports(package) for other in ours if other != package and name.startswith(other)}
        allowed = set() if package == "broker" else SHARED
        beyond = {
            name for name in foreign if name not in allowed and name.rpartition(".")[0] not in allowed - {"broker"}
        }
        assert not beyond, f"{package} imports {sorted(beyond)}"


CONFIGS = [broker.config, workers.config, frontend.config]


@pytest.mark.parametrize("module", CONFIGS, ids=lambda one: one.__name__)
def test_flags_win_over_the_environment_which_wins_over_defaults(module: ModuleType) -> None:
    prefix = module.PREFIX
    assert module.load([], {"OTHER": "x"}).log_level == "info"
    assert module.load([], {prefix + "LOG_LEVEL": "error"}).log_level == "error"
    assert module.load(["--log-level", "debug"], {prefix + "LOG_LEVEL": "error"}).log_level == "debug"


@pytest.mark.parametrize("module", CONFIGS, ids=lambda one: one.__name__)
def test_unknown_and_ill_typed_settings_are_refused_by_name(
    module: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(msgspec.ValidationError, match="log_levle"):
        module.load([], {module.PREFIX + "LOG_LEVLE": "info"})
    with pytest.raises(msgspec.ValidationError, match="log_level"):
        module.load([], {module.PREFIX + "LOG_LEVEL": "loud"})
    with pytest.raises(SystemExit):
        module.load(["--no-such-flag", "1"], {})
    assert "--no-such-flag" in capsys.readouterr().err


def test_numbers_come_from_text() -> None:
    assert broker.config.load(["--lease-s", "2.5"], {"VECMILL_BROKER_MAX_JOBS": "7"}).lease_s == 2.5
    with pytest.raises(msgspec.ValidationError, match=r"\$\.max_jobs"):
        broker.config.load(["--max-jobs", "seven"], {})
