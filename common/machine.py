"""What this process may use of the machine: a container or a job often has less than the host."""
import os
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")  # Linux: limits of a container or a job


def cores():
    """Processor cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (
        os.cpu_count() or 1)
    older = (_numbers(f"cpu/cpu.cfs_{name}_us")[0] for name in ("quota", "period"))
    for quota, period in (_numbers("cpu.max"), older):
        if quota > 0 and period > 0:
            count = min(count, max(1, round(quota / period)))
    return count


def memory():
    """Bytes of memory that this process may use; None where the system does not tell."""
    sizes = []
    with suppress(AttributeError, OSError, ValueError):
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _numbers(name)[0]
        if limit > 0:
            sizes.append(limit)
    return min(sizes, default=None)


def _numbers(name):
    """The two numbers in a file of limits, -1 for one that is not there."""
    try:
        words = (GROUPS / name).read_text().split()
    except (OSError, ValueError):
        words = []
    numbers = [int(word) if word.isdigit() else -1 for word in words[:2]]
    return (numbers + [-1, -1])[:2]
