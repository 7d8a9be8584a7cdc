"""OVMS's flags, as far as they mean something in Vecmill. Needs only Python.

OVMS writes `--rest_port 8000`. Underscores and dashes are the same here.
"""

from collections.abc import Collection, Sequence

#: Vecmill's names of OVMS's flags.
RENAMED = {
    "cache-dir": "cache",
    "file-system-poll-wait-seconds": "config-poll-s",
    "model-path": "model",
    "num-streams": "streams",
    "rest-bind-address": "host",
    "rest-port": "port",
    "target-device": "device",
}
#: OVMS's flags without a meaning in Vecmill, and what to know about them.
WITHOUT_EFFECT = {
    "allow-credentials": "Vecmill needs no cookies",
    "allowed-headers": "Vecmill allows all headers",
    "allowed-methods": "Vecmill allows its own methods",
    "batch-size": "Vecmill chooses batches by itself",
    "cpu-extension": "Vecmill loads no extensions",
    "custom-node-resources-cleaner-interval-seconds": "there are no custom nodes",
    "grpc-bind-address": "there is no gRPC",
    "grpc-channel-arguments": "there is no gRPC",
    "grpc-max-threads": "there is no gRPC",
    "grpc-memory-quota": "there is no gRPC",
    "grpc-workers": "there is no gRPC",
    "idle-sequence-cleanup": "embedding models have no state",
    "layout": "Vecmill chooses layouts by itself",
    "log-path": "the log is on the standard error",
    "low-latency-transformation": "embedding models have no state",
    "max-sequence-number": "embedding models have no state",
    "metrics-enable": "/metrics is always enabled",
    "metrics-list": "/metrics has all metrics",
    "model-version-policy": "the latest version is served",
    "nireq": "Vecmill chooses the number of requests; see --streams",
    "rest-workers": "see --frontends for the number of frontend processes",
    "sequence-cleaner-poll-wait-minutes": "embedding models have no state",
    "shape": "Vecmill chooses shapes by itself",
    "stateful": "embedding models have no state",
    "task": "Vecmill serves only embeddings",
}
#: Flags of this list that may stand alone, or have one of `_SWITCHES`; the others have a value.
_ALONE = {"allow-credentials", "metrics-enable"}
_SWITCHES = {"true", "false"}
#: Names of log levels in OVMS that differ from Vecmill's beyond their case.
_LEVELS = {"trace": "debug"}


def translate_flags(arguments: Sequence[str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the arguments with Vecmill's names of flags, and a sentence for each flag that has no effect.

    `known` are the names of the program's own flags, without dashes at their beginning. Flags that neither Vecmill nor
    OVMS has stay as they are.
    """
    translated: list[str] = []
    sentences: list[str] = []
    names = [_get_name(argument) for argument in arguments]
    has_rest_port = "rest-port" in names
    rest = iter(zip(arguments, names, [*arguments, "--"][1:], strict=True))
    for argument, name, following in rest:
        _, equals, value = argument.partition("=")
        reason = WITHOUT_EFFECT.get(name, "")
        if name == "port" and has_rest_port:
            reason = "it is the port of gRPC, which Vecmill does not have; --rest_port is served"
        if reason and (name not in known or name == "port"):
            sentences.append(f"{argument.partition('=')[0]} has no effect in Vecmill: {reason}")
            alone = following.startswith("--") or (name in _ALONE and following.lower() not in _SWITCHES)
            if not equals and not alone:
                next(rest, None)
            continue
        name = RENAMED.get(name, name)
        if name not in known:
            translated.append(argument)
            continue
        if name == "log-level":
            value = value if equals else next(rest, ("", "", ""))[0]
            equals, value = "=", _LEVELS.get(value.lower(), value.lower())
        translated.append(f"--{name}{equals}{value}")
    return translated, sentences


def _get_name(argument: str) -> str:
    """Return the name of a flag, with dashes, or "" if the argument is no flag."""
    return argument.partition("=")[0][2:].replace("_", "-") if argument.startswith("--") else ""
