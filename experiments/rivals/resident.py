"""How much memory a process holds at most while it works, as Linux counts it."""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

Work = Callable[[int], float]
_STEPS = 3  # after those that compile, and in which an optimizer makes its state


def growth(build: Callable[[], Work]) -> Work:
    """Work whose answer is the MB that the process of `build`'s work holds at most, over what it held before.

    Counted while it works, once it has been built and compiled and what that took has been given back.
    """
    _give_back()
    before = _megabytes("VmRSS")
    work = build()
    work(_STEPS)

    def answer(count: int) -> float:
        _give_back()
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
        work(_STEPS)
        return _megabytes("VmHWM") - before

    return answer


def _give_back() -> None:
    """What the process has freed it still holds, until it is told."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _megabytes(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6
