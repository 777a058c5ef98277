"""What does not fit is refused with what it needs, before it is run."""

import contextlib
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from cnnjax.errors import InputError
from cnnjax.train.memory import MEGABYTE, check_memory, largest_that_fits, memory_left, needed


@contextlib.contextmanager
def at_most(megabytes_more):
    """As `ulimit -v` would have it, for what this process takes from now on."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + megabytes_more * MEGABYTE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_program_that_does_not_fit_is_refused_with_what_it_needs():
    def grow(vector):
        return jnp.sqrt(vector[:, None] * vector)  # 64 MB of every 4,096 numbers

    program, vector = jax.jit(grow), jnp.ones(4 * 4096)
    with at_most(900), pytest.raises(InputError, match=r"^a step needs 1,024 MB of memory more, and \d{3} MB are left"):
        check_memory("a step", needed(program, vector))
    with at_most(900):
        check_memory("a step", needed(jax.jit(jnp.sqrt), vector))
        with pytest.raises(InputError, match="needs 1,0.. MB.*: less of everything"):
            check_memory("a step", needed(jax.jit(jnp.sqrt), vector) + 1024 * MEGABYTE, remedy="less of everything")


@pytest.mark.parametrize("slope", [1, 1000])
@pytest.mark.parametrize("rough", [0, 7])
def test_the_largest_that_fits_is_found_in_few_trials(slope, rough):
    """Of 1 to 5,000 images where each takes `slope` bytes, and some sizes a little more."""
    for left in (0, slope, 37 * slope + 5, 4_999 * slope, 6_000 * slope):
        asked = []

        def bytes_of(size):
            asked.append(size)
            return slope * size + rough * (size % 2)

        sizes = range(1, 5001)
        fits = [size for size in sizes if slope * size + rough * (size % 2) <= left]
        found = largest_that_fits(bytes_of, sizes, left)
        if rough < slope or not fits:
            assert found == max(fits, default=None)
        else:  # not in order of their size
            assert found in fits
        assert len(asked) <= 12


def test_what_is_left_is_no_more_than_the_process_may_take():
    with at_most(500):
        assert 300 * MEGABYTE < memory_left() <= 500 * MEGABYTE
    assert memory_left() > 0
