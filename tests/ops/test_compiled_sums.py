"""That programs compiled with our options add up rightly, where the compiler's defaults do not.

XLA:CPU's library for reductions computes wrong sums over products with a broadcast constant, from about a thousand
rows on (jax-ml/jax #39103). Every program here is a sum over some axes of a product: an array, weights a row, a
constant or counted factor, rows multiplied by constant matrices. float64 NumPy says what is right.
"""

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from tests.cases import some
from tests.faults.runs import SEED

# Factors that broadcast into [rows, columns], in JAX or NumPy (`xp`).
FACTORS = {
    "1": lambda xp, rows, columns: 1.0,
    "number": lambda xp, rows, columns: xp.full((), 2.5),
    "full": lambda xp, rows, columns: xp.full((rows, columns), 2.0),
    "row": lambda xp, rows, columns: xp.full((1, columns), 2.0),
    "column": lambda xp, rows, columns: xp.full((rows, 1), 3.0),
    "counted columns": lambda xp, rows, columns: xp.arange(columns) + 1.0,
    "counted rows": lambda xp, rows, columns: (xp.arange(rows) / rows)[:, None],
    "mask": lambda xp, rows, columns: (xp.arange(rows) < rows // 2)[:, None] * xp.ones(columns),
    "one hot": lambda xp, rows, columns: ((xp.arange(rows) % columns)[:, None] == xp.arange(columns)) * 1.0,
}
# What is made of each row, [columns] -> [...].
ROWS = {
    "itself": lambda xp, row: row,
    "square": lambda xp, row: row * row,
    "ones @": lambda xp, row: xp.ones((row.size, row.size)) @ row,
    "wide ones @": lambda xp, row: xp.ones((2 * row.size, row.size)) @ row,
    "(eye @)²": lambda xp, row: (2 * xp.eye(row.size) @ row) ** 2,
    "@ ones": lambda xp, row: row @ xp.ones((row.size, 4)),
    "counted @": lambda xp, row: xp.arange(4.0 * row.size).reshape(4, -1) @ row,
    "outer": lambda xp, row: row[:, None] * row,
    "repeated": lambda xp, row: row * xp.full((5, 1), 0.5),
    "softened": lambda xp, row: xp.exp(row - row.max()) / xp.exp(row - row.max()).sum(),
}
SUMS = {
    "all": lambda xp, y: y.sum(),
    "over rows": lambda xp, y: y.sum(0),
    "over the last": lambda xp, y: y.sum(-1),
    "all but the last": lambda xp, y: y.reshape(-1, y.shape[-1]).sum(0),
    "mean": lambda xp, y: y.mean(0),
    "variance": lambda xp, y: ((y - y.mean(0)) ** 2).mean(0),
    "max": lambda xp, y: y.max(0),
    "ones @": lambda xp, y: xp.ones(y.shape[0]) @ y.reshape(y.shape[0], -1),
}
PROGRAMS = list(itertools.product(FACTORS, ROWS, SUMS))
WRONG_BY_DEFAULT = ("1", "ones @", "all")  # the reproducer in docs/operations.md


def error(program, rows, columns, dtype, onednn):
    """The largest error, as a share of the largest result."""
    factor, of_row, total = (table[name] for table, name in zip((FACTORS, ROWS, SUMS), program, strict=True))
    generator = np.random.default_rng(0)
    x, weights = generator.normal(size=(rows, columns)) + 1, generator.random(rows) + 0.5
    x, weights = (np.asarray(jnp.asarray(array, dtype), np.float64) for array in (x, weights))

    def compute(x, weights):
        weighted = x * factor(jnp, rows, columns) * weights[:, None]
        return total(jnp, jax.vmap(lambda row: of_row(jnp, row))(weighted.astype(dtype)))

    weighted = x * factor(np, rows, columns) * weights[:, None]
    right = total(np, np.stack([of_row(np, row) for row in weighted]))
    operands = (jnp.asarray(array, dtype) for array in (x, weights))
    found = np.asarray(ops.jit(compute, onednn=onednn)(*operands), np.float64)
    return np.abs(found - right).max() / np.abs(right).max()


@pytest.mark.parametrize("onednn", some([False, True], False))
@pytest.mark.parametrize("seed", some(range(4), 0))
def test_sums_are_right_with_our_options(seed, onednn):
    chosen = random.Random(seed).sample(PROGRAMS, 12)
    for program in [WRONG_BY_DEFAULT, *chosen]:
        rows, columns = random.Random(f"{seed}{program}").choice([(1000, 5), (2048, 16), (4096, 3)])
        assert error(program, rows, columns, "float32", onednn) < 1e-4, (program, rows, columns)


@pytest.mark.faults
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("columns, dtype", [(3, "float32"), (16, "float32"), (5, "bfloat16")])
@pytest.mark.parametrize("rows", [64, 1000, 4096, 33000])
def test_many_sums_are_right_with_our_options(rows, columns, dtype, onednn):
    """Every program at 4096 rows of three columns, where most are wrong by default; elsewhere others for each seed."""
    every = (rows, columns, onednn) == (4096, 3, False)
    programs = PROGRAMS if every else random.Random(f"{SEED}{rows}{columns}").sample(PROGRAMS, 60)
    bound = 1e-3 if dtype == "float32" else 0.05  # rounding of 33,000 terms one after another; wrong sums miss a third
    wrong = {p: e for p in programs if (e := error(p, rows, columns, dtype, onednn)) > bound}
    assert not wrong
