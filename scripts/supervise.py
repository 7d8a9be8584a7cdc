"""`scripts/serve`: prepare the model, start the processes, restart them if they end, and drain them in order.

A process that ends by itself is restarted after a delay that doubles up to 10 s. Frontends stop first, then workers,
then the broker, so that every admitted request is answered. The kernel kills all processes if this one dies. SIGHUP is
passed on to the processes, except when the terminal was closed, which stops everything.
"""

import argparse
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from frontend.listening import open_sockets  # noqa: E402  after the path is set
from frontend.processes import Child, print_status, reload_all  # noqa: E402  after the path is set
from workers.__main__ import choose_model_name  # noqa: E402

#: Seconds until the processes of a role are killed if they have not drained.
DRAIN_S = 70.0
#: Default address of the broker's metrics.
METRICS_BIND = "127.0.0.1:7412"
#: Exit status after a signal that stopped unfinished work: 128 + SIGINT, as in shells.
INTERRUPTED = 130


def parse_count(text: str) -> int:
    """Return a number of processes; raise `ArgumentTypeError` if it is below 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    """Return the flags of scripts/serve, with absolute paths."""
    parser = argparse.ArgumentParser(prog="scripts/serve", description="Serve embeddings on this machine.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--device", default="CPU", help="OpenVINO device of the workers (default: %(default)s)")
    parser.add_argument(
        "--workers", type=parse_count, default=1, help="number of worker processes (default: %(default)s)"
    )
    parser.add_argument(
        "--frontends", type=parse_count, default=1, help="number of frontend processes (default: %(default)s)"
    )
    parser.add_argument("--model", default="", help="model folder (default: all-MiniLM-L6-v2, fetched if missing)")
    parser.add_argument("--model-name", default="", help="name of the model in the API (default: the folder's name)")
    parser.add_argument(
        "--api-keys", default="", help="file of API keys, made by scripts/api-key (default: no key needed)"
    )
    parser.add_argument(
        "--metrics-bind",
        help=f"HOST:PORT of the broker's /metrics; empty: none (default: {METRICS_BIND} unless that port is taken)",
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="format of log lines (default: %(default)s)"
    )
    parser.add_argument(
        "--cache", default=str(ROOT / ".cache" / "vecmill"), help="folder of fetched and converted models"
    )
    options = parser.parse_args()
    # The processes run in another folder.
    options.cache = str(Path(options.cache).absolute())
    options.model = options.model and str(Path(options.model).absolute())
    options.api_keys = options.api_keys and str(Path(options.api_keys).absolute())
    return options


def prepare_folder(options: argparse.Namespace) -> Path:
    """Fetch and convert the model if needed; return its folder."""
    from workers.models.default import fetch_default_model
    from workers.models.folder import ModelError
    from workers.models.prepare import prepare_model

    cache = Path(options.cache)
    try:
        folder = Path(options.model) if options.model else fetch_default_model(cache, print_status)
        prepare_model(folder, cache, print_status)
    except ModelError as error:
        sys.exit(f"vecmill: {error}")
    return folder


def check_port(host: str, port: int) -> None:
    """Exit with an error if the port is not free, because another server would answer there."""
    try:
        if not port:
            raise OSError("clients cannot connect to port 0")
        for listening in open_sockets(host, port):
            listening.close()
    except (OSError, OverflowError) as error:
        sys.exit(f"vecmill: cannot listen on port {port} of {host} ({error}); choose another with --port")


def choose_metrics_bind() -> str:
    """Return the default address of the broker's metrics, or "" if another process listens there."""
    host, _, port = METRICS_BIND.partition(":")
    try:
        socket.create_server((host, int(port))).close()
    except OSError as error:
        print_status(
            f"no broker metrics: {METRICS_BIND} cannot be used ({error.strerror}); choose another with --metrics-bind"
        )
        return ""
    return METRICS_BIND


def create_children(options: argparse.Namespace, folder: Path, sockets: Path) -> list[list[Child]]:
    """Return all processes in start order: the broker, the workers, the frontend."""
    frontends, workers = f"ipc://{sockets}/frontends", f"ipc://{sockets}/workers"
    python = [sys.executable, "-m"]
    metrics = choose_metrics_bind() if options.metrics_bind is None else options.metrics_bind
    broker = [*python, "broker", "--frontend-bind", frontends, "--worker-bind", workers, "--metrics-bind", metrics]
    worker = [*python, "workers", "--broker", workers, "--model", str(folder), "--device", options.device]
    worker += ["--cache", options.cache, "--model-name", options.model_name]
    frontend = [*python, "frontend", "--broker", frontends, "--host", options.host, "--port", str(options.port)]
    frontend += ["--processes", str(options.frontends), "--api-keys", options.api_keys]
    logs = ["--log-level", "warning", "--log-format", options.log_format]
    return [
        [Child("broker", [*broker, *logs], print_status)],
        [Child(f"worker {number}", [*worker, *logs], print_status) for number in range(1, options.workers + 1)],
        [Child("frontend", [*frontend, *logs], print_status)],
    ]


def is_ready(url: str) -> bool:
    """Return whether the server would answer an embeddings request.

    The readiness path needs no API key. A worker sends its hello only after a first inference.
    """
    # Ignore proxies of the environment.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/v2/health/ready", timeout=1):
            return True
    except (OSError, http.client.HTTPException):
        return False


def print_curl(url: str, model: str, *, key: bool, seconds: float) -> None:
    """Print the URL and a curl command to copy."""
    body = json.dumps({"model": model, "input": ["hello world", "how are you"]})
    headers = "-H 'Content-Type: application/json'" + (' -H "Authorization: Bearer $API_KEY"' if key else "")
    print_status(f"ready after {seconds:.1f} s: {model} at {url}\n")
    print(f"curl {url}/v1/embeddings {headers} -d {shlex.quote(body)}\n", flush=True)


def has_terminal() -> bool:
    """Return whether this process has an open terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def stop_all(groups: list[list[Child]]) -> None:
    """Drain frontends, then workers, then the broker."""
    for group in reversed(groups):
        print_status(f"stopping {', '.join(child.name for child in group)}")
        for child in group:
            child.terminate()
        until = time.monotonic() + DRAIN_S
        for child in group:
            child.wait(until)
    print_status("stopped")


def supervise(options: argparse.Namespace, name: str, groups: list[list[Child]], stopping: list[int]) -> int:
    """Keep all processes running until a signal comes, and return the exit status."""
    host = options.host.split(",")[0].strip()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{host}]:{options.port}" if ":" in host else f"http://{host}:{options.port}"
    started, ready = time.monotonic(), False
    children = [child for group in groups for child in group]
    while not stopping:
        if not ready and any(child.refused for child in children):
            return 1
        for child in children:
            child.keep_running(time.monotonic())
        if not ready and is_ready(url):
            ready = True
            key = bool(options.api_keys or os.environ.get("API_KEY"))
            print_curl(url, name, key=key, seconds=time.monotonic() - started)
        signal.sigtimedwait({signal.SIGCHLD}, 1.0 if ready else 0.05)
    return 0


def main() -> None:
    """Run until SIGINT or SIGTERM; kill all processes at once at a second signal."""
    # nohup ignores SIGHUP, so that a command survives its terminal.
    ends_with_terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and has_terminal()
    groups: list[list[Child]] = []
    stopping: list[int] = []

    def on_hangup(number: int, _: object) -> None:
        if ends_with_terminal and not stopping and not has_terminal():
            # SIGHUP may come twice, from the kernel and from the shell.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.raise_signal(signal.SIGTERM)
        reload_all(child for group in groups for child in group)

    signal.signal(signal.SIGHUP, on_hangup)
    options = parse_arguments()

    def on_signal(number: int, _: object) -> None:
        if stopping:
            for child in (child for group in groups for child in group):
                child.kill()
            shutil.rmtree(sockets, ignore_errors=True)
            os._exit(INTERRUPTED)
        stopping.append(number)

    check_port(options.host, options.port)
    # Handle SIGTERM like Ctrl-C, so that unfinished downloads are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        folder = prepare_folder(options)
    except KeyboardInterrupt:
        print_status("stopped before the model was ready")
        sys.exit(INTERRUPTED)
    sockets = Path(tempfile.mkdtemp(prefix="vecmill-"))
    groups = create_children(options, folder, sockets)
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    # Block SIGCHLD, so that the loop can wait for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        status = supervise(options, options.model_name or choose_model_name(folder), groups, stopping)
    finally:
        stop_all(groups)
        shutil.rmtree(sockets, ignore_errors=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
