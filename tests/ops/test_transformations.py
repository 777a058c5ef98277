"""Which op works under which transformation: computed here, and the table in docs/operations.md must say the same."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from tests.cases import some

PAGE = Path(__file__).parent.parent.parent / "docs" / "operations.md"
BEGIN, END = "<!-- ops -->\n", "<!-- /ops -->"


def random(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape)


KERNEL = random(3, 3, 2, 3)
SWITCHES = ops.max_pool_with_switches(jnp.asarray(random(2, 6, 6, 2)), 2).switches

# One real input each, closed over what is not differentiated; float inputs of 2×6×6×2 unless it says otherwise.
OPS = {
    "conv": (lambda x: ops.conv(x, jnp.asarray(KERNEL, x.dtype), strides=2, padding=1), (2, 6, 6, 2)),
    "conv, by its kernel": (lambda k: ops.conv(jnp.asarray(random(2, 6, 6, 2), k.dtype), k), (3, 3, 2, 3)),
    "conv_transpose": (
        lambda x: ops.conv_transpose(x, jnp.asarray(KERNEL, x.dtype), (6, 6), strides=2, padding=1), (2, 3, 3, 3),
    ),
    "max_pool": (lambda x: ops.max_pool(x, 3, strides=2), (2, 6, 6, 2)),
    "max_pool_with_switches": (lambda x: ops.max_pool_with_switches(x, 2).values, (2, 6, 6, 2)),
    "unpool": (lambda x: ops.unpool(x, SWITCHES, (6, 6)), (2, 3, 3, 2)),
    "avg_pool": (lambda x: ops.avg_pool(x, 2), (2, 6, 6, 2)),
    "local_response_norm": (ops.local_response_norm, (2, 3, 3, 7)),
    "add_bias": (lambda b: ops.add_bias(jnp.asarray(random(2, 5, 3), b.dtype), b), (3,)),
    "dense": (lambda x: ops.dense(x, jnp.asarray(random(5, 4), x.dtype)), (2, 5)),
}  # fmt: skip


def close(one, other, tolerance=2e-4):
    np.testing.assert_allclose(
        np.asarray(one, np.float64), np.asarray(other, np.float64), rtol=tolerance, atol=tolerance
    )


def total(op):
    return lambda x: jnp.sum(jnp.sin(op(x)))


def slope(op, x, direction):
    """The derivative in a direction by central differences, in float64."""
    with jax.enable_x64(True):
        x, direction = jnp.asarray(np.asarray(x), jnp.float64), jnp.asarray(np.asarray(direction), jnp.float64)
        return (total(op)(x + 1e-6 * direction) - total(op)(x - 1e-6 * direction)) / 2e-6


def check_jit(op, x):
    close(jax.jit(op)(x), op(x))


def check_vmap(op, x):
    stacked = jnp.stack([x, 2 * x, -x])
    close(jax.vmap(op)(stacked), jnp.stack([op(part) for part in stacked]))


def check_scan(op, x):
    stacked = jnp.stack([x, 2 * x])
    close(jax.lax.scan(lambda carry, part: (carry, op(part)), 0, stacked)[1], jnp.stack([op(part) for part in stacked]))


def check_grad(op, x):
    direction = jnp.asarray(random(*x.shape, 1)[..., 0], x.dtype)
    close(jnp.vdot(jax.grad(total(op))(x), direction), slope(op, x, direction), 5e-3)


def check_jvp(op, x):
    direction = jnp.asarray(random(*x.shape, 1)[..., 0], x.dtype)
    close(jax.jvp(total(op), (x,), (direction,))[1], slope(op, x, direction), 5e-3)


def check_hessian(op, x):
    """Forward over reverse, reverse over reverse and reverse over forward are one matrix."""
    function, x = total(op), x[:1] if x.ndim == 4 and op(x).shape[0] == x.shape[0] and x.shape != SWITCHES.shape else x
    forward_reverse = jax.jacfwd(jax.grad(function))(x)
    close(forward_reverse, jax.jacrev(jax.grad(function))(x))
    close(forward_reverse, jax.jacrev(jax.jacfwd(function))(x))


def check_bfloat16(op, x):
    out = op(x.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    close(out, op(x), 0.02)  # of sums to the bit see the operations' own tests


def check_float64(op, x):
    with jax.enable_x64(True):
        out = op(jnp.asarray(np.asarray(x), jnp.float64))
        assert out.dtype == jnp.float64
    close(out, op(x))


CHECKS = {
    "jit": check_jit, "vmap": check_vmap, "scan": check_scan, "grad": check_grad, "jvp": check_jvp,
    "hessian": check_hessian, "bfloat16": check_bfloat16, "float64": check_float64,
}  # fmt: skip


@pytest.mark.parametrize("name", some(OPS, "conv, by its kernel", "dense"))
def test_every_op_works_under_every_transformation(name):
    op, shape = OPS[name]
    x = jnp.asarray(random(*shape), jnp.float32)
    for check in CHECKS.values():
        check(op, x)


def test_the_page_names_each_op_and_each_transformation():
    lines = [f"| op | {' | '.join(CHECKS)} |", f"| --- {'| :-: ' * len(CHECKS)}|"]
    for name in OPS:
        lines.append(f"| `{name}` {'| ✓ ' * len(CHECKS)}|".replace("`conv, by its kernel`", "`conv`, by its kernel"))
    assert "\n".join(lines) + "\n" in PAGE.read_text().split(BEGIN)[1].split(END)[0]


def test_every_op_takes_the_arrays_of_numpy():
    for op, operands in {
        ops.conv: (random(2, 6, 6, 2), KERNEL),
        lambda outputs, kernel: ops.conv_transpose(outputs, kernel, (6, 6)): (random(2, 4, 4, 3), KERNEL),
        lambda x: ops.max_pool(x, 2): (random(2, 6, 6, 2),),
        lambda x: ops.max_pool_with_switches(x, 2).values: (random(2, 6, 6, 2),),
        lambda values, switches: ops.unpool(values, switches, (6, 6)): (random(2, 3, 3, 2), np.asarray(SWITCHES)),
        lambda x: ops.avg_pool(x, 2): (random(2, 6, 6, 2),),
        ops.local_response_norm: (random(2, 3, 3, 7),),
        ops.add_bias: (random(2, 5, 3), random(3)),
        ops.dense: (random(2, 5), random(5, 4), random(4)),
    }.items():
        np.testing.assert_array_equal(op(*operands), op(*map(jnp.asarray, operands)))
