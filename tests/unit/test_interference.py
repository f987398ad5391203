"""What the kernel tells of stolen time, throttling and CPUs, in the words of both versions of cgroups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.run.interference import Interference, Moment, own_cpu_groups, stolen_s, throttled_s, usable_cpus

V1_MOUNT = "31 25 0:27 {top} /sys/fs/cgroup/cpu rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct\n"
V2_MOUNT = "32 25 0:28 {top} /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
OTHER_MOUNT = "30 25 0:26 / /sys/fs/cgroup/cpuset rw,relatime shared:4 - cgroup cgroup rw,cpuset\n"

ALL_CPUS = set(range(8))


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def version_1(root: Path, own: str = "/limited/run", top: str = "/") -> Path:
    """A machine whose cgroups are of version 1, with version 2 mounted beside it; where its CPU groups are."""
    write(root / "proc/self/cgroup", f"9:cpuset:/\n1:cpu,cpuacct:{own}\n0::/elsewhere\n")
    write(root / "proc/self/mountinfo", OTHER_MOUNT + V2_MOUNT.format(top="/") + V1_MOUNT.format(top=top))
    return root / "sys/fs/cgroup/cpu"


def version_2(root: Path, own: str = "/limited/run") -> Path:
    write(root / "proc/self/cgroup", f"0::{own}\n")
    write(root / "proc/self/mountinfo", V2_MOUNT.format(top="/"))
    return root / "sys/fs/cgroup/unified"


def set_quota_1(group: Path, quota_us: int) -> None:
    write(group / "cpu.cfs_quota_us", f"{quota_us}\n")
    write(group / "cpu.cfs_period_us", "100000\n")


def test_stolen_time_is_the_eighth_of_all_cpus_in_ticks(tmp_path: Path) -> None:
    write(tmp_path / "proc/stat", "cpu  1 2 3 4 5 6 7 250 9 10\ncpu0 1 2 3 4 5 6 7 99 9 10\nctxt 7\n")
    assert stolen_s(tmp_path) == 250 / os.sysconf("SC_CLK_TCK")


def test_the_own_group_and_its_parents_are_found_in_both_versions(tmp_path: Path) -> None:
    for name, machine in (("one", version_1), ("two", version_2)):
        mount = machine(tmp_path / name)
        assert own_cpu_groups(tmp_path / name) == [mount / "limited/run", mount / "limited", mount]


def test_in_a_container_a_part_of_the_groups_is_mounted(tmp_path: Path) -> None:
    mount = version_1(tmp_path, own="/docker/abc/run", top="/docker/abc")
    assert own_cpu_groups(tmp_path) == [mount / "run", mount]
    mount = version_1(tmp_path, own="/", top="/docker/abc")
    assert own_cpu_groups(tmp_path) == [mount]


def test_throttled_time_is_that_of_the_group_and_its_parents(tmp_path: Path) -> None:
    mount = version_1(tmp_path / "one")
    write(mount / "limited/run/cpu.stat", "nr_periods 9\nnr_throttled 3\nthrottled_time 1500000000\n")
    write(mount / "limited/cpu.stat", "nr_periods 0\nnr_throttled 0\nthrottled_time 500000000\n")
    assert throttled_s(tmp_path / "one") == pytest.approx(2.0)
    mount = version_2(tmp_path / "two")
    write(mount / "limited/run/cpu.stat", "usage_usec 7\nnr_throttled 3\nthrottled_usec 250000\n")
    write(mount / "cpu.stat", "usage_usec 7\n")
    assert throttled_s(tmp_path / "two") == pytest.approx(0.25)


def test_the_tightest_quota_or_the_affinity_decides_which_cpus_may_be_used(tmp_path: Path) -> None:
    mount = version_1(tmp_path / "one")
    set_quota_1(mount / "limited/run", -1)
    assert usable_cpus(ALL_CPUS, tmp_path / "one") == 8
    set_quota_1(mount / "limited", 60_000)
    assert usable_cpus(ALL_CPUS, tmp_path / "one") == pytest.approx(0.6)
    mount = version_2(tmp_path / "two")
    write(mount / "limited/run/cpu.max", "max 100000\n")
    assert usable_cpus(ALL_CPUS, tmp_path / "two") == 8
    write(mount / "limited/run/cpu.max", "250000 100000\n")
    write(mount / "limited/cpu.max", "600000 100000\n")
    assert usable_cpus(ALL_CPUS, tmp_path / "two") == pytest.approx(2.5)
    assert usable_cpus({0, 3}, tmp_path / "two") == 2


def test_without_cgroups_nothing_is_throttled_and_the_affinity_counts(tmp_path: Path) -> None:
    assert Moment.now(tmp_path) == Moment(0.0, 0.0)
    assert usable_cpus({1}, tmp_path) == 1


def test_what_happened_is_the_difference_between_two_moments(tmp_path: Path) -> None:
    mount, tick_s = version_2(tmp_path), 1 / os.sysconf("SC_CLK_TCK")
    write(tmp_path / "proc/stat", "cpu 1 2 3 4 5 6 7 100 9 10\n")
    write(mount / "limited/cpu.stat", "throttled_usec 1000000\n")
    before = Moment.now(tmp_path)
    write(tmp_path / "proc/stat", "cpu 1 2 3 4 5 6 7 130 9 10\n")
    write(mount / "limited/cpu.stat", "throttled_usec 3000000\n")
    found = before.until_now(tmp_path)
    assert found == Interference(pytest.approx(30 * tick_s), pytest.approx(2.0), len(os.sched_getaffinity(0)))
