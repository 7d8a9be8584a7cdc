"""Load generators of `scripts/bench`: closed-loop clients that send each request once.

`wrk` is used where it is installed, because a client in Python takes CPU time from the server. Both run as a process of
their own, so that their CPU time is known.
"""

import bisect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
#: Part of a run that does not count for the rate: at its start no answer can have come.
RAMP = 0.2
#: Percentiles of the latency that are kept.
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)


class LoadError(Exception):
    """A load generator or the server failed; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class Load:
    """What clients saw."""

    #: Answers per second after the ramp.
    rate: float
    #: Milliseconds of each answer at `PERCENTILES`.
    latency_ms: list[float]
    #: Seconds of the run.
    seconds: float
    #: CPU seconds of the load generator.
    cpu_s: float
    #: Answers.
    answered: int


def find_generator(wanted: str | None = None) -> str:
    """Return the path of wrk, or "" for the client in Python. Raise `LoadError` if wrk is wanted and not installed."""
    found = shutil.which("wrk") or ""
    if wanted == "wrk" and not found:
        raise LoadError("wrk is not installed; install it (apt-get install wrk), or choose --client python")
    return "" if wanted == "python" else found


def send_requests(port: int, requests: Sequence[bytes], clients: int, seconds: float, generator: str) -> Load:
    """Send requests from `clients` connections until the time has passed or all are sent.

    Raise `LoadError` if a request was not answered with status 200.
    """
    with tempfile.NamedTemporaryFile(prefix="vecmill-bench-") as file:
        for request in requests:
            file.write(b"%d\n%b" % (len(request), request))
        file.flush()
        if generator:
            options = ["-t", "1", "-c", str(clients), "-d", f"{max(1, round(seconds))}s", "--timeout", "60s"]
            script = ["-s", str(SCRIPTS / "bench_load.lua"), f"http://127.0.0.1:{port}/", "--", file.name]
            command = [generator, *options, *script]
        else:
            client = str(SCRIPTS / "bench_client.py")
            command = [sys.executable, client, str(port), file.name, str(clients), str(seconds)]
        output, cpu_s = run_generator(command)
    return read_load(output, clients, cpu_s)


def run_generator(command: Sequence[str]) -> tuple[str, float]:
    """Run a command; return its output and CPU seconds. Raise `LoadError` if it fails."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = (output.strip().splitlines() or ["no output"])[-1]
        raise LoadError(f"{Path(command[0]).name} ended with status {process.returncode}: {last}")
    return output, used.ru_utime + used.ru_stime


def read_load(output: str, clients: int, cpu_s: float) -> Load:
    """Return the load that a generator printed: the lines of `bench_load.lua`. Raise `LoadError` after an error."""
    lines: dict[str, list[list[str]]] = {"errors": [], "run": [], "time": [], "latency": []}
    for line in output.splitlines():
        name, *values = line.split("\t")
        if name in lines:
            lines[name].append(values)
    if not lines["run"]:
        raise LoadError(f"the load generator printed no result: {output.strip()[-200:]}")
    errors = dict(zip(("connect", "read", "write", "timeout", "status"), map(int, lines["errors"][0]), strict=True))
    if any(errors.values()):
        named = ", ".join(f"{count} of {name}" for name, count in errors.items() if count)
        raise LoadError(f"the server did not answer every request with status 200: errors {named}")
    duration_us, answered = (int(float(value)) for value in lines["run"][0])
    if not answered:
        raise LoadError("the server answered no request in the time of a measurement; raise --seconds")
    counts = Counter({int(float(value)): int(float(count)) for value, count in lines["latency"]})
    if "Running" in output:
        counts = undo_correction(counts, duration_us // max(1, answered // clients))
    # wrk starts with a request for each connection.
    starts = [float(values[0]) for values in lines["time"]]
    times = starts[clients:]
    end = times[-1] if times else starts[0] + duration_us / 1e6
    return Load(
        rate=find_rate(times, starts[0]) if len(times) > 1 else answered * 1e6 / duration_us,
        latency_ms=find_percentiles(counts),
        seconds=end - starts[0],
        cpu_s=cpu_s,
        answered=answered,
    )


def undo_correction(counts: Counter[int], interval: int) -> Counter[int]:
    """Return the latencies that wrk measured, of those that it reports, in microseconds.

    For each latency L of at least two intervals, wrk adds L - interval, L - 2 * interval, … above the interval, as if
    more requests had waited (`stats_correct` in its stats.c). Closed-loop clients wait for one answer at a time.
    """
    measured = {value: count - (counts[value + interval] if value > interval else 0) for value, count in counts.items()}
    return Counter({value: count for value, count in measured.items() if count > 0})


def find_rate(times: Sequence[float], start: float) -> float:
    """Return answers per second between the last answer of the ramp and the last of all.

    Answers come in bursts, one for each batch. Both ends are ends of bursts, unless the run ended within one.
    """
    cut = start + RAMP * (times[-1] - start)
    # The answers until the cut; without any, the server has worked on the first burst since the start.
    skipped = bisect.bisect_right(times, cut)
    since = times[skipped - 1] if skipped else start
    return (len(times) - skipped) / max(times[-1] - since, 1e-6)


def find_percentiles(counts: Counter[int]) -> list[float]:
    """Return milliseconds at `PERCENTILES`, of microseconds and how often they occurred."""
    values = sorted(counts)
    sums: list[int] = []
    for value in values:
        sums.append(counts[value] + (sums[-1] if sums else 0))
    return [values[bisect.bisect_left(sums, sums[-1] * part / 100)] / 1000 for part in PERCENTILES]


def read_file(path: Path) -> list[bytes]:
    """Return the requests of a file that `send_requests` wrote."""
    content, requests, start = path.read_bytes(), [], 0
    while match := re.compile(rb"(\d+)\n").match(content, start):
        start = match.end() + int(match[1])
        requests.append(content[match.end() : start])
    return requests
