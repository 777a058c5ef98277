"""Memory, looked at before it is taken: an XLA that gets none on a CPU ends the process, or waits for it for ever."""

import contextlib
import math
import os
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cnnjax.errors import InputError

MEGABYTE = 1 << 20


class Memory(NamedTuple):
    """What a training takes on each device, in bytes."""

    state: int  # parameters, the optimizer's numbers, batch statistics
    images: int  # of the training set or of its next steps, with their order
    step: float  # activations, gradients, and a batch as the network sees it, while a step runs
    saved: int  # a copy of the state, while it is saved
    left: int | None  # to be taken, beside state and images; None where the system does not say


def needed(program: Any, *args: Any) -> float:
    """Bytes that a call of a jitted function takes on a device beside its arguments, by XLA's own analysis.

    It is compiled by then. 0 where XLA does not say; infinite where memory is short for compiling it.
    """
    try:
        analysis = program.lower(*args).compile().memory_analysis()
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf
    if analysis is None:
        return 0
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes


def on_a_device(tree: Any) -> int:
    """Bytes that the arrays, on devices or on the host, have or will have on each device."""
    return sum(
        leaf.addressable_shards[0].data.nbytes if isinstance(leaf, jax.Array) else np.asarray(leaf).nbytes
        for leaf in jax.tree.leaves(tree)
    )


def check_memory(
    what: str, needed: float, *, remedy: Callable[[int], str] | str = "a smaller network, or more memory"
) -> None:
    """Refuses what takes more memory than is left.

    Args:
        what: takes it, for the message.
        needed: bytes.
        remedy: what would help; a function of the bytes that are left where that takes long to find out.

    Raises:
        InputError: with what is needed and what is left.
    """
    left = memory_left()
    if left is None or needed <= left:
        return
    much = f"{needed / MEGABYTE:,.0f} MB of memory more" if needed < math.inf else "more memory to be compiled"
    text = remedy if isinstance(remedy, str) else remedy(left)
    raise InputError(f"{what} needs {much}, and {max(left, 0) / MEGABYTE:,.0f} MB are left: {text}")


def largest_that_fits(needed: Callable[[int], float], sizes: Sequence[int], left: float) -> int | None:
    """The largest of the sizes, in ascending order, that needs no more than is left; None where none does.

    Args:
        needed: bytes of a size; where they grow about linearly, few sizes are asked for.
    """
    known: dict[int, float] = {}

    def fits(place: int) -> bool:
        known.setdefault(place, needed(sizes[place]))
        return known[place] <= left

    low, high = 0, len(sizes) - 1
    if fits(high):
        return sizes[high]
    if not fits(low):
        return None
    while high - low > 1:  # the first fits, the second does not
        if known[high] < math.inf:  # where a straight line between the two crosses what is left
            place = low + int((left - known[low]) * (high - low) / (known[high] - known[low]))
        else:
            place = (low + high) // 2
        for near in (place, place + 1):  # which are next to each other where the line is right
            if low < near < high:
                low, high = (near, high) if fits(near) else (low, near)
    return sizes[low]


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
