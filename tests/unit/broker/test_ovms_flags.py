"""OVMS's names of flags."""

import pytest

from broker.shared.ovms_flags import translate_flags

KNOWN = {
    "api-keys",
    "cache",
    "config-path",
    "config-poll-s",
    "device",
    "host",
    "log-level",
    "model",
    "model-name",
    "port",
    "streams",
}


@pytest.mark.parametrize(
    ("arguments", "translated"),
    [
        (["--rest_port", "8000", "--config_path", "/c.json"], ["--port", "8000", "--config-path", "/c.json"]),
        (["--rest-port=8000"], ["--port=8000"]),
        (["--model_path", "m", "--model_name", "a/b"], ["--model", "m", "--model-name", "a/b"]),
        (["--target_device", "GPU", "--num_streams", "2"], ["--device", "GPU", "--streams", "2"]),
        (["--rest_bind_address", "0.0.0.0", "--cache_dir=/c"], ["--host", "0.0.0.0", "--cache=/c"]),
        (["--file_system_poll_wait_seconds", "0"], ["--config-poll-s", "0"]),
        (["--log_level", "DEBUG"], ["--log-level=debug"]),
        (["--log_level=TRACE"], ["--log-level=debug"]),
        (["--log-level"], ["--log-level="]),
        (["--port", "8000", "--api_keys", "k_e_y"], ["--port", "8000", "--api-keys", "k_e_y"]),
        (["--model", "--rest_port", "x_y", "-h"], ["--model", "--port", "x_y", "-h"]),
        (["--unknown_flag", "1", "--tls_cert=x"], ["--unknown_flag", "1", "--tls_cert=x"]),
    ],
)
def test_flags_of_ovms_are_translated(arguments: list[str], translated: list[str]) -> None:
    assert translate_flags(arguments, KNOWN) == (translated, [])


def test_port_of_grpc_has_no_effect() -> None:
    translated, sentences = translate_flags(["--port", "9000", "--rest_port", "8000"], KNOWN)
    assert translated == ["--port", "8000"]
    assert sentences == [
        "--port has no effect in Vecmill: it is the port of gRPC, which Vecmill does not have; --rest_port is served"
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--rest_workers", "8"], ["--rest_workers=8"], ["--rest_workers"], ["--nireq", "4"]),
        *(
            ["--metrics_enable"],
            ["--metrics_enable", "true"],
            ["--allow_credentials"],
            ["--allow_credentials", "FALSE"],
        ),
    ],
)
def test_flag_without_effect_is_named(arguments: list[str]) -> None:
    translated, (sentence,) = translate_flags([*arguments, "--port", "1"], KNOWN)
    assert translated == ["--port", "1"]
    assert sentence.startswith(f"{arguments[0].partition('=')[0]} has no effect in Vecmill: ")


def test_own_flag_is_never_without_effect() -> None:
    assert translate_flags(["--task", "x"], {"task"}) == (["--task", "x"], [])


def test_flag_at_the_end_may_lack_its_value() -> None:
    assert translate_flags(["--nireq"], KNOWN)[0] == []
