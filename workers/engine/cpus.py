"""CPUs that a process may use: their number, and the part that is left to one of several workers of a host."""

import contextlib
import fcntl
import hashlib
import itertools
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

#: How much lower the priority of the threads is that run most inferences, in steps of nice(2). A thread of the spare
#: stream, like the sockets, then gets 4.8 times their share of a CPU, about that of the interactive lane in the broker.
NICE = 7
#: Seconds after which the locks of a group without a worker are removed. Each start of scripts/serve has its own group.
MAX_UNUSED_S = 3600.0
#: Workers that divide the CPU quota of this process's cgroup, as `claim_part` was told.
_sharers = 1


def count_cpus(root: Path = Path("/")) -> int:
    """Return the number of CPUs in the affinity mask, or fewer if this process's share of a CPU quota is less."""
    quotas = (math.ceil(quota / _sharers) for quota in _read_quotas(root))
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


class Part(NamedTuple):
    """Part of one worker, if several workers divide the CPUs of their host."""

    #: CPUs that the worker may run on.
    cpus: Sequence[int]
    #: Number of the part, from 0, also if a quota makes the worker keep all CPUs; None if other workers have all parts.
    number: int | None


def claim_part(folder: Path, group: str, parts: int, root: Path = Path("/"), *, share_quota: bool = False) -> Part:
    """Claim one of so many equal parts of the CPUs until this process ends, and run this thread there.

    Threads that start later, such as OpenVINO's, run there too. Workers of one `group` that have the same folder and
    affinity mask claim different parts. With `share_quota`, a CPU quota is that of all these workers together, and
    without it that of each. Under a quota for fewer CPUs than a part has, the thread may run on all CPUs, because the
    kernel limits it anyway, and finds those that other containers leave free. Raise `OSError` if the folder cannot be
    written.
    """
    global _sharers
    _sharers = parts if share_quota else 1
    cpus = list_cpus(root)
    number = _lock_part(folder, _find_lock_name(f"{group} {cpus}", root), parts)
    if number is None:
        return Part(cpus, None)
    part = divide_cpus(cpus, parts)[number]
    if parts == 1 or count_cpus(root) < len(part):
        return Part(cpus, number)
    os.sched_setaffinity(0, part)
    return Part(part, number)


def divide_cpus(cpus: Sequence[int], parts: int) -> list[Sequence[int]]:
    """Return parts of adjacent CPUs whose sizes differ by at most 1. Of too few CPUs, several parts get the same one.

    The first parts are the larger ones.
    """
    if parts > len(cpus):
        return [cpus[number % len(cpus) :][:1] for number in range(parts)]
    size, larger = divmod(len(cpus), parts)
    starts = [number * size + min(number, larger) for number in range(parts + 1)]
    return [cpus[start:end] for start, end in itertools.pairwise(starts)]


def list_cpus(root: Path = Path("/")) -> list[int]:
    """Return the CPUs of the affinity mask, those of one socket and the threads of one core side by side."""

    def locate(cpu: int) -> tuple[int, int, int]:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        socket, core = (_read_text(topology / name).strip() for name in ("physical_package_id", "core_id"))
        return int(socket) if socket.isdecimal() else 0, int(core) if core.isdecimal() else cpu, cpu

    return sorted(os.sched_getaffinity(0), key=locate)


def _find_lock_name(group: str, root: Path) -> str:
    """Return the name of the folder of a group's locks. Hosts that share a file system have different ones."""
    boot = _read_text(root / "proc/sys/kernel/random/boot_id").strip()
    return hashlib.sha256(f"{boot} {group}".encode()).hexdigest()[:16]


def _lock_part(folder: Path, name: str, parts: int) -> int | None:
    """Lock and return the first free part. The kernel frees it when the process ends, however that happens."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as guard:
        # No other worker claims a part while unused locks are removed.
        fcntl.flock(guard, fcntl.LOCK_EX)
        _remove_unused_locks(folder, name)
        (folder / name).mkdir(exist_ok=True)
        for number in range(parts):
            # The number of parts is in the name, so that workers with another number have other locks.
            if _lock_file(folder / name / f"{number + 1}-of-{parts}") is not None:
                return number
    return None


def _lock_file(path: Path) -> int | None:
    """Return the descriptor of a file that is now locked, or None if another process has locked the file."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _remove_unused_locks(folder: Path, kept: str) -> None:
    """Remove the folders of other groups that have had no worker for a while."""
    for group in folder.iterdir():
        # A group that cannot be removed does no harm.
        with contextlib.suppress(OSError):
            if group.name == kept or not group.is_dir() or time.time() < group.stat().st_mtime + MAX_UNUSED_S:
                continue
            locked = [_lock_file(path) for path in group.iterdir()]
            if None not in locked:
                shutil.rmtree(group)
            for file in filter(None, locked):
                os.close(file)


def _read_quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas, in CPUs, of this process's cgroups and of the cgroups that contain them.

    Version 2: docs.kernel.org/admin-guide/cgroup-v2.html, `cpu.max`. Version 1:
    docs.kernel.org/scheduler/sched-bwc.html, `cpu.cfs_quota_us`. In a container, the path in /proc may be that of the
    host, of which only the end exists; the container's own cgroup is then mounted as the root.
    """
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = PurePosixPath(path.lstrip("/"))
        for folder in (mount / group, *(mount / parent for parent in group.parents)):
            if controllers:
                limit = [_read_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            else:
                limit = _read_text(folder / "cpu.max").split()
            # The quota is "max" or -1 if there is none.
            if len(limit) == 2 and limit[0].isdecimal() and limit[1].isdecimal() and int(limit[1]):
                yield int(limit[0]) / int(limit[1])


def _read_text(path: Path) -> str:
    """Return the content of a file, or "" if the file cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
