"""Which of many cases every test run takes, which only the long one (`pytest -m long`); and numbers to test with."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest


def some(cases: Iterable[Any], *chosen: Any) -> list[Any]:
    """The cases, of which all but the chosen ones are marked `long`.

    A case that is a tuple is a value for each argument; a single argument that is a sequence is given as a list.
    """
    cases = list(cases)
    assert all(case in cases for case in chosen), "a case that does not exist was chosen"
    return [case if case in chosen else pytest.param(*_values(case), marks=pytest.mark.long) for case in cases]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)


def normal(seed: int, shape: tuple[int, ...]) -> jnp.ndarray:
    """Drawn by NumPy, because each shape that JAX draws is a program to compile."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
