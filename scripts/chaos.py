"""What `scripts/chaos` runs: the three programs with a fake model, clients that check every vector, and random kills.

Two phases. In the first everything is killed: workers, now and then the broker and a frontend's process. In the second
only workers are, and the broker is frozen at times, so that the broker and the frontends live from a first burst of
load to a second, equal one, and their memory after the two can be compared.

A request ends well with a 200 and the right vectors. These ends are counted apart, each with its proof: its client went
away; its connection belonged to a frontend process that was killed (its sockets are listed just before the kill); a 503
or 504 with Retry-After while the broker or all workers were away, or had just been; a 504 of a request that asked for
a short deadline, while any process was away; a 422, because a job whose worker was killed twice cannot be told from
poison. Every other end is a fault, and so is a process that ends by itself.
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

from chaos_clients import Client, Texts, health, watch
from chaos_system import HEALTHY_WITHIN_S, Member, System, Tally, say

#: Mean seconds between two strikes at each role.
MEANS_S = {"worker": 2.0, "broker": 14.0, "frontend": 11.0}
#: What strikes a role in each phase, with weights.
KINDS: dict[int, dict[str, dict[str, float]]] = {
    1: {
        "worker": {"SIGKILL": 4, "SIGSTOP": 3, "SIGTERM": 3},
        "broker": {"SIGKILL": 6, "SIGSTOP": 2, "SIGTERM": 2},
        "frontend": {"SIGKILL": 1},
    },
    2: {"worker": {"SIGKILL": 4, "SIGSTOP": 3, "SIGTERM": 3}, "broker": {"SIGSTOP": 1}},
}
#: Part of the time that the first phase takes.
FIRST_PHASE = 0.6
FROZEN_S = 1.0, 6.0
#: Requests of a burst, enough to fill every ring of memories.
BURST = 1500
#: How much more memory a process may have after the second burst than after the first.
GROWTH = 0.05
#: The broker's counters that the summary shows. A frozen worker's late answer comes without a session.
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


def arguments() -> argparse.Namespace:
    """The flags of scripts/chaos."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Kill at random; check every answer.")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of all that is random")
    parser.add_argument("--workers", type=int, default=4, help="fake workers (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="clients at once (default: %(default)s)")
    parser.add_argument("--keep-logs", action="store_true", help="keep the folder of logs also when all is well")
    return parser.parse_args()


class Strike(NamedTuple):
    """A kill to come, `at` seconds after the phase's start."""

    at: float
    role: str
    kind: str
    frozen_s: float


def plan(phase: int, seconds: float, dice: random.Random) -> list[Strike]:
    """A phase's strikes: a Poisson stream for each role."""
    strikes = []
    for role, kinds in KINDS[phase].items():
        at = dice.expovariate(1 / MEANS_S[role])
        while at < seconds:
            (kind,) = dice.choices(list(kinds), list(kinds.values()))
            strikes.append(Strike(at, role, kind, dice.uniform(*FROZEN_S)))
            at += dice.expovariate(1 / MEANS_S[role])
    return sorted(strikes)


async def strike(system: System, one: Strike, dice: random.Random, thaws: set[asyncio.Task[None]]) -> None:
    """Do it, if there is a process of the role to which nothing has been done yet."""
    name = one.kind
    if one.role == "frontend":
        # One stays: with both gone and their restart delayed, nobody would read what clients send.
        serving = system.serving()
        if len(serving) < 2:
            name = "none was fit"
        else:
            await system.kill_serving(dice.choice(serving))
    else:
        fit = [member for member in (system.workers if one.role == "worker" else [system.broker]) if member.steady]
        if not fit:
            name = "none was fit"
        else:
            member = dice.choice(fit)
            member.send(signal.Signals[one.kind])
            system.note_trouble()
            if one.kind == "SIGSTOP":
                thaws.add(asyncio.create_task(thaw(member, one.frozen_s)))
    system.tally.strikes[one.role, name] += 1


async def thaw(member: Member, after_s: float) -> None:
    """Let a frozen process go on."""
    await asyncio.sleep(after_s)
    member.send(signal.SIGCONT)


async def chaos(system: System, clients: list[Client], phase: int, seconds: float, seed: int) -> None:
    """A phase: clients ask without end while the plan is carried out; then all frozen processes thaw."""
    # Dice of its own: the plan depends on the seed alone, and not on how fast anything went.
    dice = random.Random(f"{seed}, phase {phase}")
    strikes, started = plan(phase, seconds, dice), time.monotonic()
    say(f"phase {phase}: {len(strikes)} strikes in {seconds:.0f} s")
    over = asyncio.Event()

    async def load(client: Client) -> None:
        while not over.is_set():
            await client.ask(slow=0.4, aborts=0.08, short=0.1)

    thaws: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(load(client))
        for one in strikes:
            await asyncio.sleep(started + one.at - time.monotonic())
            await strike(system, one, dice, thaws)
        await asyncio.sleep(started + seconds - time.monotonic())
        await asyncio.gather(*thaws)
        over.set()


async def burst(system: System, clients: list[Client]) -> dict[tuple[str, int], float]:
    """Load of a fixed size without any kill; the memory after it."""
    left = itertools.count(1)

    async def load(client: Client) -> None:
        while next(left) <= BURST:
            await client.ask()

    await asyncio.gather(*(load(client) for client in clients))
    await asyncio.sleep(1)
    for client in clients:
        # The frontend would close them, while nobody looks, before the next burst.
        client.close()
    return system.memory()


async def heal(system: System, within_s: float = HEALTHY_WITHIN_S) -> None:
    """Wait until everything is there, and see that nothing is open: nobody asks now."""
    until, good, state = time.monotonic() + within_s, 0, dict[str, Any]()
    # Several times in a row, so that every frontend process has been asked.
    while good < 8 and time.monotonic() < until:
        with contextlib.suppress(ConnectionRefusedError):
            state = await health(system)
        there = state.get("status") == "ready" and state.get("workers") == len(system.workers)
        good = good + 1 if there and len(system.serving()) == 2 else 0
        await asyncio.sleep(0.1)
    if good < 8:
        system.tally.fault(f"not healthy after {within_s:.0f} s: {state}")
    await asyncio.sleep(1)
    state = await health(system)
    if state.get("open_jobs") != 0 or state.get("queued_jobs") != 0:
        system.tally.fault(f"{state.get('open_jobs')} jobs open and {state.get('queued_jobs')} queued with no clients")


def compare(system: System, before: dict[tuple[str, int], float], after: dict[tuple[str, int], float]) -> None:
    """The memory of each process after the two bursts; only processes that lived through both can be compared."""
    if before.keys() != after.keys():
        system.tally.fault(f"a process was started again in the second phase: {before.keys() ^ after.keys()}")
    for name, pid in before.keys() & after.keys():
        first, second = before[name, pid], after[name, pid]
        system.tally.memory.append((f"{name} ({pid})", first, second))
        if second > first * (1 + GROWTH):
            system.tally.fault(f"{name} ({pid}) grew from {first:.1f} to {second:.1f} MiB")


async def run(system: System, options: argparse.Namespace, dice: random.Random) -> None:
    """All of it, but the end of the processes."""
    texts, quiet = Texts(dice), Counter[str]()
    chaotic = [Client(system, texts, dice, system.tally.ends) for _ in range(options.clients)]
    calm = [Client(system, texts, dice, quiet) for _ in range(options.clients)]
    first_s = options.minutes * 60 * FIRST_PHASE
    await heal(system)
    await chaos(system, chaotic, 1, first_s, options.seed)
    await heal(system)
    before = await burst(system, calm)
    await chaos(system, chaotic, 2, options.minutes * 60 - first_s, options.seed)
    await heal(system)
    after = await burst(system, calm)
    await heal(system)
    compare(system, before, after)
    await calm[0].ask()
    if set(quiet) != {"200"} or quiet["200"] != 2 * BURST + 1:
        system.tally.fault(f"without kills, requests ended so: {dict(quiet)}")
    for client in (*chaotic, *calm):
        client.close()


async def supervised(system: System, options: argparse.Namespace, dice: random.Random) -> None:
    """Run with everything kept up, then stop everything."""
    tasks = [asyncio.create_task(system.keep()), asyncio.create_task(watch(system))]
    running = asyncio.create_task(run(system, options, dice))
    await asyncio.wait([running, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            running.cancel()
            raise result
    await running
    await system.stop()


def read_logs(system: System) -> None:
    """What the programs themselves say of faults: tracebacks, and serving processes that nobody killed."""
    for log in sorted(system.folder.glob("*.log")):
        text = log.read_text(errors="replace")
        if "Traceback" in text:
            system.tally.fault(f"{log.name} has {text.count('Traceback')} tracebacks")
    ended = (system.folder / "frontend.log").read_text().count(" ended with status ")
    killed = system.tally.strikes["frontend", "SIGKILL"]
    if ended != killed:
        system.tally.fault(f"{ended} frontend processes ended, but {killed} were killed")


def report(tally: Tally, options: argparse.Namespace) -> None:
    """The summary."""
    print(f"scripts/chaos --minutes {options.minutes:g} --seed {options.seed} ", end="")
    print(f"--workers {options.workers} --clients {options.clients}\n\n| what | how many |\n|---|---:|")
    print(f"| minutes of chaos | {options.minutes:g} |")
    for (role, kind), number in sorted(tally.strikes.items()):
        print(f"| {role}, {kind} | {number} |")
    for end, number in sorted(tally.ends.items()):
        print(f"| requests, {end} | {number} |")
    print(f"| vectors checked | {tally.jobs} |\n| longest answer | {tally.longest_s:.1f} s |")
    print(f"| lives of the broker | {len(tally.lives)} |")
    for name in COUNTED:
        print(f"| {name}, at least | {sum(life.get(name, 0) for life in tally.lives.values())} |")
    for name, before, after in sorted(tally.memory):
        print(f"| memory of the {name} | {before:.1f} → {after:.1f} MiB, {after / before - 1:+.1%} |")
    print(f"| faults | {len(tally.faults)} |\n")
    for fault in tally.faults:
        print(f"- {fault}")


def main() -> None:
    """Exit status 0 without faults, else 1, and then the logs are kept."""
    options = arguments()
    tally, dice = Tally(), random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="vecmill-chaos-"))
    say(f"seed {options.seed}, logs in {folder}")
    system = System(folder, options.workers, tally, dice)
    try:
        asyncio.run(supervised(system, options, dice))
        read_logs(system)
    finally:
        system.close()
    report(tally, options)
    if tally.faults or options.keep_logs:
        say(f"logs are kept in {folder}")
    else:
        shutil.rmtree(folder)
    sys.exit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
