# ruff: noqa: E501
"""`scripts/fuzz`: send requests that schemathesis generates from the API's description, and bytes that are not HTTP.

Meanwhile a neighbour requests vectors and checks each of them. The exit status is 1 if a process ended, if a job or a
connection stays open, if a request got a 500 or no answer, or if a correct request got anything but a 200.
"""

import argparse
import concurrent.futures
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from broker.shared.flags import FlagParser  # noqa: E402  after the path is set
from tests.harness.clients import body, right  # noqa: E402
from tests.harness.hostile import BODIES  # noqa: E402
from tests.harness.processes import Cluster, alive, descendants, until  # noqa: E402
from tests.harness.servers import MODEL, Server, rows  # noqa: E402

#: Seconds without an end after which a connection counts as hanging; the server's own timeouts are 1 s.
HANG_S = 15.0
PATIENCE = ("--request-timeout-s", "1", "--send-timeout-s", "1")
#: Ends of requests and connections that are faults.
BAD_ENDS = ("HANGS", "500", "502", "REFUSED")
#: Kinds of connections that begin with a correct request. The server drops it if the client shuts down writing.
GOOD_KINDS = ("good", "chunked", "pipelined", "good and bad")
#: Checks of schemathesis. Requests that fit the description may fail, because it does not contain a model's limits.
CHECKS = ("--checks", "all", "--exclude-checks", "positive_data_acceptance")

#: A 503 or 504 is correct for a short deadline; undescribed headers are not generated.
CONFIG = """
[generation]
allow-extra-parameters = false
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 504]
"""


class System(NamedTuple):
    """A server under test."""

    url: str
    model: str
    pids: frozenset[int]
    #: Body of the neighbour's request.
    question: dict[str, Any]
    close: Any

    @property
    def port(self) -> int:
        """Port of the URL."""
        return int(self.url.rpartition(":")[2])

    def is_right(self, answer: httpx.Response, first: httpx.Response) -> bool:
        """Return whether an answer to the question has the right vectors; `first` is an earlier answer."""
        if answer.status_code != 200:
            return False
        if self.model == MODEL:
            return bool(np.abs(rows(answer) - rows(first)).max() <= 1e-5)
        return right(answer, ("a neighbour", "and another"))


def start_fake(folder: Path) -> System:
    """Start a cluster with a fake worker, which is fast and needs no model."""
    cluster = Cluster(folder)
    cluster.broker()
    cluster.worker()
    cluster.frontend(*PATIENCE)
    cluster.until_workers(1)
    pids = frozenset(program.process.pid for program in cluster.programs)
    return System(cluster.url, "fake", pids, body("a neighbour", "and another"), cluster.close)


def start_real(folder: Path) -> System:
    """Start scripts/serve with the default model."""
    server = Server(folder, VECMILL_FRONTEND_REQUEST_TIMEOUT_S="1", VECMILL_FRONTEND_SEND_TIMEOUT_S="1")
    question = {"model": MODEL, "input": ["a neighbour"], "encoding_format": "base64"}
    return System(server.url, MODEL, frozenset(descendants(server.program.process.pid)), question, server.program.close)


# --- the neighbour ---------------------------------------------------------------------------------------------------


class Neighbour(threading.Thread):
    """Client that repeats the same request and checks each answer."""

    def __init__(self, system: System) -> None:
        super().__init__(daemon=True)
        self._system = system
        self._over = threading.Event()
        self.outcomes: Counter[str] = Counter()

    def run(self) -> None:
        """Send the request until `stop` is called, and count right and wrong answers."""
        url = f"{self._system.url}/v1/embeddings"
        with httpx.Client(timeout=30) as client:
            first = client.post(url, json=self._system.question)
            while not self._over.wait(0.05):
                try:
                    answered = self._system.is_right(client.post(url, json=self._system.question), first)
                except httpx.HTTPError as error:
                    print(f"the neighbour got no answer: {error!r}")
                    answered = False
                self.outcomes["right" if answered else "wrong"] += 1

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self.join()


# --- requests from the description -----------------------------------------------------------------------------------


def write_description(system: System, folder: Path) -> Path:
    """Write the API's description, limited to the served model and its ids, since others get only 404s."""
    description = httpx.get(f"{system.url}/openapi.json").json()
    schemas = description["components"]["schemas"]
    for name in ("EmbeddingsRequest", "TokenizeRequest"):
        schemas[name]["properties"]["model"] = {"enum": [system.model]}
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    parameters = [parameter for operation in operations for parameter in operation["parameters"]]
    for parameter in (parameter for parameter in parameters if parameter["in"] == "path"):
        parameter["schema"] = {"enum": [system.model, "other", "a/b"]}
    text = json.dumps(description).replace(str(2**31 - 1), "1000")
    path = folder / "openapi.json"
    path.write_text(text)
    return path


def run_schemathesis(system: System, folder: Path, examples: int, seed: int) -> int:
    """Run schemathesis and return its exit status."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    description = str(write_description(system, folder))
    command = [sys.executable, "-m", "schemathesis.cli", "run", description, "--url", system.url, *CHECKS]
    command += ["--phases", "coverage,fuzzing", "--max-examples", str(examples), "--seed", str(seed), "--no-color"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-8000:], done.stderr[-2000:])
    return done.returncode


# --- bytes that are not HTTP -----------------------------------------------------------------------------------------


def build_request(system: System, headers: str = "") -> bytes:
    """Return a correct request with additional headers."""
    content = json.dumps(system.question).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def build_post(content: bytes) -> bytes:
    """Return a request with this body."""
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)


def flip_bytes(dice: random.Random, sent: bytes) -> bytes:
    """Return the bytes with 1 to 8 of them replaced."""
    changed = bytearray(sent)
    for _ in range(dice.randint(1, 8)):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def build_broken(dice: random.Random, system: System) -> tuple[str, bytes]:
    """Return a random kind of fault and bytes that have it."""
    good = build_request(system)
    content = good.partition(b"\r\n\r\n")[2]
    chunk = b"%x\r\n%s\r\n" % (len(content), content)
    chunked = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    kinds = {
        "cut short": lambda: good[: dice.randrange(len(good))],
        "flipped bytes": lambda: flip_bytes(dice, good),
        "random bytes": lambda: dice.randbytes(dice.randint(1, 2000)) + b"\r\n\r\n",
        "bad length": lambda: good.replace(b"Length: ", b"Length: " + dice.choice([b"-", b"x", b"+", b"9" * 30, b" ", b"0x"])),
        "two lengths": lambda: good.replace(b"Host: a", b"Host: a\r\nContent-Length: 3"),
        "length too large": lambda: good.replace(b"Length: ", b"Length: 9"),
        "chunked": lambda: chunked + chunk + b"0\r\n\r\n",
        "bad chunks": lambda: chunked + dice.choice([b"zz\r\n", b"-1\r\n", b"\r\n", chunk[:-2], b"5;x\r\nabcde"]) + b"0\r\n\r\n",
        "length and chunked": lambda: good.replace(b"Host: a", b"Host: a\r\nTransfer-Encoding: chunked"),
        "pipelined": lambda: good * dice.randint(2, 5),
        "good and bad": lambda: good + flip_bytes(dice, good),
        "many headers": lambda: build_request(system, "x: y\r\n" * dice.randint(100, 1000)),
        "long header": lambda: build_request(system, f"x: {'y' * dice.randint(8000, 100_000)}\r\n"),
        "bad header": lambda: build_request(system, dice.choice(["x\r\n", ": y\r\n", "x : y\r\n", "x: \0\r\n", " x: y\r\n", "x: \xff\r\n"])),
        "costly body": lambda: build_post(dice.choice(list(BODIES.values()))(dice.randint(20_000, 1_000_000))),
        "bad version": lambda: good.replace(b"HTTP/1.1", dice.choice([b"HTTP/9.9", b"HTTP/1.0", b"HTTP/2", b"FTP/1", b""])),
        "bad method": lambda: good.replace(b"POST", dice.choice([b"GET", b"P\0ST", b"BREW", b"post", b"", b"P" * 9000, b"P\nOST", b"\x1b[2JPOST"])),
        "bad path": lambda: good.replace(b"/v1/embeddings", dice.choice([b"/%ff%00", b"*", b"", b"//", b"/" * 9000, b"/\xff", b"/../x", b"/" * 5000])),
        "good": lambda: good,
    }  # fmt: skip
    kind = dice.choice(sorted(kinds))
    return kind, kinds[kind]()


def try_connection(system: System, seed: int) -> tuple[str, str]:
    """Return what one connection sent and how it ended; print the bytes if the end is a fault."""
    kind, end = exchange_bytes(system, seed)
    if end in BAD_ENDS:
        print(f"{end} to {kind}: {build_broken(random.Random(seed), system)[1][:300]!r}")
    return kind, end


def exchange_bytes(system: System, seed: int) -> tuple[str, str]:
    """Send the bytes of a seed on a new connection; return their kind and the end of the connection."""
    dice = random.Random(seed)
    kind, sent = build_broken(dice, system)
    received = b""
    shut = False
    try:
        with socket.create_connection(("127.0.0.1", system.port), timeout=HANG_S) as connection:
            for part in split_randomly(dice, sent):
                connection.sendall(part)
            if shut := dice.random() < 0.5:
                connection.shutdown(socket.SHUT_WR)
            if dice.random() < 0.1:
                return kind, "left"
            while part := connection.recv(1 << 20):
                received += part
                if received.endswith(b"}") and b"keep-alive" in received:
                    break
    except TimeoutError:
        return kind, "HANGS"
    except OSError:
        # The server may reset the connection after its answer.
        pass
    status = received.split(b" ")[1].decode() if received.startswith(b"HTTP/1.1 ") else "closed"
    return kind, "REFUSED" if kind in GOOD_KINDS and not shut and status != "200" else status


def split_randomly(dice: random.Random, sent: bytes) -> Iterator[bytes]:
    """Yield the bytes in one to four parts."""
    cuts = sorted(dice.randrange(len(sent) + 1) for _ in range(dice.choice([0, 0, 1, 3])))
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        yield sent[start:end]


# --- the run ---------------------------------------------------------------------------------------------------------


def measure_memory_mb(system: System) -> float:
    """Return the resident memory of all processes of a system."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in system.pids)
    return pages * 4096 / 1e6


def count_sockets(system: System) -> int:
    """Return the number of open sockets of all processes of a system."""
    folders = [Path(f"/proc/{pid}/fd") for pid in system.pids if alive(pid)]
    return sum(descriptor.is_socket() for folder in folders for descriptor in folder.iterdir())


def read_statuses(system: System) -> dict[str, Counter[str]]:
    """Return the number of requests by endpoint and status, from /metrics."""
    found: dict[str, Counter[str]] = {}
    for family in text_string_to_metric_families(httpx.get(f"{system.url}/metrics").text):
        for sample in family.samples if family.name == "vecmill_requests" else []:
            found.setdefault(sample.labels["endpoint"], Counter())[sample.labels["status"]] += int(sample.value)
    return found


def find_faults(system: System, folder: Path, options: argparse.Namespace) -> list[str]:
    """Send everything, print a summary, and return the faults."""
    before, open_before = measure_memory_mb(system), count_sockets(system)
    neighbour = Neighbour(system)
    neighbour.start()
    status = run_schemathesis(system, folder, options.examples, options.seed)
    ends: dict[str, Counter[str]] = {}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        seeds = range(options.seed, options.seed + options.connections)
        for kind, end in pool.map(lambda seed: try_connection(system, seed), seeds):
            ends.setdefault(kind, Counter())[end] += 1
    neighbour.stop()
    until(lambda: httpx.get(f"{system.url}/health").json()["open_jobs"] == 0, 60, "the end of all jobs")
    until(lambda: count_sockets(system) <= open_before, 60, "the end of all connections")
    after = read_statuses(system)
    for title, table in (("endpoint", after), ("connection", ends)):
        for name, counts in sorted(table.items()):
            print(f"{title} {name}: " + ", ".join(f"{count} x {end}" for end, count in sorted(counts.items()) if count))
    print(f"connections: {sum(map(Counter.total, ends.values()))}; requests: {sum(map(Counter.total, after.values()))}; "
          f"neighbour: {dict(neighbour.outcomes)}; memory: {before:.0f} MB before, {measure_memory_mb(system):.0f} MB after")  # fmt: skip
    faults = [
        f"{name}: {end}" for name, counts in [*after.items(), *ends.items()] for end in counts if is_fault(end, counts)
    ]
    faults += ["schemathesis found a fault"] * bool(status)
    faults += ["the neighbour got a wrong answer, or none"] * (
        neighbour.outcomes["wrong"] > 0 or not neighbour.outcomes["right"]
    )
    ended = [pid for pid in system.pids if not alive(pid)]
    return faults + [f"process {pid} ended" for pid in ended]


def is_fault(end: str, counts: Counter[str]) -> bool:
    """Return whether any request or connection ended like this, and must not."""
    return bool(counts[end]) and end in BAD_ENDS


def main() -> None:
    """Fuzz a server and exit with status 1 if there is a fault."""
    parser = FlagParser(
        prog="scripts/fuzz", description="Send invalid and random requests to a server that this command starts."
    )
    parser.add_argument(
        "--examples", type=int, default=100, help="requests of schemathesis for each operation (default: %(default)s)"
    )
    parser.add_argument(
        "--connections", type=int, default=3000, help="number of connections with broken bytes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of both (default: %(default)s)")
    parser.add_argument(
        "--real", action="store_true", help="use scripts/serve with the default model instead of a fake worker"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vecmill-fuzz-") as name:
        folder = Path(name)
        system = (start_real if options.real else start_fake)(folder)
        try:
            faults = find_faults(system, folder, options)
        finally:
            system.close()
    for fault in faults:
        print(f"FAULT: {fault}")
    print(f"{len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
