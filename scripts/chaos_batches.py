"""`scripts/chaos --batches N`: kill processes with SIGKILL N times while batches run, and check every line.

Each strike kills a runner, the frontend, the broker, a worker, or all processes at once, at a random moment, and starts
them again at once. Each batch must end as completed, with every `custom_id` once, in the order of the input, with the
right vector. A line may end with 422 instead, because an input that is killed with its worker twice cannot be
distinguished from poison.
"""

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
from chaos_system import log_event

from tests.harness.fake_worker import vector
from tests.harness.processes import Cluster, Program

T = TypeVar("T")

#: Range of the pauses between two strikes, in seconds.
PAUSE_S = 0.2, 3.0
#: Probability of each target.
TARGETS = {"runner": 3, "frontend": 1, "broker": 2, "worker": 2, "all": 1}
#: Most seconds for which a batch may have no progress although no process is killed any more.
STALL_S = 60.0


class Roles:
    """Processes by role, each with the function that starts it."""

    def __init__(self, folder: Path, runners: int) -> None:
        self.cluster = Cluster(folder)
        starts: list[tuple[str, Callable[[], Program]]] = [
            ("broker", self.cluster.broker),
            *[("worker", lambda: self.cluster.worker(us_per_token=200))] * 2,
            ("frontend", lambda: self.cluster.frontend("--data", str(folder / "data"))),
            *[("runner", self.cluster.runner)] * runners,
        ]
        self._starts = [start for _, start in starts]
        self.names = [name for name, _ in starts]
        self.programs = [start() for start in self._starts]

    def strike(self, target: str, dice: random.Random) -> None:
        """Kill processes at once, then start them again."""
        places = [place for place, name in enumerate(self.names) if target in (name, "all")]
        if target != "all":
            places = [dice.choice(places)]
        for place in places:
            self.programs[place].process.kill()
        for place in places:
            self.programs[place].process.wait()
            self.programs[place] = self._starts[place]()


def insist(call: Callable[[], httpx.Response]) -> Any:
    """Return the JSON of an answer with status 200, after repeating the call while the frontend is away."""
    until = time.monotonic() + STALL_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = call()
            if answer.status_code == 200:
                return answer.json()
            if answer.status_code != 503 or time.monotonic() > until:
                raise AssertionError(f"{answer.status_code}: {answer.text}")
        if time.monotonic() > until:
            raise AssertionError("the frontend does not answer")
        time.sleep(0.1)


def start_batch(url: str, lines: int, name: str) -> str:
    """Upload a file of numbered lines, create a batch, and return its id."""
    requests = [
        {
            "custom_id": f"{name}-{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "fake", "input": f"text {name}-{number}"},
        }
        for number in range(lines)
    ]
    content = "\n".join(map(json.dumps, requests)).encode()
    files = {"file": ("input.jsonl", content)}
    file = insist(lambda: httpx.post(f"{url}/v1/files", data={"purpose": "batch"}, files=files, timeout=30))
    body = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    return str(insist(lambda: httpx.post(f"{url}/v1/batches", json=body, timeout=30))["id"])


def check_batch(url: str, batch: dict[str, Any], lines: int, name: str) -> Counter[str]:
    """Check the files of a batch that has ended. Return the number of lines by outcome."""
    assert batch["status"] == "completed", batch
    outcomes: Counter[str] = Counter()
    found: list[list[str]] = []
    for field in ("output_file_id", "error_file_id"):
        ids: list[str] = []
        content = fetch(url, batch[field]) if batch[field] else b""
        for line in content.splitlines():
            row = json.loads(line)
            ids.append(row["custom_id"])
            body = row["response"]["body"]
            if field == "error_file_id":
                assert body["error"]["code"] == "poison_input", row
                outcomes["422 poison_input"] += 1
                continue
            assert body["data"][0]["embedding"] == vector(f"text {row['custom_id']}").tolist(), row
            outcomes["200"] += 1
        assert ids == sorted(ids, key=lambda one: int(one.rpartition("-")[2])), "out of order"
        found.append(ids)
    output, errors = found
    assert sorted(output + errors) == sorted(f"{name}-{number}" for number in range(lines)), "lines missing or twice"
    counts = batch["request_counts"]
    assert counts == {"total": lines, "completed": len(output), "failed": len(errors)}, counts
    return outcomes


def fetch(url: str, file_id: str) -> bytes:
    """Return the content of a file, after repeating the call while the frontend is away."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{url}/v1/files/{file_id}/content", timeout=60)
            assert answer.status_code == 200, answer.text
            return answer.content
        time.sleep(0.1)


def run(options: argparse.Namespace) -> int:
    """Run batches until all strikes are sent and the last batch is checked. Return the exit status."""
    dice, folder = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="vecmill-chaos-"))
    log_event(f"seed {options.seed}, logs in {folder}")
    roles = Roles(folder, options.runners)
    url, strikes, outcomes, batches, started = roles.cluster.url, Counter[str](), Counter[str](), 0, time.monotonic()
    try:
        while sum(strikes.values()) < options.batches:
            batches += 1
            name = f"{options.seed}-{batches}"
            batch_id = start_batch(url, options.lines, name)
            due, moved_at, progress = time.monotonic() + dice.uniform(*PAUSE_S), time.monotonic(), None
            while True:
                batch = insist(lambda: httpx.get(f"{url}/v1/batches/{batch_id}", timeout=30))  # noqa: B023
                if batch["status"] not in ("validating", "in_progress", "finalizing"):
                    break
                if (batch["status"], batch["request_counts"]) != progress:
                    progress, moved_at = (batch["status"], batch["request_counts"]), time.monotonic()
                if time.monotonic() >= due and sum(strikes.values()) < options.batches:
                    target = dice.choices(list(TARGETS), list(TARGETS.values()))[0]
                    roles.strike(target, dice)
                    strikes[target] += 1
                    due = moved_at = time.monotonic() + dice.uniform(*PAUSE_S)
                assert time.monotonic() < moved_at + STALL_S, f"no progress: {batch}"
                time.sleep(0.05)
            outcomes += check_batch(url, batch, options.lines, name)
            log_event(f"batch {batches} is right after {sum(strikes.values())} kills")
    except AssertionError as error:
        log_event(f"FAULT: {error}; logs are kept in {folder}")
        return 1
    finally:
        roles.cluster.close()
    print(
        f"scripts/chaos --batches {options.batches} --lines {options.lines} --seed {options.seed}\n\n| what | number |"
    )
    print(f"|---|---:|\n| minutes | {(time.monotonic() - started) / 60:.1f} |")
    for target, number in sorted(strikes.items()):
        print(f"| SIGKILL of {target} | {number} |")
    print(f"| batches, each right and complete | {batches} |")
    for outcome, number in sorted(outcomes.items()):
        print(f"| lines, {outcome} | {number} |")
    shutil.rmtree(folder)
    return 0


def main() -> None:
    """Run the chaos of batches; exit with status 1 and keep the logs if there is a fault."""
    parser = argparse.ArgumentParser(
        prog="scripts/chaos --batches", description="Kill processes while batches run.", allow_abbrev=False
    )
    parser.add_argument("--batches", type=int, default=100, metavar="N", help="number of kills (default: %(default)s)")
    parser.add_argument("--lines", type=int, default=2000, help="lines of each batch (default: %(default)s)")
    parser.add_argument("--runners", type=int, default=2, help="number of runners (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="seed (default: a new one)")
    sys.exit(run(parser.parse_args()))


if __name__ == "__main__":
    main()
