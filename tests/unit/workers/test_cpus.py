"""How many CPUs a worker uses, under quotas of cgroups of both versions."""

import os
from pathlib import Path

import pytest

from tests.unit.workers.test_model_folder import write_folder
from workers.engine import device
from workers.engine.cpus import count_cpus
from workers.engine.engine import Engine
from workers.models.prepare import prepare_model


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


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
