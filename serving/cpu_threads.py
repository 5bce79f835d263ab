"""How many threads suit this machine, or the share of it that the container may use.

By itself torch starts a thread for each core of the host, whatever the container's CPU quota. Its
threads spin while they wait for each other: where other processes keep the cores busy, they use up
CPU time while the thread that they wait for has no core.

`Settings.export_thread_variables` hands the number to OpenMP. `torch.set_num_threads` would hold
only for the thread that calls it, and jobs and gradients run in others. OpenMP reads its variables
once, when torch is imported, so this module imports no torch.
"""

import math
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

_SYSTEM = Path("/")


def available_threads() -> int | None:
    """As many threads as can compute at the same time, or None where the system doesn't say."""
    if not hasattr(os, "sched_getaffinity"):  # macOS: torch knows its fast cores
        return None
    cores = count_cores(os.sched_getaffinity(0))  # within the cpuset, by the kernel
    quota = cpu_quota()
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def count_cores(cpus: Collection[int], system: Path = _SYSTEM) -> int:
    """The physical cores of these logical CPUs: two threads on one core share its units."""
    cores = set()
    for cpu in cpus:
        topology = system / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cores.add(_read(topology).strip() or str(cpu))
    return len(cores)


def cpu_quota(system: Path = _SYSTEM) -> float | None:
    """How many CPUs' time the process's control groups allow: the smallest quota of all levels.

    None where there is no quota or no control group.
    """
    quotas = [_quota(folder) for folder in _control_groups(system)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _control_groups(system: Path) -> Iterator[Path]:
    """The folders of the process's control groups for CPU time, parents first."""
    groups = dict(_group_paths(_read(system / "proc/self/cgroup")))
    for root, mount_point, version in _mounts(_read(system / "proc/self/mountinfo")):
        if version not in groups:
            continue
        mounted = system / mount_point.lstrip("/")
        yield mounted
        # In a container the mount may begin at its own group, or a group be outside of it.
        path = Path(groups[version])
        if ".." in path.parts or not path.is_relative_to(root):
            continue
        folder = mounted
        for part in path.relative_to(root).parts:
            folder /= part
            yield folder


def _group_paths(cgroup: str) -> Iterator[tuple[int, str]]:
    """Version and path of each control group for CPU time, from /proc/self/cgroup."""
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        if (number, controllers) == ("0", ""):
            yield 2, path
        elif "cpu" in controllers.split(","):
            yield 1, path


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, int]]:
    """Path, mount point and version of each mounted group, from /proc/self/mountinfo."""
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        fields, kind = mount.split(), filesystem.split()
        if kind[:1] == ["cgroup2"]:
            yield fields[3], fields[4], 2
        elif kind[:1] == ["cgroup"] and "cpu" in kind[-1].split(","):
            yield fields[3], fields[4], 1


def _quota(folder: Path) -> float | None:
    """The quota of one control group: `cpu.max` of version 2, or the two files of version 1."""
    allowed, _, period = _read(folder / "cpu.max").strip().partition(" ")
    if not allowed:
        allowed = _read(folder / "cpu.cfs_quota_us").strip()
        period = _read(folder / "cpu.cfs_period_us").strip()
    # "max" or -1 is no quota
    if not re.fullmatch(r"\d+", allowed) or not re.fullmatch(r"0*[1-9]\d*", period):
        return None
    return int(allowed) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
