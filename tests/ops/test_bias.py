import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.errors import InputError
from tests.cases import some


def plain(x, bias):
    return x + bias


def derivatives(add, shape):
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(3, *shape)), jnp.float32)
    bias = jnp.asarray(generator.normal(size=(3, shape[-1])), jnp.float32)

    def loss(x, bias):
        return jnp.sum(jnp.sin(add(x, bias)))

    gradient = jax.grad(loss, (0, 1))
    return {
        "value": add(x[0], bias[0]),
        "gradient": gradient(x[0], bias[0]),
        "jvp": jax.jvp(add, (x[0], bias[0]), (x[1], bias[1])),
        "vmap": jax.vmap(gradient)(x, bias),
        "vmap, one bias": jax.vmap(gradient, (0, None))(x, bias[0]),
        "vmap, axes elsewhere": jax.vmap(gradient, (1, 1))(x.swapaxes(0, 1), bias.T),
        "vmap of vmap": jax.vmap(jax.vmap(gradient, (None, 0)), (0, None))(x, bias),
        "gradient of vmap": jax.grad(lambda *both: jnp.sum(jnp.sin(jax.vmap(add)(*both))), (0, 1))(x, bias),
        "forward over reverse": jax.hessian(lambda bias: loss(x[0], bias))(bias[0]),
        "reverse over reverse": jax.jacrev(jax.grad(lambda bias: loss(x[0], bias)))(bias[0]),
        "loop": jax.grad(lambda b: jax.lax.scan(lambda x, _: (jnp.sin(add(x, b)), None), x[0], length=2)[0].sum())(
            bias[0]
        ),
    }


# A sum of rows of a product, one that is too small for it, one whose rows do not divide, and a bare channel axis.
SHAPES = [[16, 12, 11, 8], [5, 7], [131, 130], [3]]


@pytest.mark.parametrize("shape", some(SHAPES, [16, 12, 11, 8]))
def test_derivatives_are_those_of_a_sum(shape):
    ours, wanted = (jax.jit(lambda add=add: derivatives(add, shape))() for add in (ops.add_bias, plain))
    for name in wanted:
        for one, other in zip(jax.tree.leaves(ours[name]), jax.tree.leaves(wanted[name]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max(), err_msg=name)


@pytest.mark.parametrize("dtype", some(["bfloat16", "float16", "float64"], "bfloat16"))
@pytest.mark.parametrize("shape", [(40, 60, 10), (600, 2)])
def test_the_gradient_counts_every_place_in_every_type(dtype, shape):
    with jax.enable_x64(True):
        x, bias = jnp.ones(shape, dtype), jnp.ones(shape[-1], dtype)
        gradient = jax.grad(lambda bias: ops.add_bias(x, bias).astype("float64").sum())(bias)
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(np.asarray(gradient, np.float64), np.prod(shape[:-1]))


@pytest.mark.usefixtures("only_on_cpu")
def test_on_a_cpu_the_gradient_of_a_large_layer_is_a_product():
    x, bias = jnp.ones((128, 14, 14, 8)), jnp.ones(8)
    gradient = ops.jit(jax.grad(lambda bias: jnp.sum(ops.add_bias(x, bias) ** 2)))
    assert " dot(" in gradient.lower(bias).compile().as_text()


def test_without_jit():
    with jax.disable_jit():
        gradient = jax.grad(lambda bias: ops.add_bias(jnp.ones((4, 3)), bias).sum())(jnp.zeros(3))
    np.testing.assert_array_equal(gradient, 4)


@pytest.mark.wrong_types
def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"bias must have one entry for each channel of x \(shape \(2, 3\)\), got"):
        ops.add_bias(jnp.ones((2, 3)), jnp.ones(2))
    with pytest.raises(InputError, match=r"bias must have the type of x \(bfloat16\), got float32"):
        ops.add_bias(jnp.ones((2, 3), jnp.bfloat16), jnp.ones(3))
