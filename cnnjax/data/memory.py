"""How much memory this process can still have, where the system says so."""

import contextlib
import os
import resource
from pathlib import Path

from cnnjax.errors import InputError

# What a container may have, by the two versions of Linux' control groups.
_CONTAINER = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def require_memory(size: int, what: str) -> None:
    """Raises InputError if `what`, of `size` bytes, is more than the machine, its container or `ulimit -v` allows."""
    most = min(_limits())
    if size > most:
        raise InputError(f"{what} need {size:,} bytes of memory, and there are at most {most:,}")


def _limits() -> list[int]:
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY:
        limits.append(max(allowed - _mapped(), 0))
    for path in _CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(path.read_text()))
    return limits


def _mapped() -> int:
    """Bytes of address space in use; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0
