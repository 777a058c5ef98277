"""The deconvnet as a transformation of functions, against numbers by hand and against the explicit form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models, ops
from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from cnnjax.visualize.deconvnet import BACKWARD, project, project_by_switches, with_relu_rule


@pytest.mark.parametrize(
    ("rule", "expected"), [("gradient", [0, -2, 3]), ("deconvnet", [5, 0, 3]), ("guided", [0, 0, 3])]
)
@pytest.mark.parametrize(
    "relu", [jax.nn.relu, lambda x: jnp.maximum(x, 0), lambda x: jnp.maximum(0.0, x), jax.jit(jax.nn.relu)]
)
def test_the_three_rules_at_one_relu(rule, expected, relu):
    """Inputs -1, 2, 4 and signals 5, -2, 3 from above."""
    _, backward = jax.vjp(with_relu_rule(relu, rule), jnp.array([-1.0, 2.0, 4.0]))
    np.testing.assert_array_equal(backward(jnp.array([5.0, -2.0, 3.0]))[0], expected)


def test_the_gradient_rule_is_the_gradient_and_values_never_change():
    network = models.build(
        ModelConfig("zfnet_small", widths=(4, 4), filters=(3, 3), strides=(1, 1), pools=(2, 1)), (12, 12, 3), 3
    )
    images = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    variables = network.init(jax.random.key(1), images)

    def logits(x):
        return network.apply(variables, x)[0]

    value, backward = jax.vjp(logits, images)
    for rule in BACKWARD:
        other, changed = jax.vjp(with_relu_rule(logits, rule), images)
        np.testing.assert_array_equal(value, other)
        assert np.allclose(changed(jnp.ones_like(value))[0], backward(jnp.ones_like(value))[0], atol=1e-6) == (
            rule == "gradient"
        )


def test_a_4x4_image_by_hand():
    """One 2x2 filter (1, 2; 3, -4), ReLU, pool 2x2 with stride 1: the strongest unit's projection is the filter.

    The image has a 1 at row 1, column 0 and a 2 at row 2, column 2. conv at (i, j) is x[i,j] + 2 x[i,j+1] +
    3 x[i+1,j] - 4 x[i+1,j+1]; its largest value is 6 at (1, 2), where 3 weighs the 2.
    """
    image = jnp.zeros((1, 4, 4, 1)).at[0, 1, 0, 0].set(1.0).at[0, 2, 2, 0].set(2.0)
    kernel = jnp.array([[1.0, 2.0], [3.0, -4.0]])[:, :, None, None]

    def pooled(x):
        return ops.max_pool(jax.nn.relu(ops.conv(x, kernel) - 0.5), 2, strides=1)

    maps = pooled(image)
    np.testing.assert_array_equal(maps[0, :, :, 0], [[2.5, 5.5], [3.5, 5.5]])
    projection = project(pooled, image, jnp.array([[0, 1, 0]]))
    expected = np.zeros((4, 4))
    expected[1:3, 2:4] = 5.5 * np.array([[1, 2], [3, -4]])
    np.testing.assert_allclose(projection[0, :, :, 0], expected)


NETWORKS = {
    "overlapping pools, stride, padding, odd sizes": (ModelConfig("zfnet", widths=(4, 5, 6), norm="none"), (39, 33, 3)),
    "grey": (ModelConfig("lenet"), (28, 28, 1)),
    "no pool": (ModelConfig("lenet", pools=(1, 1), widths=(3, 4)), (16, 16, 1)),
    "contrast normalization": (ModelConfig("zfnet", widths=(4, 5, 6)), (39, 33, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_both_forms_agree_on_every_layer(name, batch):
    config, shape = NETWORKS[name]
    network = models.build(config, shape, 4)
    images = jax.random.normal(jax.random.key(0), (batch, *shape))
    variables = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape) / np.sqrt(leaf.size),
        network.init(jax.random.key(1), images),
    )
    maps = network.apply(variables, images)[1]
    for layer in (layer for layer in maps if layer.startswith(("conv", "pool"))):
        flat = np.asarray(maps[layer]).reshape(batch, -1)
        units = np.stack(np.unravel_index(flat.argmax(axis=1), maps[layer].shape[1:]), axis=-1)
        one = project(lambda x, layer=layer: network.apply(variables, x)[1][layer], images, units)
        other = project_by_switches(network, variables, images, layer, units)
        assert float(jnp.abs(one).max()) > 0
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(one).max()), rtol=0)


def test_the_projection_is_homogeneous_in_the_activation():
    """recon(s · seed) = s · recon(seed) for s > 0."""
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 4))
    image = jax.random.normal(jax.random.key(1), (1, 9, 9, 1))
    _, backward = jax.vjp(
        with_relu_rule(lambda x: jax.nn.relu(ops.conv(jax.nn.relu(ops.conv(x, kernel)), kernel.swapaxes(2, 3)))), image
    )
    seed = jnp.zeros((1, 5, 5, 1)).at[0, 2, 3, 0].set(1.0)
    np.testing.assert_allclose(backward(7 * seed)[0], 7 * backward(seed)[0], rtol=1e-5)


def test_one_relu_used_twice_and_functions_of_plain_numpy_code():
    def network(x):
        relu = jax.jit(lambda v: jnp.maximum(v, 0.0))
        return relu(jnp.tanh(relu(x) @ jnp.ones((3, 3))) - 0.5)

    x = jnp.array([[1.0, -1.0, 0.2]])
    inside = jnp.sum(jnp.maximum(x, 0))
    signal = 3 * (1 - jnp.tanh(inside) ** 2)  # three outputs, each with the same signal; x[1] < 0 still gets it
    _, backward = jax.vjp(with_relu_rule(network), x)
    np.testing.assert_allclose(backward(jnp.ones((1, 3)))[0], [[signal] * 3], rtol=1e-5)


def test_it_runs_under_jit_and_vmap():
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    plain = jax.vjp(with_relu_rule(jax.nn.relu), x)[1](x + 1)[0]
    mapped = jax.jit(jax.vmap(lambda v: jax.vjp(with_relu_rule(jax.nn.relu), v)[1](v + 1)[0]))(x)
    np.testing.assert_array_equal(plain, mapped)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="rule must be one of gradient, deconvnet, guided, got 'guide'"):
        with_relu_rule(jax.nn.relu, "guide")  # type: ignore[arg-type]
    network = models.build(ModelConfig("lenet"), (28, 28, 1), 4)
    images = jnp.zeros((1, 28, 28, 1))
    with pytest.raises(InputError, match="layer must be one of conv1, pool1, conv2, pool2, got 'conv3'"):
        project_by_switches(network, network.init(jax.random.key(0), images), images, "conv3", jnp.zeros((1, 3), int))


@pytest.mark.parametrize(
    "units", [[[0, 0, 9]], [[5, 0, 0]], [[-1, 0, 0]], [[0, 0]], [[0, 0, 0], [0, 0, 0]], [[0.5, 0, 0]]]
)
def test_units_that_do_not_exist_are_refused(units):
    with pytest.raises(InputError, match="units must"):
        project(jax.nn.relu, jnp.zeros((1, 5, 5, 3)), np.array(units))


def test_a_relu_that_no_rule_reaches_is_said_and_not_passed_over():
    def looped(x):
        return jax.lax.scan(lambda carry, _: (jax.nn.relu(carry), None), x, length=2)[0]

    def chosen(x):
        return jax.lax.cond(x.sum() > 0, jax.nn.relu, lambda y: y, x)

    for function, name in ((looped, "scan"), (chosen, "cond")):
        with pytest.raises(InputError, match=f"outside {name}"):
            jax.vjp(with_relu_rule(function), jnp.ones(3))


def test_the_rule_holds_inside_a_checkpoint():
    _, backward = jax.vjp(with_relu_rule(jax.checkpoint(lambda x: jax.nn.relu(jnp.sin(x)))), jnp.array([0.0, 4.0]))
    np.testing.assert_allclose(backward(jnp.array([-3.0, 2.0]))[0], [0.0, 2 * np.cos(4.0)], rtol=1e-6)
