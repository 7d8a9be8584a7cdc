"""Settings of the three programs: flags, variables, defaults, and what is refused or ignored."""

from collections.abc import Callable
from typing import Any

import pytest

import broker.shell.config
import frontend.config
import workers.config
from broker.core.limits import Limits
from broker.shared.settings import SettingsError, describe_values
from broker.shared.version import VERSION

Load = Callable[[list[str], dict[str, str]], Any]
LOADS: dict[str, Load] = {
    "VECMILL_BROKER_": broker.shell.config.load,
    "VECMILL_WORKER_": workers.config.load,
    "VECMILL_FRONTEND_": frontend.config.load,
}
PROGRAMS = pytest.mark.parametrize(("prefix", "load"), LOADS.items(), ids=LOADS)


@PROGRAMS
def test_flags_override_variables_which_override_defaults(prefix: str, load: Load) -> None:
    assert load([], {"OTHER": "x"}).log_level == "info"
    assert load([], {prefix + "LOG_LEVEL": "error"}).log_level == "error"
    assert load(["--log-level", "debug"], {prefix + "LOG_LEVEL": "error"}).log_level == "debug"


@PROGRAMS
def test_unknown_flags_are_refused(prefix: str, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        load(["--no-such-flag", "1"], {})
    assert "--no-such-flag" in capsys.readouterr().err


@PROGRAMS
def test_unknown_variable_gives_one_warning(prefix: str, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    assert load([], {prefix + "XYZZY": "1"}).log_level == "info"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"ignored the unknown variable {prefix}XYZZY")


@PROGRAMS
def test_misspelled_variable_is_refused(prefix: str, load: Load) -> None:
    # A misspelled VECMILL_FRONTEND_API_KEYS must not open the server.
    with pytest.raises(SettingsError, match=f"{prefix}LOG_LEVLE is unknown; did you mean {prefix}LOG_LEVEL"):
        load([], {prefix + "LOG_LEVLE": "error"})


#: What Kubernetes 1.31 sets for a Service of two ports, after its name in capitals.
SERVICE_LINKS = {
    "SERVICE_HOST": "10.96.0.12",
    "SERVICE_PORT": "7410",
    "SERVICE_PORT_WORKERS": "7411",
    "PORT": "tcp://10.96.0.12:7410",
    "PORT_7410_TCP": "tcp://10.96.0.12:7410",
    "PORT_7410_TCP_PROTO": "tcp",
    "PORT_7410_TCP_PORT": "7410",
    "PORT_7410_TCP_ADDR": "10.96.0.12",
}


@PROGRAMS
@pytest.mark.parametrize("service", ["", "METRICS_"])
def test_service_links_are_ignored(prefix: str, load: Load, service: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert load([], {prefix + service + name: text for name, text in SERVICE_LINKS.items()}) == load([], {})
    assert capsys.readouterr() == ("", "")


def test_port_counts_unless_it_is_a_service_link(capsys: pytest.CaptureFixture[str]) -> None:
    assert frontend.config.load([], {"VECMILL_FRONTEND_PORT": "9000"}).port == 9000
    assert frontend.config.load([], {"VECMILL_FRONTEND_PORT": "tcp://10.96.0.12:8000"}).port == 8000
    assert capsys.readouterr().err == ""
    broker.shell.config.load([], {"VECMILL_BROKER_PORT": "9000"})
    assert "ignored the unknown variable VECMILL_BROKER_PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "environ", "sentence"),
    [
        (["--max-jobs", "seven"], {}, "--max-jobs is 'seven', but must be an integer greater than 0"),
        (
            [],
            {"VECMILL_BROKER_LEASE_S": "nan"},
            "VECMILL_BROKER_LEASE_S is 'nan', but must be a finite number greater than 0",
        ),
        (["--worker-grace-s=inf"], {}, "--worker-grace-s is 'inf', but must be a finite number at least 0"),
        (
            ["--max-client-share=2"],
            {},
            "--max-client-share is '2', but must be a finite number greater than 0 and at most 1",
        ),
        ([], {"VECMILL_BROKER_LOG_FORMAT": "xml"}, "VECMILL_BROKER_LOG_FORMAT is 'xml', but must be one of json, text"),
    ],
)
def test_invalid_values_are_refused_by_source(flags: list[str], environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError) as raised:
        broker.shell.config.load(flags, environ)
    assert str(raised.value) == sentence


def test_flag_replaces_an_invalid_variable() -> None:
    environ = {"VECMILL_BROKER_MAX_JOBS": "x"}
    assert broker.shell.config.load(["--max-jobs", "7"], environ).max_jobs == 7
    with pytest.raises(SettingsError, match="VECMILL_BROKER_MAX_JOBS"):
        broker.shell.config.load(["--max-bytes", "7"], environ)


def test_bounds_are_described_in_words() -> None:
    assert describe_values({"type": "integer", "minimum": 1, "maximum": 9}) == "an integer at least 1 and at most 9"
    assert describe_values({"type": "string", "maxLength": 5}) == "text of at most 5 characters"
    assert describe_values({"type": "number"}) == "a finite number"


def test_numbers_are_converted_from_text() -> None:
    config = broker.shell.config.load(["--lease-s", "2.5"], {"VECMILL_BROKER_MAX_JOBS": "7"})
    assert (config.lease_s, config.max_jobs) == (2.5, 7)


def test_broker_config_holds_all_limits() -> None:
    config = broker.shell.config.load([], {})
    assert isinstance(config, Limits)
    assert {name: getattr(config, name) for name in Limits.__struct_fields__} == {
        name: getattr(Limits(), name) for name in Limits.__struct_fields__
    }


def test_undescribed_fields_are_no_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        broker.shell.config.load(["--max-crashes", "1"], {})
    assert broker.shell.config.load([], {"VECMILL_BROKER_HEARTBEAT_S": "9"}).heartbeat_s == Limits().heartbeat_s
    assert "VECMILL_BROKER_HEARTBEAT_S" in capsys.readouterr().err


@PROGRAMS
def test_version_and_help_are_printed(prefix: str, load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        load(["--version"], {})
    assert capsys.readouterr().out == f"vecmill {VERSION}\n"
    with pytest.raises(SystemExit, match="0"):
        load(["--help"], {prefix + "XYZZY": "1"})
    printed = capsys.readouterr()
    assert prefix + "LOG_LEVEL" in printed.out
    assert printed.err == ""


def test_empty_value_is_named_in_words() -> None:
    assert describe_values({"enum": ["", "CLS"]}) == "one of nothing, CLS"
