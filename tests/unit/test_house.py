"""Rules of the house that no linter sees: purity, imports, configuration."""

import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

import broker.shell.config
import frontend.config
import workers.config
from broker.shared.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
IMPURE = ("zmq", "asyncio", "socket", "threading", "logging", "random", "openvino", "sanic")


PURE = ("broker.wire.protocol", "broker.core.scheduler", "frontend.session.session", "workers.session.session")


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_load_nothing_impure(module: str) -> None:
    code = f"import sys; before = set(sys.modules); import {module}; print(*(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not set(IMPURE) & set(loaded.split())


CONFIGS = [broker.shell.config, workers.config, frontend.config]


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
    assert broker.shell.config.load(["--lease-s", "2.5"], {"VECMILL_BROKER_MAX_JOBS": "7"}).lease_s == 2.5
    with pytest.raises(msgspec.ValidationError, match=r"\$\.max_jobs"):
        broker.shell.config.load(["--max-jobs", "seven"], {})


def test_version_is_the_one_in_pyproject() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION
