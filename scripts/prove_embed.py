"""Long proofs of `scripts/embed` with the fake model: many rows, kills at random, and a full disk.

`.venv/bin/python scripts/prove_embed.py rows --rows 1000000` prints the rate and the memory of the process;
`… kills --kills 100` kills scripts/embed, and with `--all` the server's processes too, at random instants;
`… disk --folder MOUNT` fills a small file system, such as `mount -t tmpfs -o size=20m tmpfs MOUNT`, and makes space.
All check that every row is in the output once with its vector.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

#: Processes of the server.
ROLES = ("broker", "worker", "frontend")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.harness.fake_worker import vector  # noqa: E402  after the path is set
from tests.harness.processes import Cluster, Program  # noqa: E402  after the path is set


def write_rows(path: Path, rows: int) -> None:
    """Write short texts, one in each line."""
    with path.open("w") as file:
        file.writelines(f"row {number}\n" for number in range(rows))


def check_output(folder: Path, rows: int, dimension: int) -> None:
    """Raise `AssertionError` unless every row is in the output once, in order, with its vector."""
    first = 0
    for part in sorted(folder.glob("part-*.parquet")):
        table = pq.read_table(part).combine_chunks()
        assert table.column("id").to_pylist() == list(range(first, first + table.num_rows)), part
        column = table.column("embedding")
        assert column.null_count == 0, part
        found = np.concatenate([np.asarray(chunk.flatten()) for chunk in column.chunks]).reshape(-1, dimension)
        wanted = [vector(f"row {number}", dimension) for number in range(first, first + table.num_rows)]
        assert np.array_equal(found, wanted), part
        first += table.num_rows
    assert first == rows, f"{first} rows instead of {rows}"


def read_memory_mib(pid: int) -> float:
    """Return the resident memory of a process, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


class Proof:
    """A cluster, an input, and the command that embeds the input."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.cluster = Cluster(folder)
        self.input, self.output = folder / "in.txt", folder / "out"
        write_rows(self.input, options.rows)

    def start_cluster(self) -> None:
        """Start broker, worker and frontend."""
        self.servers = {role: self.start_server(role) for role in ROLES}
        self.cluster.until_workers(1)

    def start_server(self, role: str) -> Program:
        """Start a process of the server."""
        if role == "worker":
            return self.cluster.worker(dimension=self.options.dimension, us_per_token=self.options.us_per_token)
        return self.cluster.broker() if role == "broker" else self.cluster.frontend()

    def kill_servers(self, dice: random.Random) -> None:
        """Kill some processes of the server at once, and start them again."""
        victims = dice.sample(ROLES, dice.randint(1, len(ROLES)))
        for role in victims:
            self.servers[role].close()
        for role in victims:
            self.servers[role] = self.start_server(role)

    def command(self) -> list[str]:
        """Return the command."""
        command = [sys.executable, str(ROOT / "scripts/embed.py"), str(self.input), "-o", str(self.output)]
        command += ["--url", self.cluster.url, "--patience", "60"]
        return command + ["--part-rows", str(self.options.part_rows)] * bool(self.options.part_rows)

    def start(self, *flags: str) -> Program:
        """Start scripts/embed."""
        return Program("embed", [*self.command(), *flags], self.folder / "embed.log")

    def check(self) -> None:
        """Check the output."""
        check_output(self.output, self.options.rows, self.options.dimension)
        print(f"{self.options.rows:,} rows, each once with its vector")


def prove_rows(proof: Proof) -> None:
    """Embed all rows, interrupt the run halfway, and print rate, memory and what was lost."""
    proof.start_cluster()
    memory: list[float] = []
    program = proof.start()
    started = time.monotonic()
    while program.process.poll() is None:
        memory.append(read_memory_mib(program.process.pid))
        if proof.options.interrupt and count_written_rows(proof.output) > proof.options.rows // 2:
            program.process.send_signal(2)
            break
        time.sleep(0.1)
    status = program.wait(600)
    print("\n".join(program.output.strip().splitlines()[-2:]))
    if proof.options.interrupt:
        stopped = time.monotonic()
        print(f"interrupted after {stopped - started:.1f} s with status {status}")
        program = proof.start()
        print("status", program.wait(600), program.output.strip().splitlines()[-1])
    quarter = len(memory) // 4
    late = memory[quarter:]
    print(f"memory in MiB: {memory[quarter]:.0f} after a quarter, at most {max(late):.0f}, at the end {late[-2]:.0f}")
    proof.check()


def count_written_rows(folder: Path) -> int:
    """Return the rows of the complete parts, which are equally long."""
    parts = sorted(folder.glob("part-*.parquet"))
    return len(parts) * int(pq.read_metadata(parts[0]).num_rows) if parts else 0


def prove_kills(proof: Proof) -> None:
    """Kill scripts/embed, or with `--all` processes of the server, until all rows are done; repeat."""
    dice = random.Random(proof.options.seed)
    proof.start_cluster()
    kills = {"scripts/embed": 0, "the server": 0}
    program = proof.start("--quiet")
    while sum(kills.values()) < proof.options.kills:
        try:
            status = program.wait(dice.uniform(0.1, proof.options.longest_s))
        except subprocess.TimeoutExpired:
            victim = "the server" if proof.options.all and dice.random() < 0.4 else "scripts/embed"
            kills[victim] += 1
            if victim == "the server":
                proof.kill_servers(dice)
                continue
            program.close()
        else:
            assert status == 0, program.output
            proof.check()
            shutil.rmtree(proof.output)
        program = proof.start("--quiet")
    status = program.wait(120)
    assert status == 0, program.output
    print(", ".join(f"{number} kills of {name}" for name, number in kills.items()))
    proof.check()


def prove_full_disk(proof: Proof) -> None:
    """Fill the file system of the output while scripts/embed writes, make space, and run the command again."""
    proof.start_cluster()
    proof.output = proof.options.folder / "out"
    shutil.rmtree(proof.output, ignore_errors=True)
    ballast = proof.options.folder / "ballast"
    need = proof.options.rows * proof.options.dimension * 4
    space = shutil.disk_usage(proof.options.folder).free - need // 2
    ballast.write_bytes(bytes(max(0, space)))
    for end in iterate_until_done(proof):
        print(end)
        temporary = list(proof.output.rglob("*.tmp"))
        assert not temporary, temporary
        ballast.write_bytes(bytes(max(0, ballast.stat().st_size - need // 4)))
    proof.check()


def iterate_until_done(proof: Proof) -> Iterator[str]:
    """Yield the status and last message of each run that the full disk ended."""
    while True:
        done = subprocess.run([*proof.command(), "--quiet"], capture_output=True, text=True)
        if done.returncode == 0:
            return
        assert done.returncode == 3, done.stderr
        yield f"status {done.returncode}: {done.stderr.strip().splitlines()[-1]}"


def main() -> None:
    """Run a proof."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("proof", choices=("rows", "kills", "disk"))
    add("--rows", type=int, default=20_000)
    add("--dimension", type=int, default=8)
    add("--part-rows", type=int, default=0)
    add("--us-per-token", type=int, default=0, help="of the fake model")
    add("--interrupt", action="store_true", help="stop the run of rows halfway by Ctrl-C, and go on")
    add("--kills", type=int, default=100)
    add("--longest-s", type=float, default=2.0, help="longest life of a run")
    add("--all", action="store_true", help="also kill the server's processes")
    add("--seed", type=int, default=1)
    add("--folder", type=Path, help="of a small file system")
    options = parser.parse_args()
    proofs = {"rows": prove_rows, "kills": prove_kills, "disk": prove_full_disk}
    with tempfile.TemporaryDirectory(prefix="embed-") as folder:
        proof = Proof(Path(folder), options)
        try:
            proofs[options.proof](proof)
        finally:
            proof.cluster.close()


if __name__ == "__main__":
    main()
