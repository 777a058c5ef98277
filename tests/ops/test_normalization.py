import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.errors import InputError
from tests.cases import normal, some


def loops(x, size, bias, alpha, beta):
    """Krizhevsky et al. 2012, section 3.3, one channel at a time."""
    x = np.asarray(x, np.float64)
    result = np.empty_like(x)
    channels = x.shape[-1]
    for channel in range(channels):
        first, last = max(0, channel - size // 2), min(channels - 1, channel + (size - 1) // 2)
        squares = (x[..., first : last + 1] ** 2).sum(-1)
        result[..., channel] = x[..., channel] / (bias + alpha * squares) ** beta
    return result


@pytest.mark.parametrize("size", some([1, 2, 5, 20], 2))
@pytest.mark.parametrize("beta", some([0.75, 0.5, 0.6], 0.75, 0.6))
def test_local_response_norm_is_the_formula(size, beta):
    x = normal(0, (2, 3, 3, 9)) * 3
    for alpha_over_n, alpha in ((False, 0.1), (True, 0.1 / size)):
        ours = ops.local_response_norm(x, size=size, bias=1.5, alpha=0.1, beta=beta, alpha_over_n=alpha_over_n)
        np.testing.assert_allclose(ours, loops(x, size, 1.5, alpha, beta), rtol=1e-5)


def test_the_defaults_are_the_papers():
    x = normal(0, (4, 9)) * 50
    np.testing.assert_allclose(ops.local_response_norm(x), loops(x, 5, 2.0, 1e-4, 0.75), rtol=1e-5)


@pytest.mark.parametrize("beta", some([0.75, 0.6], 0.75))
def test_gradients_are_those_of_the_formula(beta):
    x, direction = normal(0, (2, 3, 7))

    def loss(x):
        return jnp.sum(jnp.sin(ops.local_response_norm(x, alpha=0.3, beta=beta)))

    def plain(x):
        padded = jnp.pad(x**2, ((0, 0), (2, 2)))
        squares = sum(padded[:, offset : offset + 7] for offset in range(5))
        return jnp.sum(jnp.sin(x / (2 + 0.3 * squares) ** beta))

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), jax.jit(jax.grad(plain))(x), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.hessian(loss))(x), jax.jit(jax.hessian(plain))(x), rtol=1e-3, atol=1e-5)
    forward = jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (direction,))[1])(x)
    reverse = jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), direction)))(x)
    np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-6)


def test_it_is_one_primitive_in_a_jaxpr():
    def jaxpr(function):
        return jax.make_jaxpr(function)(jnp.ones((2, 5))).eqns

    for function in (ops.local_response_norm, jax.vmap(ops.local_response_norm)):
        assert [equation.primitive.name for equation in jaxpr(function)] == ["local_response_norm"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_types_are_kept(dtype):
    with jax.enable_x64(True):
        x = jnp.ones((2, 6), dtype)
        assert ops.local_response_norm(x).dtype == dtype
        assert jax.grad(lambda x: ops.local_response_norm(x).sum())(x).dtype == dtype


def test_members_under_vmap():
    x = normal(0, (3, 2, 4, 8))
    np.testing.assert_allclose(jax.vmap(ops.local_response_norm)(x), ops.local_response_norm(x), rtol=1e-6)


@pytest.mark.wrong_types
def test_bad_numbers_are_refused():
    with pytest.raises(InputError, match="size must be at least 1, got 0"):
        ops.local_response_norm(jnp.ones((2, 5)), size=0)
    with pytest.raises(InputError, match="bias must be above 0, got 0"):
        ops.local_response_norm(jnp.ones((2, 5)), bias=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_are_rounded_once(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 40)) * 100 + 200, dtype)  # squares beyond float16

    def total(x):
        return jnp.sum(ops.local_response_norm(x, size=9, alpha=0.01).astype(jnp.float64))

    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(x, np.float64))
        for compute in (lambda x: ops.local_response_norm(x, size=9, alpha=0.01), jax.grad(total)):
            right = np.asarray(compute(wide))
            error = np.abs(np.asarray(compute(x), np.float64) - right).max()
            assert error <= 0.51 * float(jnp.finfo(dtype).eps) * np.abs(right).max()


def plain_batch_norm(x, scale, bias, mask):
    """Ioffe & Szegedy 2015, algorithm 1, over the images that the mask keeps."""
    kept = x[np.flatnonzero(mask)]
    axes = tuple(range(x.ndim - 1))
    mean, variance = kept.mean(axes), kept.var(axes)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias, mean, variance


def test_batch_norm_and_its_derivatives_are_those_of_the_formula():
    """Also those of mean and variance, and with rows that do not count; in float64."""
    shape = (128, 6, 6, 4)  # as large as a sum that is a product on a CPU
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, scale, bias = (jnp.asarray(rng.normal(size=size)) + 0.5 for size in (shape, shape[-1:], shape[-1:]))
        factors = [jnp.asarray(rng.normal(size=size)) for size in (shape, shape[-1:], shape[-1:])]
        mask = np.arange(shape[0]) % 3 != 1

        def total(norm):
            def weighted(x, scale, bias):
                results = norm(x, scale, bias, mask)[:3]
                return sum(jnp.sum(jnp.sin(result) * factor) for result, factor in zip(results, factors, strict=True))

            return weighted

        ours, theirs = total(ops.batch_norm), total(plain_batch_norm)
        directions = (x[::-1], bias, scale)

        def derivatives(loss):
            gradient = jax.grad(loss, (0, 1, 2))
            change, along = jax.jvp(gradient, (x, scale, bias), directions)
            return loss(x, scale, bias), jax.jvp(loss, (x, scale, bias), directions)[1], change, along

        compiled = ops.jit(derivatives, static_argnums=0, runs_once=True)
        found, expected = compiled(ours), compiled(theirs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), found, expected)


def test_the_way_back_through_batch_norm_has_two_sums_over_the_places():
    """Each costs a pass over the maps; the formula's own derivative has five."""
    x, channel = jnp.ones((4, 3, 3, 2)), jnp.ones(2)
    _, back = jax.vjp(lambda *operands: ops.batch_norm(*operands).values, x, channel, channel)
    assert str(jax.make_jaxpr(back)(x)).count("sum_channels") == 2
