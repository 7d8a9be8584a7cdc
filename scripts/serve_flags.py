"""Flags of scripts/serve. Needs only Python, so that `scripts/serve --help` installs no packages."""

import argparse
import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from broker.shared.exit import exit_refused  # noqa: E402  after the path is set
from broker.shared.flags import FlagParser, parse_count  # noqa: E402
from broker.shared.ovms_flags import translate_flags  # noqa: E402
from broker.shared.variables import find_variables  # noqa: E402
from broker.shared.version import VERSION  # noqa: E402
from frontend.welcome import PORT_VARIABLE, split_address  # noqa: E402
from workers.models.hub import is_hub_name  # noqa: E402

#: Default folder of files and batches.
DATA = ROOT / ".data"
#: Beginnings of the variables of processes, which check the rest themselves.
PREFIXES = ("VECMILL_BROKER_", "VECMILL_FRONTEND_", "VECMILL_WORKER_")
#: Settings of processes that scripts/serve passes as flags, so that their variables have no effect.
PASSED = {
    "VECMILL_BROKER_": ("FRONTEND_BIND", "WORKER_BIND", "METRICS_BIND", "LOG_LEVEL", "LOG_FORMAT"),
    "VECMILL_FRONTEND_": ("BROKER", "HOST", "PORT", "PROCESSES", "LOG_LEVEL", "LOG_FORMAT"),
    "VECMILL_WORKER_": (
        *("BROKER", "MODEL", "MODEL_NAME", "DEVICE", "CACHE", "HEALTH_FILE", "HOST_WORKERS", "SHARE_QUOTA"),
        *("LOG_LEVEL", "LOG_FORMAT"),
    ),
}
#: Flags of processes that other flags of scripts/serve set.
REPLACED = {"--host-workers": "--workers", "--processes": "--frontends"}
#: Flags that are passed to the workers if they are given, besides those above.
OPTIONAL_WORKER_FLAGS = (
    *("config_path", "model_repository_path", "precision", "mix_floats", "streams", "plugin_config"),
    *("pooling", "normalize", "max_length"),
    *("aliases", "config_poll_s", "unload_idle_s"),
)
#: Flags that are passed to the broker if they are given, besides those above.
OPTIONAL_BROKER_FLAGS = ("cache_bytes", "cache_scope")
#: OVMS's words for where to truncate.
OVMS_TRUNCATE = {"true": "end", "false": "none"}
#: Variables of compose.yaml alone.
COMPOSE_ONLY = ("VECMILL_IMAGE", "VECMILL_BROKER", "VECMILL_WORKERS", "VECMILL_WORKER_MEMORY", "VECMILL_WORKER_CPUS")


def parse_address(text: str) -> tuple[str, int]:
    """Return the address, or "", and the port; raise `ArgumentTypeError` if it is not a valid port."""
    try:
        host, port = split_address(text)
    except ValueError:
        port = 0
    if not 0 < port < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535, or ADDRESS:PORT")
    return host, port


class Parser(FlagParser):
    """Parser whose error for an unknown flag of a process names what sets it here."""

    def describe_error(self, message: str) -> str:
        """See `FlagParser`."""
        unknown = message.removeprefix("unrecognized arguments: ")
        names = [word.partition("=")[0] for word in unknown.split() if word.startswith("--")] * (unknown != message)
        hints = [hint for name in names for hint in find_setting(name)]
        if hints:
            return f"{message}; set {' and '.join(hints)} instead"
        passed = {setting for settings in PASSED.values() for setting in settings}
        own = [name for name in names if name.removeprefix("--").replace("-", "_").upper() in passed]
        return f"{message}; scripts/serve itself sets {own[0]}" if own else super().describe_error(message)


def find_setting(flag: str) -> list[str]:
    """Return the flag or the variables that set a process's flag of this name, if the packages are installed."""
    if flag in REPLACED:
        return [REPLACED[flag]]
    try:
        import broker.shell.config
        import frontend.config
        import workers.config
    except ModuleNotFoundError:
        return []
    configs = (broker.shell.config.Config, frontend.config.Config, workers.config.Config)
    name = flag.removeprefix("--").replace("-", "_")
    return [
        f"{prefix}{name.upper()}"
        for prefix, config in zip(PREFIXES, configs, strict=True)
        if name in config.__struct_fields__ and name.upper() not in PASSED[prefix]
    ]


def check_variables(environ: Mapping[str, str], known: list[str]) -> None:
    """Exit if a variable looks like a misspelled one of scripts/serve, and name those without effect in a warning."""
    for name in sorted(environ.keys() - {*known, *COMPOSE_ONLY}):
        prefix = next(filter(name.startswith, PREFIXES), None)
        if prefix and name.removeprefix(prefix) not in PASSED[prefix]:
            continue
        if not prefix:
            ends = [other.removeprefix("VECMILL_") for other in known]
            for similar in difflib.get_close_matches(name.removeprefix("VECMILL_"), ends, n=1):
                # Ignoring a misspelled variable could open a server, as in the processes.
                exit_refused("", f"the variable {name} is unknown; did you mean VECMILL_{similar}? Rename or unset it")
        reason = "has no effect on scripts/serve, which sets it by flags" if prefix else "is unknown and was ignored"
        print(f"vecmill: warning: the variable {name} {reason}; see scripts/serve --help", file=sys.stderr)


def read_api_key(path: Path) -> str:
    """Return the first line of a file. Exit if the file cannot be read or has no key."""
    try:
        key = path.read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        exit_refused("", f"could not read --api-key-file {path}: {error}")
    if not key:
        exit_refused("", f"the first line of --api-key-file {path} is empty, but must be an API key")
    return key


def parse_arguments() -> argparse.Namespace:
    """Return the flags of scripts/serve, with absolute paths."""
    parser = Parser(
        prog="scripts/serve",
        description="Serve embeddings on this machine.",
        epilog="Variables such as VECMILL_FRONTEND_MAX_INPUTS set the other settings of a process (docs/operators.md).",
    )
    parser.add_argument("--version", action="version", version=f"vecmill {VERSION}")

    environ = find_variables("VECMILL_", os.environ)
    variables: list[str] = []
    known: set[str] = set()

    def add(flag: str, default: object, text: str, *, variable: str = "", **options: object) -> None:
        variables.append(variable)
        known.add(flag.removeprefix("--"))
        given = environ.get(variable, "")
        shown = f"(default: {default}{f'; variable {variable}' if variable else ''})" if default else ""
        shown = shown or (f"(variable {variable})" if variable else "")
        parser.add_argument(flag, default=given or default, help=f"{text} {shown}".rstrip(), **options)  # type: ignore[arg-type]

    add("--host", "", "address to listen on; default: that of --port, or 127.0.0.1")
    add("--port", "8000", "PORT or ADDRESS:PORT to listen on", variable=PORT_VARIABLE, type=parse_address)
    text = "OpenVINO device of the workers, or all; default: target_device of the model's configuration, or CPU"
    add("--device", "", text, variable="VECMILL_DEVICE")
    text = "auto, f32, bf16, f16 or int8: what models are computed in; default: auto, the device's native float if its "
    text += "vectors agree with f32"
    add("--precision", "", text, variable="VECMILL_PRECISION", choices=("auto", "f32", "bf16", "f16", "int8"))
    text = "true or false: whether workers with different floats may serve a model together; default: true"
    add("--mix-floats", "", text, variable="VECMILL_MIX_FLOATS")
    add(
        "--workers",
        "1",
        "number of worker processes, which divide the CPUs; with --device all for each device",
        type=parse_count,
    )
    add(
        "--streams",
        "",
        "parallel inferences in one worker; default: one for each CPU, or what a GPU prefers",
        variable="VECMILL_STREAMS",
    )
    add("--frontends", "1", "number of frontend processes", variable="VECMILL_FRONTENDS", type=parse_count)
    add("--model", "", "model folder, or OWNER/NAME on the Hugging Face hub; default: all-MiniLM-L6-v2")
    add("--config-path", "", "config.json of OVMS with the models to serve")
    add("--model-repository-path", "", "folder with a folder for each model, MODEL or OWNER/MODEL")
    text = "name of the model in the API; default: that on the hub, or the folder's"
    add("--model-name", "", text, variable="VECMILL_MODEL_NAME")
    add("--plugin-config", "", "JSON object of OpenVINO properties")
    add("--pooling", "", "CLS, MEAN or LAST, for every model; default: as the model's files specify")
    add("--normalize", "", "true or false: scale vectors to length 1; default: as the model's files specify")
    add("--max-length", "", "longest input in tokens; default: as the model's files specify")
    add("--aliases", "", "other names of models: ALIAS=MODEL,ALIAS=MODEL")
    add("--config-poll-s", "", "seconds between two looks for changed models and configurations; 0: never; default: 1")
    add("--unload-idle-s", "", "unload a model after this many seconds without a request; default: never")
    text = "memory in bytes for results, which answer equal inputs; 0: compute every input; default: 268435456"
    add("--cache-bytes", "", text, variable="VECMILL_CACHE_BYTES")
    text = "key or all: who shares results, the clients of one API key or all clients; default: key"
    add("--cache-scope", "", text, variable="VECMILL_CACHE_SCOPE", choices=("key", "all"))
    text = "where to truncate inputs that are too long, unless the request decides; none: reject them; default: as the "
    text += "model's configuration specifies"
    choices = {"choices": ("none", "start", "end"), "type": lambda word: OVMS_TRUNCATE.get(word, word)}
    add("--truncate", "", text, variable="VECMILL_FRONTEND_TRUNCATE", **choices)
    text = "file of API keys, made by scripts/api-key; default: no key needed; the variable API_KEY is one more key"
    add("--api-keys", "", text, variable="VECMILL_FRONTEND_API_KEYS")
    add("--api-key-file", "", "file whose first line is an API key, as for OVMS; replaces the variable API_KEY")
    text = f"folder of files and batches, which several servers may share; none: no /v1/files; default: {DATA}"
    add("--data", None, text, variable="VECMILL_FRONTEND_DATA")
    add("--tls-cert", "", "PEM file with the certificate; default: no TLS", variable="VECMILL_FRONTEND_TLS_CERT")
    add("--tls-key", "", "PEM file with the certificate's key", variable="VECMILL_FRONTEND_TLS_KEY")
    text = "HOST:PORT of the broker's /metrics; empty: none; auto: 127.0.0.1:7412, or none if that port is taken"
    add("--metrics-bind", "auto", text)
    levels, formats = ("debug", "info", "warning", "error"), ("text", "json")
    add("--log-level", "warning", "least severe messages to log", variable="VECMILL_LOG_LEVEL", choices=levels)
    add("--log-format", "text", "format of log lines", variable="VECMILL_LOG_FORMAT", choices=formats)
    add("--cache", str(ROOT / ".cache" / "vecmill"), "folder of fetched and converted models")
    arguments, sentences = translate_flags(sys.argv[1:], known)
    for sentence in sentences:
        print(f"vecmill: warning: {sentence}", file=sys.stderr)
    options = parser.parse_args(arguments)
    check_variables(environ, variables)
    if options.api_key_file:
        os.environ["API_KEY"] = read_api_key(Path(options.api_key_file))
    address, options.port = options.port
    options.host = options.host or address or "127.0.0.1"
    options.data = "" if options.data == "none" else options.data
    # The processes run in another folder.
    paths = "cache", "data", "model", "config_path", "model_repository_path", "api_keys", "tls_cert", "tls_key"
    for name in paths:
        value = getattr(options, name)
        if value and not (name == "model" and is_hub_name(value)):
            setattr(options, name, str(Path(value).absolute()))
    return options


if __name__ == "__main__":
    parse_arguments()
