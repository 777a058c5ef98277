"""How much memory this process can still have, where the system says so."""

import os
import resource
from pathlib import Path

from cnnjax.errors import InputError


def require_memory(size: int, what: str) -> None:
    """Raises InputError if `what`, of `size` bytes, cannot be held: more than the machine has or `ulimit -v` leaves."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY:
        limits.append(max(allowed - _mapped(), 0))
    if size > min(limits):
        raise InputError(f"{what} need {size:,} bytes of memory, and there are at most {min(limits):,}")


def _mapped() -> int:
    """Bytes of address space in use; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0
