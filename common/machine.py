"""What this process may use of the machine: a container or a job often has less than the host."""

import os
from contextlib import suppress
from pathlib import Path

# Linux: limits of a container or a job, and which of them are this process's.
GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores():
    """Processor cores that this process may use."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    )
    for group in _groups():
        older = (_numbers(group / f"cpu.cfs_{name}_us")[0] for name in ("quota", "period"))
        for quota, period in (_numbers(group / "cpu.max"), older):
            if quota > 0 and period > 0:
                count = min(count, max(1, round(quota / period)))
    return count


def memory():
    """Bytes of memory that this process may use; None where the system does not tell."""
    sizes = []
    with suppress(AttributeError, OSError, ValueError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for group in _groups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _numbers(group / name)[0]
            if limit > 0:
                sizes.append(limit)
    return min(sizes, default=None)


def _groups():
    """The folders of the control groups that this process is in, by cgroups of version 2 and 1."""
    groups = [GROUPS, GROUPS / "cpu", GROUPS / "memory"]
    with suppress(OSError, ValueError):
        for line in OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            top = GROUPS / next(
                (word for word in controllers.split(",") if word in ("cpu", "memory")), ""
            )
            if not controllers or top != GROUPS:
                group = top / path.lstrip("/")
                groups += [group, *(parent for parent in group.parents if top in parent.parents)]
    return groups


def _numbers(path):
    """The two numbers in a file of limits, -1 for one that is not there."""
    try:
        words = path.read_text().split()
    except (OSError, ValueError):
        words = []
    numbers = [int(word) if word.isdigit() else -1 for word in words[:2]]
    return (numbers + [-1, -1])[:2]
