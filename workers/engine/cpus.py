"""Number of CPUs that a process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def count_cpus(root: Path = Path("/")) -> int:
    """Return the number of CPUs in the affinity mask, or fewer if a cgroup grants less CPU time."""
    quotas = (math.ceil(quota) for quota in _read_quotas(root))
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


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
