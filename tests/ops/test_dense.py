import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.errors import InputError
from tests.cases import normal


def test_dense_is_a_product_and_a_sum():
    x, kernel, bias = jnp.arange(6.0).reshape(1, 2, 3), jnp.arange(12.0).reshape(3, 4), jnp.ones(4)
    np.testing.assert_array_equal(ops.dense(x, kernel), np.asarray(x) @ np.asarray(kernel))
    np.testing.assert_array_equal(ops.dense(x, kernel, bias), np.asarray(x) @ np.asarray(kernel) + 1)


@pytest.mark.parametrize(
    "x, kernel, bias, message",
    [
        ((2, 3), (4, 5), None, r"kernel must be \[in_features, out_features\] with the in_features of x"),
        ((2, 3), (3,), None, "kernel must be"),
        ((2, 3), (3, 5), (3,), r"bias must have one entry for each out feature \(5\), got \(3,\)"),
    ],
)
@pytest.mark.wrong_types
def test_shapes_that_disagree_are_refused(x, kernel, bias, message):
    with pytest.raises(InputError, match=message):
        ops.dense(jnp.zeros(x), jnp.zeros(kernel), None if bias is None else jnp.zeros(bias))


def test_types_that_disagree_are_refused():
    with pytest.raises(InputError, match=r"kernel must have the type of x \(bfloat16\), got float32"):
        ops.dense(jnp.zeros((2, 3), jnp.bfloat16), jnp.zeros((3, 3)))


def test_dropout_at_zero_is_the_identity_to_the_bit():
    x = normal(0, (1000,))
    for rate in (0.0, jnp.float32(0)):
        np.testing.assert_array_equal(jax.jit(ops.dropout)(jax.random.key(1), x, rate), x)


@pytest.mark.parametrize("drop_rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expected_share_and_scales_it(drop_rate):
    x = jnp.ones(20_000)
    dropped = jax.jit(ops.dropout)(jax.random.key(0), x, drop_rate)
    kept = dropped != 0
    # five standard deviations of a binomial share
    assert abs(float(kept.mean()) - (1 - drop_rate)) < 5 * np.sqrt(drop_rate * (1 - drop_rate) / x.size)
    np.testing.assert_allclose(dropped[kept], 1 / (1 - drop_rate), rtol=1e-6)
    gradient = jax.grad(lambda x: ops.dropout(jax.random.key(0), x, drop_rate).sum())(x)
    np.testing.assert_array_equal(gradient, dropped)


def test_dropout_rate_may_be_traced_and_the_type_is_kept():
    x = jnp.ones((8,), jnp.bfloat16)
    rates = jnp.array([0.0, 0.5])
    dropped = jax.vmap(ops.dropout, (None, None, 0))(jax.random.key(0), x, rates)
    assert dropped.dtype == jnp.bfloat16
    np.testing.assert_array_equal(dropped[0], x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_of_narrow_types_are_in_float32(dtype):
    x, kernel, bias = jnp.ones((600, 600), dtype), jnp.ones((600, 3), dtype), jnp.zeros(3, dtype)
    product, pull = jax.vjp(ops.dense, x, kernel, bias)
    for found, right in zip((product, *pull(jnp.ones_like(product))), (600, 3, 600, 600), strict=True):
        np.testing.assert_array_equal(np.asarray(found, np.float32), right)
