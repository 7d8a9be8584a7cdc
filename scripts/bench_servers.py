"""Servers that `scripts/bench` starts and measures: processes, CPU time, memory, and the broker's metrics."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench_load import LoadError
from bench_texts import build_request
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
#: Output of the servers.
LOGS = ROOT / ".cache" / "bench" / "logs"
#: Seconds until a server must be ready, which includes the conversion of a model.
START_S = 300.0
#: Seconds that a server may take to drain.
STOP_S = 70.0
#: Modules of Vecmill's processes, and their names in the tables.
ROLES = {"frontend": "frontend", "broker": "broker", "workers": "worker"}


class Process:
    """Server with its children, in a session of their own."""

    def __init__(
        self, name: str, command: Sequence[str], cwd: Path = ROOT, environ: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        LOGS.mkdir(parents=True, exist_ok=True)
        self._log = LOGS / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id of the parent."""
        return self._process.pid

    def read_line(self, marker: str) -> str:
        """Return the first line of the output with a marker. Raise `LoadError` if the process ends before."""
        assert self._process.stdout
        for line in self._process.stdout:
            if marker in line:
                return line
        raise self._explain_end()

    def wait_ready(self, url: str, is_ready: Callable[[bytes], bool] = lambda _: True) -> None:
        """Wait until a URL answers, and `is_ready` accepts the body of the answer.

        Raise `LoadError` if the process ends before, or does not become ready.
        """
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
                if is_ready(answer.read()):
                    return
            if self._process.poll() is not None:
                raise self._explain_end()
            time.sleep(0.1)
        raise LoadError(f"{self.name} was not ready within {START_S:.0f} s")

    def _explain_end(self) -> LoadError:
        status = self._process.wait()
        return LoadError(f"{self.name} ended with status {status} before it was ready; {self._log} has its output")

    def close(self) -> None:
        """End the server, and kill what is left of it, at once if this is interrupted."""
        try:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def read_cpu_seconds(self) -> dict[str, float]:
        """Return the CPU seconds so far of each kind of process."""
        return sum_by_role(self.pid, read_cpu_seconds)

    def measure_memory_mb(self) -> dict[str, float]:
        """Return the memory of each kind of process."""
        return sum_by_role(self.pid, measure_memory_mb)


class Server(Process):
    """A running scripts/serve."""

    path = "/v1/embeddings"

    def __init__(self, *flags: str, key: str = "") -> None:
        """Start the server with these flags, without a runner of batches and without a cache.

        A cache would answer texts that are sent again. `key` is an API key for `read_counters`, if the server has keys.
        """
        self._key = key
        self.port, self._metrics_port = find_free_port(), find_free_port()
        command = [str(ROOT / "scripts" / "serve"), "--port", str(self.port), "--cache-bytes", "0", "--data", "none"]
        command += flags
        super().__init__("scripts-serve", [*command, "--metrics-bind", f"127.0.0.1:{self._metrics_port}"])
        try:
            line = self.read_line("-d '")
        except BaseException:
            self.close()
            raise
        self.model = json.loads(line.split("-d '")[1].rstrip()[:-1])["model"]

    def read_counters(self) -> dict[str, int]:
        """Return the broker's counters."""
        url, headers = f"http://127.0.0.1:{self.port}/health", {"Authorization": f"Bearer {self._key}"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return dict(json.load(answer)["counters"])

    def read_precision(self) -> str:
        """Return what the model is computed in."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=5) as answer:
            return str(json.load(answer)["data"][0]["precision"])

    def count_batches(self) -> tuple[int, float]:
        """Return the number of answered batches, and the milliseconds that all of them took."""
        counters = self.read_counters()
        return counters["batches_answered"], counters["batch_us"] / 1000

    def read_metrics(self) -> dict[str, float]:
        """Return the sum over all labels of each metric of the broker."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=5) as answer:
            return sum_samples(answer.read().decode())

    def build_request(self, texts: Sequence[str], client: str = "bench") -> bytes:
        """Return the bytes of a POST of these texts, with the client's name as its API key."""
        return build_request(texts, self.path, self.fields, client)

    @property
    def fields(self) -> dict[str, object]:
        """Fields of a request besides its inputs."""
        return {"model": self.model, "encoding_format": "base64"}


def sum_samples(text: str) -> dict[str, float]:
    """Return the sum over all labels of each sample in Prometheus' text format."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def sum_by_role(pid: int, measure: Callable[[int], float]) -> dict[str, float]:
    """Return what a function measures of a session of processes, summed by kind of process."""
    sums: dict[str, float] = {}
    for each in list_session(pid):
        with contextlib.suppress(OSError):
            role = find_role(Path(f"/proc/{each}/cmdline").read_bytes().decode(errors="replace").split("\0"))
            sums[role] = sums.get(role, 0.0) + measure(each)
    # The supervisor of scripts/serve only waits.
    if set(sums) & set(ROLES.values()):
        sums.pop("server", None)
    return sums


def list_session(leader: int) -> list[int]:
    """Return the ids of all processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[3]) == leader:
                found.append(int(path.parent.name))
    return found


def find_free_port() -> int:
    """Return a free TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_role(command: Sequence[str]) -> str:
    """Return the kind of a process by the module on its command line; "server" for all others."""
    module = command[command.index("-m") + 1] if "-m" in command[:-1] else ""
    return ROLES.get(module, "server")


def read_cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_memory_mb(pid: int) -> float:
    """Return the memory of a process: its own pages and its share of those that several processes use."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def find_cpu_name() -> str:
    """Return the name of the CPU, with the extensions that change the speed of inference."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    found = set(facts.get("flags", "").split())
    named = ", ".join(name for name in known if name in found) or "no vector extensions known"
    return f"{facts.get('model name', 'unknown CPU')} ({named})"
