"""Flags of scripts/serve. Needs nothing but Python, so that `scripts/serve --help` installs no packages."""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from broker.shared.version import VERSION  # noqa: E402  after the path is set
from frontend.welcome import PORT_VARIABLE, split_address  # noqa: E402

#: Default address of the broker's metrics.
METRICS_BIND = "127.0.0.1:7412"


def parse_count(text: str) -> int:
    """Return a number of processes; raise `ArgumentTypeError` if it is not a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def parse_address(text: str) -> tuple[str, int]:
    """Return the address, or "", and the port; raise `ArgumentTypeError` if the port is not a number."""
    try:
        return split_address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, or ADDRESS:PORT") from None


def parse_arguments() -> argparse.Namespace:
    """Return the flags of scripts/serve, with absolute paths."""
    parser = argparse.ArgumentParser(
        prog="scripts/serve",
        description="Serve embeddings on this machine.",
        epilog="Variables such as VECMILL_FRONTEND_MAX_INPUTS set the other settings of a process (docs/operators.md).",
    )
    parser.add_argument("--version", action="version", version=f"vecmill {VERSION}")

    def add(flag: str, default: object, text: str, *, variable: str = "", **options: object) -> None:
        given = os.environ.get(variable, "")
        if variable == PORT_VARIABLE and "://" in given:
            # Kubernetes sets it for a Service called vecmill.
            given = ""
        shown = f"(default: {default}{f'; variable {variable}' if variable else ''})" if default else ""
        shown = shown or (f"(variable {variable})" if variable else "")
        parser.add_argument(flag, default=given or default, help=f"{text} {shown}".rstrip(), **options)  # type: ignore[arg-type]

    add("--host", "", "address to listen on; default: that of --port, or 127.0.0.1")
    add("--port", "8000", "PORT or ADDRESS:PORT to listen on", variable=PORT_VARIABLE, type=parse_address)
    add("--device", "CPU", "OpenVINO device of the workers", variable="VECMILL_DEVICE")
    add("--workers", "1", "number of worker processes", type=parse_count)
    add("--streams", "", "parallel inferences in one worker; OpenVINO chooses if omitted", variable="VECMILL_STREAMS")
    add("--frontends", "1", "number of frontend processes", variable="VECMILL_FRONTENDS", type=parse_count)
    add("--model", "", "model folder; default: all-MiniLM-L6-v2, fetched if missing")
    add("--model-name", "", "name of the model in the API; default: the folder's name", variable="VECMILL_MODEL_NAME")
    text = "file of API keys, made by scripts/api-key; default: no key needed; the variable API_KEY is one more key"
    add("--api-keys", "", text, variable="VECMILL_FRONTEND_API_KEYS")
    add("--tls-cert", "", "PEM file with the certificate; default: no TLS", variable="VECMILL_FRONTEND_TLS_CERT")
    add("--tls-key", "", "PEM file with the certificate's key", variable="VECMILL_FRONTEND_TLS_KEY")
    text = f"HOST:PORT of the broker's /metrics; empty: none; default: {METRICS_BIND} unless that port is taken"
    add("--metrics-bind", None, text)
    add("--log-level", "warning", "least severe messages to log", variable="VECMILL_LOG_LEVEL")
    add("--log-format", "text", "format of log lines, text or json", variable="VECMILL_LOG_FORMAT")
    add("--cache", str(ROOT / ".cache" / "vecmill"), "folder of fetched and converted models")
    options = parser.parse_args()
    address, options.port = options.port
    options.host = options.host or address or "127.0.0.1"
    # The processes run in another folder.
    for name in ("cache", "model", "api_keys", "tls_cert", "tls_key"):
        setattr(options, name, getattr(options, name) and str(Path(getattr(options, name)).absolute()))
    return options


if __name__ == "__main__":
    parse_arguments()
