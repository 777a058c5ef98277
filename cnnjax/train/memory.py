"""Memory, looked at before it is taken: an XLA that gets none on a CPU ends the process, or waits for it for ever."""

import contextlib
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from cnnjax.errors import InputError

MEGABYTE = 1 << 20


def check_memory(what: str, program: Any, *args: Any, besides: int = 0) -> None:
    """Refuses a call of a jitted function that needs more memory than is left; it is compiled by then.

    Args:
        what: the call, for the message.
        args: those of the call, which are in memory.
        besides: bytes that are taken beside it.

    Raises:
        InputError: with what is needed, by XLA's own analysis, and what is left.
    """
    analysis = program.lower(*args).compile().memory_analysis()
    left = memory_left()
    if analysis is None or left is None:
        return
    needed = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes + besides
    if needed > left:
        raise InputError(
            f"{what} needs {needed / MEGABYTE:,.0f} MB of memory more, and {max(left, 0) / MEGABYTE:,.0f} MB are left: "
            "a smaller network or batch, or more memory"
        )


def memory_left() -> int | None:
    """Bytes that this process can still take: of the device, or of the machine, the container and the process's limits.

    None where the system does not say, as on macOS.
    """
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return min((*_of_machine(), *_of_container(), *_of_process()), default=None)


def _of_machine() -> Iterator[int]:
    with contextlib.suppress(OSError):
        found = dict(re.findall(r"^(\w+): +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE))
        if "MemAvailable" in found:
            yield 1024 * (int(found["MemAvailable"]) + int(found.get("SwapFree", 0)))


def _of_container() -> Iterator[int]:
    """The memory limits of the control group and of those that it is in, versions 1 and 2."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers in ("", "memory"):
                root = Path("/sys/fs/cgroup", controllers)
                limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else (
                    "memory.max", "memory.current")  # fmt: skip
                group = root / name.lstrip("/")
                for folder in (group, *group.parents):
                    yield from _of_group(folder, limit, used)
                    if folder == root:
                        break


def _of_group(folder: Path, limit: str, used: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):  # "max", or no such group to be seen from within
        most = int((folder / limit).read_text())
        caches = re.findall(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        yield most - int((folder / used).read_text()) + sum(map(int, caches[:1]))  # what is cached can be let go


def _of_process() -> Iterator[int]:
    """`ulimit -v` and `ulimit -d`."""
    with contextlib.suppress(OSError):
        pages = [int(count) for count in Path("/proc/self/statm").read_text().split()]
        for limit, taken in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            most, _ = resource.getrlimit(limit)
            if most != resource.RLIM_INFINITY:
                yield most - taken * os.sysconf("SC_PAGE_SIZE")
