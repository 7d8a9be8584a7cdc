"""Servers that the rows are sent to, by name (`Row.server`)."""

import contextlib
import hashlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.acceptance.contract.row import REAL
from tests.harness.processes import Cluster, until
from tests.harness.servers import Server

#: Limits of the strict server.
STRICT = ("--max-inputs", "3", "--max-request-tokens", "100", "--max-body-bytes", "2000", "--dimensions-policy",
          "refuse", "--allowed-origins", "https://a.example")  # fmt: skip


@contextlib.contextmanager
def start_servers(folder: Path) -> Iterator[dict[str, str]]:
    """Start all servers, and give the URL of each by name."""
    names = ("fake", "locked", "strict", "states", "empty", "stored")
    for name in ("real", *names):
        (folder / name).mkdir()
    with contextlib.ExitStack() as stack:
        real = Server(folder / "real", "--precision", "f32")
        stack.callback(real.program.close)
        clusters = {name: Cluster(folder / name) for name in names}
        for cluster in clusters.values():
            stack.callback(cluster.close)
            cluster.broker()
        clusters["fake"].worker()
        clusters["fake"].frontend()
        _start_locked(clusters["locked"])
        clusters["strict"].worker(default_prompt="topic")
        clusters["strict"].frontend(*STRICT)
        for name in ("fake", "locked", "strict"):
            until(lambda url=clusters[name].url: _is_ready(url), what=f"a worker of {name}")  # type: ignore[misc]
        for name, flags in (("states", ()), ("empty", ()), ("stored", ("--data", str(folder / "stored/data")))):
            clusters[name].frontend("--broker-grace-s", "0.2", *flags)
            cluster = clusters[name]
            until(lambda cluster=cluster: cluster.health().get("broker") == "connected", what=name)  # type: ignore[misc]
        _start_states(clusters["states"], stack.enter_context(socket.create_server(("127.0.0.1", 0))))
        yield {"real": real.url} | {name: cluster.url for name, cluster in clusters.items()}


def _start_locked(cluster: Cluster) -> None:
    """Start a worker, and a frontend that requires API keys, allows any dimensions, and truncates texts."""
    keys = cluster.folder / "keys.toml"
    user = _format_key("one", "vm-contract", "jobs_in_flight = 10")
    keys.write_text(user + _format_key("root", "vm-contract-admin", "admin = true"))
    cluster.worker()
    cluster.frontend("--api-keys", str(keys), "--dimensions-policy", "allow", "--truncate", "end", "--no-token-ids")


def _format_key(name: str, key: str, line: str) -> str:
    return f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n{line}\n'


def _start_states(cluster: Cluster, silent: socket.socket) -> None:
    """Start models: `fake` loses its worker, `broken` fails to load, the default model waits for its index."""
    gone = cluster.worker()
    cluster.until_workers(1)
    gone.signal(signal.SIGTERM)
    gone.wait()
    cluster.real_worker("--model", str(cluster.folder / "none"), "--model-name", "broken").wait(60)
    index = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
    cluster.real_worker("--cache", str(cluster.folder / "cache"), environ=index)
    until(lambda: set(httpx.get(f"{cluster.url}/v1/config").json()) == {"fake", "broken", REAL}, 60, "three states")


def _is_ready(url: str) -> bool:
    """Return whether a worker is connected; needs no API key."""
    try:
        return httpx.get(f"{url}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False
