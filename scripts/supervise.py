"""What `scripts/serve` runs: prepares the model, starts the processes, keeps them running, drains them in order.

It restarts a child that ends by itself, with a delay that doubles up to 10 s; it stops frontends first, then workers,
then the broker, so that every accepted request is answered. Children die with it, whatever ends it. SIGHUP is passed on
to them; only that of a terminal that has been closed ends everything.
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

from frontend.processes import Child, print_status, reload_all  # noqa: E402  after the path is set
from workers.__main__ import choose_model_name  # noqa: E402

#: How long a role's processes get to drain before they are killed, in seconds.
DRAIN_S = 70.0
#: Where the broker serves its metrics by default.
METRICS_BIND = "127.0.0.1:7412"
#: Exit status of what a signal ended before its work was done, as shells have it for Ctrl-C.
INTERRUPTED = 130


def positive(text: str) -> int:
    """A number of processes."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return int(text)


def arguments() -> argparse.Namespace:
    """The flags of scripts/serve."""
    parser = argparse.ArgumentParser(prog="scripts/serve", description="Serve embeddings on this machine.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--device", default="CPU", help="OpenVINO device of the workers (default: %(default)s)")
    parser.add_argument("--workers", type=positive, default=1, help="worker processes (default: %(default)s)")
    parser.add_argument("--frontends", type=positive, default=1, help="frontend processes (default: %(default)s)")
    parser.add_argument("--model", default="", help="model folder (default: all-MiniLM-L6-v2, fetched when missing)")
    parser.add_argument("--model-name", default="", help="name to serve the model under (default: the folder's name)")
    parser.add_argument("--api-keys", default="", help="file of API keys, see scripts/api-key (default: none needed)")
    parser.add_argument(
        "--metrics-bind",
        help=f"HOST:PORT of the broker's /metrics; empty: none (default: {METRICS_BIND} unless that port is taken)",
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="(default: %(default)s)")
    parser.add_argument("--cache", default=str(ROOT / ".cache" / "vecmill"), help="folder for models")
    options = parser.parse_args()
    # The processes run in another folder than the person who gave the paths.
    options.cache = str(Path(options.cache).absolute())
    options.model = options.model and str(Path(options.model).absolute())
    options.api_keys = options.api_keys and str(Path(options.api_keys).absolute())
    return options


def prepare(options: argparse.Namespace) -> Path:
    """The model's folder, fetched and converted."""
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
    """End with a sentence when nobody can listen there: another server's answers are not ours."""
    try:
        if not port:
            raise OSError("0 is no port to call")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
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


def children(options: argparse.Namespace, folder: Path, sockets: Path) -> list[list[Child]]:
    """All processes in the order of their start: the broker, the workers, the frontend."""
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
    """Whether an embedding would be answered. Needs no API key: workers say hello only after an inference."""
    # Whatever proxy the environment names is not for this.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/v2/health/ready", timeout=1):
            return True
    except (OSError, http.client.HTTPException):
        return False


def announce(url: str, model: str, *, key: bool, seconds: float) -> None:
    """The URL and a curl to copy."""
    body = json.dumps({"model": model, "input": ["hello world", "how are you"]})
    headers = "-H 'Content-Type: application/json'" + (' -H "Authorization: Bearer $API_KEY"' if key else "")
    print_status(f"ready after {seconds:.1f} s: {model} at {url}\n")
    print(f"curl {url}/v1/embeddings {headers} -d {shlex.quote(body)}\n", flush=True)


def has_terminal() -> bool:
    """Whether this process has a terminal, and nobody has closed it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def stop(groups: list[list[Child]]) -> None:
    """Frontends, then workers, then the broker."""
    for group in reversed(groups):
        print_status(f"stopping {', '.join(child.name for child in group)}")
        for child in group:
            child.terminate()
        until = time.monotonic() + DRAIN_S
        for child in group:
            child.wait(until)
    print_status("stopped")


def supervise(options: argparse.Namespace, name: str, groups: list[list[Child]], stopping: list[int]) -> int:
    """Keep everything running until a signal comes; the exit status."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)
    url = f"http://[{host}]:{options.port}" if ":" in host else f"http://{host}:{options.port}"
    started, ready = time.monotonic(), False
    everything = [child for group in groups for child in group]
    while not stopping:
        if not ready and any(child.refused for child in everything):
            return 1
        for child in everything:
            child.keep_running(time.monotonic())
        if not ready and is_ready(url):
            ready = True
            key = bool(options.api_keys or os.environ.get("API_KEY"))
            announce(url, name, key=key, seconds=time.monotonic() - started)
        signal.sigtimedwait({signal.SIGCHLD}, 1.0 if ready else 0.05)
    return 0


def main() -> None:
    """Run until SIGINT or SIGTERM; a second one kills everything at once."""
    # nohup lets SIGHUP be ignored: it should run on without its terminal.
    ends_with_terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and has_terminal()
    groups: list[list[Child]] = []
    stopping: list[int] = []

    def on_hangup(number: int, _: object) -> None:
        if ends_with_terminal and not stopping and not has_terminal():
            # It may come twice, from the kernel and from the shell.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.raise_signal(signal.SIGTERM)
        reload_all(child for group in groups for child in group)

    signal.signal(signal.SIGHUP, on_hangup)
    options = arguments()

    def on_signal(number: int, _: object) -> None:
        if stopping:
            for child in (child for group in groups for child in group):
                child.kill()
            shutil.rmtree(sockets, ignore_errors=True)
            os._exit(INTERRUPTED)
        stopping.append(number)

    check_port(options.host, options.port)
    # As for Ctrl-C: what has been begun is taken away.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        folder = prepare(options)
    except KeyboardInterrupt:
        print_status("stopped before the model was there")
        sys.exit(INTERRUPTED)
    sockets = Path(tempfile.mkdtemp(prefix="vecmill-"))
    groups = children(options, folder, sockets)
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    # Blocked, so that the loop can wait for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        status = supervise(options, options.model_name or choose_model_name(folder), groups, stopping)
    finally:
        stop(groups)
        shutil.rmtree(sockets, ignore_errors=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
