"""What does not fit is refused with what it needs, before it is run."""

import contextlib
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from cnnjax.errors import InputError
from cnnjax.train.memory import MEGABYTE, check_memory, memory_left


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
        check_memory("a step", program, vector)
    with at_most(900):
        check_memory("a step", jax.jit(jnp.sqrt), vector)
        with pytest.raises(InputError, match="needs 1,0.. MB"):
            check_memory("a step", jax.jit(jnp.sqrt), vector, besides=1024 * MEGABYTE)


def test_what_is_left_is_no_more_than_the_process_may_take():
    with at_most(500):
        assert 300 * MEGABYTE < memory_left() <= 500 * MEGABYTE
    assert memory_left() > 0
