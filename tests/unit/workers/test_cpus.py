"""Which CPUs a worker uses: quotas of cgroups of both versions, and parts of several workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.processes import ROOT
from tests.unit.workers.test_model_folder import write_folder
from workers.__main__ import claim_cpus, may_use_cpu
from workers.config import Config
from workers.engine import cpus as module
from workers.engine import device
from workers.engine.cpus import claim_part, count_cpus, divide_cpus, list_cpus
from workers.engine.engine import Engine
from workers.models.prepare import prepare_model


@pytest.fixture(autouse=True)
def affinity(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Eight CPUs; the set changes when a worker limits itself to some of them."""
    cpus = set(range(8))
    monkeypatch.setattr(module, "_sharers", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, kept: cpus.intersection_update(kept))
    return cpus


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "0 100000\n"}, 1),
        ("0::/\n", {"cpu.max": ""}, 8),
        ("0::/\n", {"cpu.max": "max\n"}, 8),
        # The nearest group has no limit, but the group that contains it has.
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        # The path of the host does not exist in the container.
        ("0::/kubepods/pod1\n", {"cpu.max": "400000 100000\n"}, 4),
        ("3:cpuset:/\n1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ("4:cpu,cpuacct:/docker/1\n", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "50000"}, 3),
        (
            "4:cpuacct,cpu:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "500000", "cpu/a/cpu.cfs_period_us": "100000", "cpu/cpu.cfs_quota_us": "-1"},
            5,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "50000\n"}, 8),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "0\n"}, 8),
    ],
)
def test_quota_limits_the_number_of_cpus(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    paths = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in paths.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert count_cpus(tmp_path) == expected


def test_cpus_without_cgroups_are_those_of_the_affinity(tmp_path: Path) -> None:
    assert count_cpus(tmp_path) == 8


def test_streams_and_threads_obey_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare_model(write_folder(tmp_path / "tiny"), tmp_path / "cache", print)
    monkeypatch.setattr(device, "count_cpus", lambda: 1)
    limited = Engine(prepared, "CPU", 0, tmp_path / "cache")
    assert limited.streams == 1
    assert limited._compiled.get_property("INFERENCE_NUM_THREADS") == 1
    # A number that the operator chose counts more than the quota.
    assert Engine(prepared, "CPU", 2, tmp_path / "cache").streams == 2


@given(st.integers(1, 64), st.integers(1, 64))
def test_parts_are_equal_and_use_all_cpus(number: int, parts: int) -> None:
    cpus = range(number)
    divided = divide_cpus(cpus, parts)
    sizes = [len(part) for part in divided]
    assert {cpu for part in divided for cpu in part} == set(cpus)
    assert (len(sizes), min(sizes) >= 1, max(sizes) - min(sizes) <= 1) == (parts, True, True)
    assert sum(sizes) == max(number, parts)


def test_workers_of_a_host_claim_different_parts(tmp_path: Path, affinity: set[int]) -> None:
    claimed = []
    for _ in range(3):
        affinity.update(range(8))
        claimed.append(claim_part(tmp_path, "broker", 3))
        assert affinity == set(claimed[-1].cpus)
    assert [list(part.cpus) for part in claimed] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    affinity.update(range(8))
    assert claim_part(tmp_path, "broker", 3) == (list(range(8)), None)
    assert claim_part(tmp_path, "other broker", 3).number == 0


def test_more_workers_than_cpus_are_logged_once(
    tmp_path: Path, affinity: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(9):
        affinity.update(range(8))
        claim_cpus(Config(cache=str(tmp_path), host_workers=9))
    text = "9 workers share 8 CPUs, so that some run on the same CPU; fewer workers give as many texts/s"
    assert caplog.messages == [text]


def test_locks_of_ended_servers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
from pathlib import Path
from workers.engine.cpus import claim_part
claim_part(Path({str(tmp_path)!r}), "running", 1)
print("claimed", flush=True)
input()
"""
    command = [sys.executable, "-c", code]

    def count_groups() -> int:
        return len([path for path in tmp_path.iterdir() if path.is_dir()])

    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        assert worker.stdout.readline() == b"claimed\n"
        (tmp_path / "ended").mkdir()
        (tmp_path / "ended" / "1-of-2").touch()
        claim_part(tmp_path, "new", 1)
        # The locks are young.
        assert count_groups() == 3
        monkeypatch.setattr(module, "MAX_UNUSED_S", 0.0)
        claim_part(tmp_path, "newer", 1)
        assert not (tmp_path / "ended").exists()
        # The other groups have a worker each: this process, and the other one.
        assert count_groups() == 3
        worker.kill()
    claim_part(tmp_path, "newer", 1)
    assert count_groups() == 2


@pytest.mark.parametrize(
    ("device", "devices", "expected"),
    [
        ("", ["GPU"], False),
        ("", ["GPU.1", "NPU"], False),
        ("", ["GPU", "CPU"], True),
        ("", ["GPU", ""], True),
        ("", [], True),
        ("cpu", ["GPU"], True),
        ("gpu.0", ["CPU"], False),
        ("AUTO:GPU,CPU", [], True),
    ],
)
def test_device_of_the_configuration_decides_about_cpus(
    tmp_path: Path, device: str, devices: list[str], expected: bool
) -> None:
    models = [
        {"config": {"name": f"m{number}", "base_path": str(tmp_path), "target_device": each}}
        for number, each in enumerate(devices)
    ]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_config_list": models}))
    assert may_use_cpu(Config(config_path=str(path), device=device)) == expected


def test_unreadable_configuration_leaves_the_cpus_divided(tmp_path: Path) -> None:
    assert may_use_cpu(Config(config_path=str(tmp_path / "none.json")))
    assert may_use_cpu(Config(model="acme/tiny"))


def test_killed_workers_part_is_free(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from workers.engine.cpus import claim_part
os.sched_getaffinity = lambda _: set(range(8))
claim_part(Path({str(tmp_path)!r}), "b", 1)
print("claimed", flush=True)
input()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout
        assert worker.stdout.readline() == b"claimed\n"
        assert claim_part(tmp_path, "b", 1).number is None
        worker.kill()
    assert claim_part(tmp_path, "b", 1).number == 0


@pytest.mark.parametrize(
    ("quota", "share_quota", "parts", "kept", "count"),
    [
        # One worker keeps all CPUs.
        (4, False, 1, 8, 4),
        (4, True, 1, 8, 4),
        # A quota for fewer CPUs than a part has: of each worker, or of both together.
        (2, False, 2, 8, 2),
        (2, True, 2, 8, 1),
        (7, True, 2, 4, 4),
        (6, True, 2, 8, 3),
        # A quota that a part cannot use up.
        (4, False, 2, 4, 4),
        (6, False, 2, 4, 4),
        (8, True, 2, 4, 4),
        # No quota.
        (0, False, 2, 4, 4),
        (0, True, 4, 2, 2),
    ],
)
def test_quota_is_divided_only_if_shared(
    tmp_path: Path, affinity: set[int], quota: int, share_quota: bool, parts: int, kept: int, count: int
) -> None:
    limit = f"{quota * 100000}" if quota else "max"
    for name, text in {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{limit} 100000\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for number in range(parts):
        affinity.update(range(8))
        part = claim_part(tmp_path, "b", parts, tmp_path, share_quota=share_quota)
        assert (part.number, set(part.cpus)) == (number, affinity)
        assert (len(affinity), count_cpus(tmp_path)) == (kept, count)


def test_threads_of_a_core_are_adjacent(tmp_path: Path) -> None:
    for cpu in range(8):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{cpu % 4 // 2}\n")
        (folder / "core_id").write_text(f"{cpu % 2}\n")
    assert list_cpus(tmp_path) == [0, 4, 1, 5, 2, 6, 3, 7]
