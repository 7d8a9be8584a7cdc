"""`scripts/chaos`: kill processes of a system with fake workers at random while clients check every vector.

There are two phases. The first kills workers, the broker and frontend processes. The second kills only workers and
freezes the broker at times, so that the broker and the frontends survive from a first burst of load to a second, equal
burst, and their memory after both bursts can be compared.

A request ends well with a 200 and the right vectors. The following ends are excused and counted separately:

- The client closed the connection.
- The connection belonged to a frontend process that was killed; its connections are listed just before the kill.
- A 503 or 504 with Retry-After, while the broker or all workers were away or had just returned.
- A 504 of a request with a short deadline, while any process was away.
- A 422, because a job that was killed with its worker twice cannot be distinguished from poison.

Every other end is a fault, and so is a process that ends by itself.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from chaos_clients import Client, Texts, get_health, record_counters
from chaos_system import HEALTHY_WITHIN_S, Member, System, Tally, log_event

from broker.shared.flags import FlagParser

#: Mean seconds between two strikes against each role.
MEANS_S = {"worker": 2.0, "broker": 14.0, "frontend": 11.0}
#: Signals that strike each role in each phase, with weights.
KINDS: dict[int, dict[str, dict[str, float]]] = {
    1: {
        "worker": {"SIGKILL": 4, "SIGSTOP": 3, "SIGTERM": 3},
        "broker": {"SIGKILL": 6, "SIGSTOP": 2, "SIGTERM": 2},
        "frontend": {"SIGKILL": 1},
    },
    2: {"worker": {"SIGKILL": 4, "SIGSTOP": 3, "SIGTERM": 3}, "broker": {"SIGSTOP": 1}},
}
#: Share of the first phase in the duration.
FIRST_PHASE = 0.6
FROZEN_S = 1.0, 6.0
#: Requests in a burst, enough to fill every bounded history.
BURST = 1500
#: Largest growth of a process's memory from the first burst to the second.
GROWTH = 0.05
#: The broker's counters in the summary. Late answers of a frozen worker arrive without a session.
COUNTED = (
    "jobs_requeued",
    "late_answers",
    "messages_without_session",
    "duplicate_requests",
    "workers_evicted",
    "workers_left",
    "workers_joined",
    "jobs_cancelled",
)


def parse_arguments() -> argparse.Namespace:
    """Return the flags of scripts/chaos."""
    parser = FlagParser(prog="scripts/chaos", description="Kill processes at random and check every answer.")
    parser.add_argument("--minutes", type=float, default=2.0, help="duration of both phases (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(10**6), help="seed of all random choices (default: a new one)"
    )
    parser.add_argument("--workers", type=int, default=4, help="number of fake workers (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="number of concurrent clients (default: %(default)s)")
    parser.add_argument("--keep-logs", action="store_true", help="keep the logs even if there is no fault")
    return parser.parse_args()


class Strike(NamedTuple):
    """Planned signal to a process of a role, `at` seconds after the phase's start."""

    at: float
    role: str
    kind: str
    frozen_s: float


def plan_strikes(phase: int, seconds: float, dice: random.Random) -> list[Strike]:
    """Return the strikes of a phase: a Poisson process for each role."""
    strikes = []
    for role, kinds in KINDS[phase].items():
        at = dice.expovariate(1 / MEANS_S[role])
        while at < seconds:
            (kind,) = dice.choices(list(kinds), list(kinds.values()))
            strikes.append(Strike(at, role, kind, dice.uniform(*FROZEN_S)))
            at += dice.expovariate(1 / MEANS_S[role])
    return sorted(strikes)


async def send_strike(system: System, strike: Strike, dice: random.Random, thaws: set[asyncio.Task[None]]) -> None:
    """Send the strike's signal to a healthy process of its role, if there is one."""
    name = strike.kind
    if strike.role == "frontend":
        # Spare the last process, because clients cannot connect until another has started.
        serving = system.list_serving()
        if len(serving) < 2:
            name = "no healthy process"
        else:
            await system.kill_serving(dice.choice(serving))
    else:
        healthy = [
            member for member in (system.workers if strike.role == "worker" else [system.broker]) if member.steady
        ]
        if not healthy:
            name = "no healthy process"
        else:
            member = dice.choice(healthy)
            member.send(signal.Signals[strike.kind])
            system.note_absence()
            if strike.kind == "SIGSTOP":
                thaws.add(asyncio.create_task(thaw_member(member, strike.frozen_s)))
    system.tally.strikes[strike.role, name] += 1


async def thaw_member(member: Member, after_s: float) -> None:
    """Continue a frozen process after some seconds."""
    await asyncio.sleep(after_s)
    member.send(signal.SIGCONT)


async def run_phase(system: System, clients: list[Client], phase: int, seconds: float, seed: int) -> None:
    """Run clients in closed loops while the strikes are sent; then thaw all frozen processes."""
    # A separate generator, so that the plan depends only on the seed and not on timing.
    dice = random.Random(f"{seed}, phase {phase}")
    strikes, started = plan_strikes(phase, seconds, dice), time.monotonic()
    log_event(f"phase {phase}: {len(strikes)} strikes in {seconds:.0f} s")
    over = asyncio.Event()

    async def run_client(client: Client) -> None:
        while not over.is_set():
            await client.send_request(slow=0.4, aborts=0.08, short=0.1)

    thaws: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(run_client(client))
        for strike in strikes:
            await asyncio.sleep(started + strike.at - time.monotonic())
            await send_strike(system, strike, dice, thaws)
        await asyncio.sleep(started + seconds - time.monotonic())
        await asyncio.gather(*thaws)
        over.set()


async def run_burst(system: System, clients: list[Client]) -> dict[tuple[str, int], float]:
    """Send a fixed number of requests without strikes, and return the memory afterwards."""
    numbers = itertools.count(1)

    async def run_client(client: Client) -> None:
        while next(numbers) <= BURST:
            await client.send_request()

    await asyncio.gather(*(run_client(client) for client in clients))
    await asyncio.sleep(1)
    for client in clients:
        # The frontend would close idle connections before the next burst.
        client.close()
    return system.measure_memory()


async def await_healthy(system: System, within_s: float = HEALTHY_WITHIN_S) -> None:
    """Wait until all processes serve, and check that no job is open while no client sends."""
    until, good, state = time.monotonic() + within_s, 0, dict[str, Any]()
    # Several times in a row, so that every frontend process answers.
    while good < 8 and time.monotonic() < until:
        with contextlib.suppress(ConnectionRefusedError):
            state = await get_health(system)
        there = state.get("status") == "ready" and state.get("workers") == len(system.workers)
        good = good + 1 if there and len(system.list_serving()) == 2 else 0
        await asyncio.sleep(0.1)
    if good < 8:
        system.tally.add_fault(f"not healthy after {within_s:.0f} s: {state}")
    await asyncio.sleep(1)
    state = await get_health(system)
    if state.get("open_jobs") != 0 or state.get("queued_jobs") != 0:
        system.tally.add_fault(
            f"{state.get('open_jobs')} jobs open and {state.get('queued_jobs')} queued without clients"
        )


def compare_memory(system: System, before: dict[tuple[str, int], float], after: dict[tuple[str, int], float]) -> None:
    """Record the memory after both bursts of the processes that survived, and fault its growth."""
    if before.keys() != after.keys():
        system.tally.add_fault(f"a process was restarted in the second phase: {before.keys() ^ after.keys()}")
    for name, pid in before.keys() & after.keys():
        first, second = before[name, pid], after[name, pid]
        system.tally.memory.append((f"{name} ({pid})", first, second))
        if second > first * (1 + GROWTH):
            system.tally.add_fault(f"{name} ({pid}) grew from {first:.1f} to {second:.1f} MiB")


async def run_phases(system: System, options: argparse.Namespace, dice: random.Random) -> None:
    """Run both phases and both bursts."""
    texts, quiet = Texts(dice), Counter[str]()
    chaotic = [Client(system, texts, dice, system.tally.ends) for _ in range(options.clients)]
    calm = [Client(system, texts, dice, quiet) for _ in range(options.clients)]
    first_s = options.minutes * 60 * FIRST_PHASE
    await await_healthy(system)
    await run_phase(system, chaotic, 1, first_s, options.seed)
    await await_healthy(system)
    before = await run_burst(system, calm)
    await run_phase(system, chaotic, 2, options.minutes * 60 - first_s, options.seed)
    await await_healthy(system)
    after = await run_burst(system, calm)
    await await_healthy(system)
    compare_memory(system, before, after)
    await calm[0].send_request()
    if set(quiet) != {"200"} or quiet["200"] != 2 * BURST + 1:
        system.tally.add_fault(f"requests without strikes ended with {dict(quiet)}")
    for client in (*chaotic, *calm):
        client.close()


async def run_system(system: System, options: argparse.Namespace, dice: random.Random) -> None:
    """Run the phases while processes are restarted, then stop all processes."""
    tasks = [asyncio.create_task(system.keep_running()), asyncio.create_task(record_counters(system))]
    running = asyncio.create_task(run_phases(system, options, dice))
    await asyncio.wait([running, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            running.cancel()
            raise result
    await running
    await system.stop()


def check_logs(system: System) -> None:
    """Fault tracebacks in the logs, and frontend processes that ended without a strike."""
    for log in sorted(system.folder.glob("*.log")):
        text = log.read_text(errors="replace")
        if "Traceback" in text:
            system.tally.add_fault(f"{log.name} has {text.count('Traceback')} tracebacks")
    ended = (system.folder / "frontend.log").read_text().count(" ended with status ")
    killed = system.tally.strikes["frontend", "SIGKILL"]
    if ended != killed:
        system.tally.add_fault(f"{ended} frontend processes ended, but {killed} were killed")


def print_summary(tally: Tally, options: argparse.Namespace) -> None:
    """Print the command and a table of results."""
    print(f"scripts/chaos --minutes {options.minutes:g} --seed {options.seed} ", end="")
    print(f"--workers {options.workers} --clients {options.clients}\n\n| what | number |\n|---|---:|")
    print(f"| minutes of chaos | {options.minutes:g} |")
    for (role, kind), number in sorted(tally.strikes.items()):
        print(f"| {role}, {kind} | {number} |")
    for end, number in sorted(tally.ends.items()):
        print(f"| requests, {end} | {number} |")
    print(f"| vectors checked | {tally.jobs} |\n| longest answer | {tally.longest_s:.1f} s |")
    print(f"| incarnations of the broker | {len(tally.incarnations)} |")
    for name in COUNTED:
        print(f"| {name}, at least | {sum(counters.get(name, 0) for counters in tally.incarnations.values())} |")
    for name, before, after in sorted(tally.memory):
        print(f"| memory of the {name} | {before:.1f} → {after:.1f} MiB, {after / before - 1:+.1%} |")
    print(f"| faults | {len(tally.faults)} |\n")
    for fault in tally.faults:
        print(f"- {fault}")


def main() -> None:
    """Run the chaos; exit with status 1 and keep the logs if there is a fault."""
    options = parse_arguments()
    tally, dice = Tally(), random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="vecmill-chaos-"))
    log_event(f"seed {options.seed}, logs in {folder}")
    system = System(folder, options.workers, tally, dice)
    try:
        asyncio.run(run_system(system, options, dice))
        check_logs(system)
    finally:
        system.kill_all()
    print_summary(tally, options)
    if tally.faults or options.keep_logs:
        log_event(f"logs are kept in {folder}")
    else:
        shutil.rmtree(folder)
    sys.exit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
