"""`scripts/serve`: prepare the model, start the processes, restart them if they end, and drain them in order.

A process that ends by itself is restarted after a delay that doubles up to 10 s. Frontends stop first, then the runner
of batches, then workers, then the broker, so that every admitted request is answered. The kernel kills all processes
if this one dies. SIGHUP is passed on to the processes, except when the terminal was closed, which stops everything.
"""

import argparse
import functools
import http.client
import os
import shutil
import signal
import ssl
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from serve_flags import DATA, OPTIONAL_BROKER_FLAGS, OPTIONAL_WORKER_FLAGS, parse_arguments  # noqa: E402

from broker.shared.exit import INTERRUPTED_STATUS, REFUSED_STATUS, exit_refused  # noqa: E402
from frontend.listening import describe_refusal, open_sockets  # noqa: E402  after the path is set
from frontend.processes import Child, print_status, reload_all  # noqa: E402  after the path is set
from frontend.run_folder import create_run_folder  # noqa: E402
from frontend.welcome import PORT_VARIABLE, format_curl, format_url  # noqa: E402

if TYPE_CHECKING:
    from workers.models.source import Overrides

#: When this process started, on the monotonic clock.
STARTED = time.monotonic()
#: Seconds until the processes of a role are killed if they have not drained.
DRAIN_S = 70.0
#: Seconds from the first answer until the server counts as ready although some workers are not connected.
ALL_WORKERS_S = 30.0


@dataclass(slots=True)
class Served:
    """What a server serves, where workers connect, and the files that show which workers are connected."""

    model: str
    url: str
    needs_key: bool = False
    #: A worker touches its file when the broker has welcomed it, and writes what it computes in.
    health_files: Sequence[Path] = ()
    #: The broker's endpoint for workers.
    broker: str = ""


def list_worker_flags(options: argparse.Namespace, device: str) -> list[str]:
    """Return the flags of a worker that select its models and set how they run."""
    names = ["model", "model_name", "cache", *filter(vars(options).get, OPTIONAL_WORKER_FLAGS)]
    return [
        *_list_flags(options, names),
        "--device",
        device,
        "--host-workers",
        str(options.workers),
        "--share-quota",
        "true",
    ]


def _list_flags(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    return [word for name in names for word in ("--" + name.replace("_", "-"), getattr(options, name))]


def find_devices() -> list[str]:
    """Return the devices that OpenVINO sees."""
    # The import takes a second.
    from workers.engine import device

    return device.find_devices()


def choose_devices(device: str) -> list[str]:
    """Return the devices that get workers."""
    if device.casefold() != "all":
        return [device]
    devices = find_devices()
    # Vectors of an NPU are those of float16, and a model is served in one revision.
    if others := [name for name in devices if name.partition(".")[0] != "NPU"]:
        for name in devices:
            if name not in others:
                print_status(f"no worker on {name}, which computes in float16; for its vectors set --device {name}")
    return others or devices


def prepare_first_model(options: argparse.Namespace, device: str) -> str:
    """Fetch and convert the first model that can be served on a device, and return its name. Exit if there is none.

    The workers prepare the others while they serve.
    """
    from broker.shared.settings import SettingsError
    from workers.config import load, make_options
    from workers.models.json_files import ModelError
    from workers.models.prepare import prepare_model
    from workers.models.sources import find_sources

    cache = Path(options.cache)
    try:
        wanted = make_options(load(list_worker_flags(options, device), os.environ))
        found = find_sources(wanted, cache, print_status)
    except (ModelError, SettingsError) as error:
        exit_refused("", error)
    reasons = {refused.name: refused.reason for refused in found.refused}
    for source in found.sources:
        try:
            check = functools.partial(check_device, device, source.overrides)
            prepare_model(source.folder, cache, print_status, source.overrides, check)
            break
        except ModelError as error:
            reasons[source.name] = str(error)
    else:
        exit_refused("", "; ".join(reasons.values()) or f"{wanted.config} lists no models")
    for name, reason in reasons.items():
        print_status(f"cannot serve {name}: {reason}")
    return source.name


def check_device(device: str, overrides: "Overrides", needs_float32: bool) -> None:
    """Raise `ModelError` if no worker could compute a model, so that it need not be converted."""
    # The imports take a second.
    from workers.engine.device import DeviceError
    from workers.engine.precision import check_precision
    from workers.models.json_files import ModelError

    try:
        check_precision(overrides.device.upper() or device.upper() or "CPU", overrides, needs_float32=needs_float32)
    except DeviceError as error:
        raise ModelError(str(error)) from None


def check_address(host: str, port: int) -> None:
    """Exit with an error if the address cannot be used or is taken, because another server would answer there."""
    try:
        for listening in open_sockets(host, port):
            listening.close()
    except OSError as error:
        exit_refused("", describe_refusal(host, port, error))


def check_data(folder: str | None) -> None:
    """Exit with an error if a given folder of files and batches cannot be made; two processes would report it."""
    if folder:
        try:
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            exit_refused("", f"the folder {folder} of --data cannot be used: {error.strerror}; choose another")


def choose_data(folder: str | None) -> str:
    """Return the folder of files and batches; "" if the default folder cannot be written."""
    if folder is None:
        try:
            DATA.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=DATA):
                pass
        except OSError as error:
            print_status(f"no /v1/files and /v1/batches: {DATA} cannot be written ({error.strerror}); choose --data")
            return ""
    return str(DATA) if folder is None else folder


def create_children(
    options: argparse.Namespace, sockets: Path, devices: Sequence[str], health_files: Sequence[Path]
) -> list[list[Child]]:
    """Return all processes in start order: broker, a worker for each device and health file, runner, frontend."""
    frontends, workers = f"ipc://{sockets}/frontends", f"ipc://{sockets}/workers"
    python = [sys.executable, "-m"]
    broker = [*python, "broker", "--frontend-bind", frontends, "--worker-bind", workers]
    broker += ["--metrics-bind", options.metrics_bind]
    broker += _list_flags(options, filter(vars(options).get, OPTIONAL_BROKER_FLAGS))
    worker = [*python, "workers", "--broker", workers]
    frontend = [*python, "frontend", "--broker", frontends, "--host", options.host, "--port", str(options.port)]
    frontend += ["--processes", str(options.frontends), "--api-keys", options.api_keys]
    frontend += ["--tls-cert", options.tls_cert, "--tls-key", options.tls_key]
    runner = [*python, "frontend.batches", "--broker", frontends]
    data = choose_data(options.data)
    for command in (frontend, runner):
        command += ["--data", data]
        command += ["--truncate", options.truncate] * bool(options.truncate)
    logs = ["--log-level", options.log_level, "--log-format", options.log_format]
    worker_children = []
    for number, (device, file) in enumerate(zip(devices, health_files, strict=True), 1):
        name = f"worker {number}{f' on {device}' * (len(set(devices)) > 1)}"
        command = [*worker, *list_worker_flags(options, device), *logs, "--health-file", str(file)]
        worker_children.append(Child(name, command, print_status))
    return [
        [Child("broker", [*broker, *logs], print_status)],
        worker_children,
        [Child("runner of batches", [*runner, *logs], print_status)] if data else [],
        [Child("frontend", [*frontend, *logs], print_status)],
    ]


def is_ready(url: str) -> bool:
    """Return whether the server would answer an embeddings request.

    The readiness path needs no API key. A worker sends its hello only after a first inference.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The certificate is for the name that clients use, and this connection stays on this machine.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    # Ignore proxies of the environment.
    handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    direct = urllib.request.build_opener(*handlers)
    try:
        with direct.open(f"{url}/v2/health/ready", timeout=1):
            return True
    except (OSError, http.client.HTTPException):
        return False


def print_ready(served: Served, workers: int) -> None:
    """Print the URL, where other workers connect, and a curl command to copy."""
    wanted = len(served.health_files)
    count = f"{wanted} worker{'s' * (wanted != 1)}" if workers >= wanted else f"only {workers} of {wanted} workers"
    computed_in = " and ".join(sorted({file.read_text() for file in served.health_files if file.exists()} - {""}))
    count += f" in {computed_in}" * bool(computed_in)
    print_status(f"ready after {time.monotonic() - STARTED:.1f} s: {served.model} at {served.url} with {count}")
    print_status(f"other workers of this host connect with python -m workers --broker {served.broker}")
    print_status(f"{served.url}/docs describes all paths\n")
    print(f"{format_curl(served.url, served.model, needs_key=served.needs_key)}\n", flush=True)


def has_terminal() -> bool:
    """Return whether this process has an open terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def stop_all(groups: list[list[Child]], *, quiet: bool) -> None:
    """Drain frontends, then the runner, then workers, then the broker. `quiet`: print no status."""
    print_if = (lambda text: None) if quiet else print_status
    for group in filter(None, reversed(groups)):
        print_if(f"stopping {', '.join(child.name for child in group)}")
        for child in group:
            child.terminate()
        until = time.monotonic() + DRAIN_S
        for child in group:
            child.wait(until)
    print_if("stopped")


def supervise(served: Served, groups: list[list[Child]], stopping: list[int]) -> int:
    """Keep all processes running until a signal comes, and return the exit status."""
    answered, ready = 0.0, False
    broker, workers, *others = groups
    rest = [child for group in others for child in group]
    files = dict(zip(workers, served.health_files, strict=True))
    while not stopping:
        # A worker that has served is restarted.
        refused = [child for child in workers if child.refused and not files[child].exists()]
        if not ready and (len(refused) == len(workers) or any(child.refused for child in (*broker, *rest))):
            return REFUSED_STATUS
        for child in refused:
            print_status(f"{child.name} cannot serve; the other workers go on")
            workers.remove(child)
        for child in (*broker, *workers, *rest):
            child.keep_running(time.monotonic())
        if not ready and is_ready(served.url):
            answered = answered or time.monotonic()
            connected = sum(file.exists() for file in served.health_files)
            if connected == len(workers) or time.monotonic() > answered + ALL_WORKERS_S:
                ready = True
                print_ready(served, connected)
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
            print_status("second signal: killing all processes")
            for child in (child for group in groups for child in group):
                child.kill()
            shutil.rmtree(sockets, ignore_errors=True)
            os._exit(INTERRUPTED_STATUS)
        stopping.append(number)
        hint = "; a second Ctrl-C kills all processes at once" if number == signal.SIGINT else ""
        print_status(f"finishing open requests{hint}")

    check_address(options.host, options.port)
    check_data(options.data)
    # It is for the containers of compose.yaml, in which a frontend listens on another address than it is published on.
    os.environ.pop(PORT_VARIABLE, None)
    # Handle SIGTERM like Ctrl-C, so that unfinished downloads are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        devices = [device for device in choose_devices(options.device) for _ in range(options.workers)]
        name = prepare_first_model(options, devices[0])
    except KeyboardInterrupt:
        print_status("stopped before the model was ready")
        sys.exit(INTERRUPTED_STATUS)
    try:
        sockets = create_run_folder("frontends")
    except OSError as error:
        exit_refused("", error)
    health_files = [sockets / f"worker-{number}" for number in range(1, len(devices) + 1)]
    groups = create_children(options, sockets, devices, health_files)
    url = format_url(options.host, options.port, tls=bool(options.tls_cert))
    needs_key = bool(options.api_keys or os.environ.get("API_KEY"))
    served = Served(name, url, needs_key, health_files, f"ipc://{sockets}/workers")
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    # Block SIGCHLD, so that the loop can wait for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    status = 0
    try:
        status = supervise(served, groups, stopping)
    finally:
        # The last line is the reason for which a process has refused its settings.
        stop_all(groups, quiet=status == REFUSED_STATUS)
        shutil.rmtree(sockets, ignore_errors=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
