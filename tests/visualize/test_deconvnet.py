"""The deconvnet as a transformation of functions, against numbers by hand and against the explicit form."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models, ops
from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from cnnjax.geometry import ReceptiveField
from cnnjax.models.building import Layers
from cnnjax.tracing.relus import feature_maps_of, with_offset
from cnnjax.visualize.attribution import grad_cam
from cnnjax.visualize.deconvnet import BACKWARD, project, project_by_switches, with_relu_rule
from cnnjax.visualize.evolution import make_look, make_projector, strongest_activations, tile_evolution
from tests.cases import normal


class Batch(NamedTuple):
    images: np.ndarray
    mask: np.ndarray


def drawn(network, images):
    """Variables of the network, that no program has to be compiled for."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(leaf.size), leaf.dtype),
        jax.eval_shape(network.init, jax.random.key(0), images),
    )


@pytest.mark.parametrize(
    ("rule", "expected"), [("gradient", [0, -2, 3]), ("deconvnet", [5, 0, 3]), ("guided", [0, 0, 3])]
)
@pytest.mark.parametrize(
    "relu",
    [
        jax.nn.relu,
        lambda x: jnp.maximum(x, 0),
        lambda x: jnp.maximum(0.0, x),
        lambda x: jnp.maximum(x, jnp.zeros_like(x)),
        lambda x: jnp.maximum(x, np.zeros(3, np.float32)),
        lambda x: jnp.where(x > 0, x, 0),
        lambda x: jnp.where(x <= 0, jnp.zeros(3), x),
        lambda x: jnp.where(jnp.zeros_like(x) < x, x, 0),
        lambda x: jnp.clip(x, 0, None),
        lambda x: jnp.clip(x, 0, jnp.inf),
        lambda x: jax.lax.max(x, 0.0),
        jax.jit(lambda x: jnp.where(x > 0, x, jnp.zeros_like(x))),
        jax.checkpoint(jax.nn.relu),
        jax.vmap(jax.nn.relu),
        lambda x: jax.lax.cond(x.sum() > 0, jax.nn.relu, lambda y: y, x),
    ],
)
def test_the_three_rules_at_one_relu(rule, expected, relu):
    """Inputs -1, 2, 4 and signals 5, -2, 3 from above."""
    _, backward = jax.vjp(with_relu_rule(relu, rule), jnp.array([-1.0, 2.0, 4.0]))
    np.testing.assert_array_equal(backward(jnp.array([5.0, -2.0, 3.0]))[0], expected)


BOUNDED = {
    "relu6": jax.nn.relu6,
    "of Flax": nn.relu6,
    "clip": lambda x: jnp.clip(x, 0, 6),
    "minimum of maximum": lambda x: jnp.minimum(jnp.maximum(x, 0), 6),
    "minimum of relu": lambda x: jnp.minimum(jax.nn.relu(x), 6),
    "the bound first in the call": lambda x: jnp.minimum(jnp.float32(6), jnp.where(x > 0, x, 0)),
    "by jitted parts": lambda x: jax.jit(lambda y: jnp.minimum(y, 6.0))(jax.jit(jax.nn.relu)(x)),
    "clamp": lambda x: jax.lax.clamp(0.0, x, 6.0),
    "in a checkpoint": jax.checkpoint(jax.nn.relu6),
    "in a choice": lambda x: jax.lax.cond(x.sum() > 0, jax.nn.relu6, lambda y: y, x),
    "as layers of known networks have it": lambda x: Layers(nn.Module(), False, None, 0, 0).relu("", x, most=6),
}


@pytest.mark.parametrize(("rule", "expected"), [("deconvnet", [5, 0, 3, 0, 0]), ("guided", [0, 0, 3, 0, 0])])
@pytest.mark.parametrize("relu6", BOUNDED.values(), ids=BOUNDED)
def test_a_bounded_relu_passes_no_signal_where_the_bound_holds(rule, expected, relu6):
    """Inputs -1, 2, 4, 6, 7 and signals 5, -2, 3, 4, 8 from above."""
    x = jnp.array([-1.0, 2.0, 4.0, 6.0, 7.0])
    value, backward = jax.vjp(with_relu_rule(relu6, rule), x)
    np.testing.assert_array_equal(value, [0, 2, 4, 6, 6])
    np.testing.assert_array_equal(backward(jnp.array([5.0, -2.0, 3.0, 4.0, 8.0]))[0], expected)


@pytest.mark.parametrize("relu6", [BOUNDED[name] for name in BOUNDED if name != "in a choice"])
def test_the_map_of_a_bounded_relu_is_what_the_bound_leaves(relu6):
    """One map a layer, its input by `before`, and an offset to the bounded value, the gradient as the function's."""

    def function(x):
        return relu6(3 * relu6(2 * x)) + 1

    x = jnp.array([-1.0, 0.5, 1.5, 4.0, jnp.nan])
    output, maps = feature_maps_of(function)(x)
    np.testing.assert_array_equal(output, [1, 4, 7, 7, jnp.nan])
    np.testing.assert_array_equal(maps, [[0, 1, 3, 6, jnp.nan], [0, 3, 6, 6, jnp.nan]])
    before = feature_maps_of(function, before=True)(x)[1]
    np.testing.assert_array_equal(before, [[-2, 1, 3, 8, jnp.nan], [0, 3, 9, 18, jnp.nan]])
    np.testing.assert_array_equal(with_offset(function, 0)(0.5, x), [2.5, 5.5, 7, 7, jnp.nan])
    np.testing.assert_array_equal(with_offset(function, 1)(0.5, x), [1.5, 4.5, 7.5, 7.5, jnp.nan])
    gradient = jax.vmap(jax.grad(lambda x: feature_maps_of(function)(x)[0]))(x[:4])
    np.testing.assert_array_equal(gradient, [0, 6, 0, 0])


def test_a_relu_that_is_used_with_and_without_a_bound_is_two():
    six = jnp.float32(6)

    def function(x):
        rectified = jax.nn.relu(x)
        return jnp.minimum(rectified, six) + 2 * rectified + jnp.minimum(jax.nn.relu(-x), six)

    x = jnp.array([-7.0, 4.0, 8.0])
    np.testing.assert_array_equal(feature_maps_of(function)(x)[1], [[0, 4, 8], [0, 4, 6], [6, 0, 0]])
    _, backward = jax.vjp(with_relu_rule(function), x)
    np.testing.assert_array_equal(backward(jnp.array([1.0, -1.0, 1.0]))[0], [3 - 0, 0, 2 - 1])


def test_the_deconvnet_through_relu6_layer_by_layer():
    """Two convolutions with batch normalization, ReLU6 and a pool between, against the same by hand."""
    kernels = [normal(seed, (3, 3, 3, 3)) for seed in (0, 1)]
    scale, shift = jnp.array([2.0, -1.5, 1.0]), jnp.array([3.0, 1.0, -1.0])
    images = 2 * normal(2, (2, 8, 8, 3))

    def layer(x, kernel):
        return ops.conv(x, kernel, padding=1) * scale + shift

    def function(x):
        return jax.nn.relu6(layer(ops.max_pool(jax.nn.relu6(layer(x, kernels[0])), 2), kernels[1]))

    first, back_first = jax.vjp(lambda x: layer(x, kernels[0]), images)
    pooled, unpool = jax.vjp(lambda x: ops.max_pool(x, 2), jnp.minimum(jnp.maximum(first, 0), 6))
    second, back_second = jax.vjp(lambda x: layer(x, kernels[1]), pooled)
    value = jnp.minimum(jnp.maximum(second, 0), 6)
    for maps in (first, second):
        assert (maps > 6).mean() > 0.1 and (maps < 0).mean() > 0.1
    signal = np.where(second < 6, np.maximum(value, 0), 0)
    signal = unpool(back_second(signal)[0])[0]
    expected = back_first(jnp.where(first < 6, jnp.maximum(signal, 0), 0))[0]
    found = jax.jit(lambda x: (lambda value, back: back(value)[0])(*jax.vjp(with_relu_rule(function), x)))(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4 * float(jnp.abs(expected).max()))


def test_the_gradient_rule_is_the_function_itself_and_values_never_change():
    network = models.build(
        ModelConfig("zfnet_small", widths=(4,), filters=(3,), strides=(1,), pools=(1,), dense=(5,)), (6, 6, 3), 3
    )
    images = normal(0, (2, 6, 6, 3))
    variables = drawn(network, images)

    def logits(x):
        return network.apply(variables, x)[0]

    assert with_relu_rule(logits, "gradient") is logits

    @jax.jit
    def of_ones(images):
        found = {}
        for rule in ("gradient", *BACKWARD):
            value, backward = jax.vjp(with_relu_rule(logits, rule), images)
            found[rule] = value, backward(jnp.ones_like(value))[0]
        return found

    found = of_ones(images)
    for rule in BACKWARD:
        np.testing.assert_array_equal(found[rule][0], found["gradient"][0])
        assert not np.allclose(found[rule][1], found["gradient"][1], atol=1e-6)


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
def test_convolutions_of_members_inside_a_network_are_those_of_groups(rule):
    """`vmap` over images and kernels, and the transpose with strides, whose places a bias may not be mixed up with."""
    x = normal(0, (2, 8, 8, 4))
    first, back, last = normal(1, (3, 3, 2, 8)), normal(2, (2, 2, 2, 8)), normal(3, (3, 3, 2, 4))

    def by_groups(x):
        y = jax.nn.relu(ops.conv(x, first, strides=2, padding=1, groups=2))
        y = jax.nn.relu(ops.conv_transpose(y, back, (8, 8), strides=2, groups=2))
        return ops.conv(y, last, groups=2)

    def apart(array):
        return jnp.stack(jnp.split(array, 2, axis=-1))

    def by_members(x):
        def one(x, first, back, last):
            y = jax.nn.relu(ops.conv(x, first, strides=2, padding=1))
            y = jax.nn.relu(ops.conv_transpose(y, back, (8, 8), strides=2))
            return ops.conv(y, last)

        return jnp.concatenate(jax.vmap(one)(apart(x), apart(first), apart(back), apart(last)), axis=-1)

    assert "windowed_products" in str(jax.make_jaxpr(by_members)(x))
    values, projections = zip(
        *((f(x), jax.vjp(with_relu_rule(f, rule), x)[1](jnp.cos(f(x)))[0]) for f in (by_groups, by_members)),
        strict=True,
    )
    np.testing.assert_allclose(*values, atol=1e-4)
    np.testing.assert_allclose(*projections, atol=1e-4)


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
    "overlapping pools, stride, padding, odd sizes": (ModelConfig("zfnet", widths=(2, 3, 3), norm="none"), (39, 33, 3)),
    "grey": (ModelConfig("lenet", widths=(4, 5)), (16, 16, 1)),
    "no pool": (ModelConfig("lenet", pools=(1, 1), widths=(3, 4)), (16, 16, 1)),
    "one layer, an even filter, a pool with padding": (
        ModelConfig("zfnet", widths=(4,), filters=(4,), strides=(3,), pools=(2,), paddings=(2,), norm="none"),
        (17, 22, 1),
    ),
    "contrast normalization": (ModelConfig("zfnet", widths=(3, 4), filters=(5, 3), strides=(2, 1)), (19, 17, 3)),
}


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        pytest.param("overlapping pools, stride, padding, odd sizes", 3, marks=pytest.mark.long),
        pytest.param("grey", 3, marks=pytest.mark.long),
        ("no pool", 1),
        ("one layer, an even filter, a pool with padding", 3),
        ("contrast normalization", 2),
    ],
)
def test_both_forms_agree_on_every_layer(name, batch):
    config, shape = NETWORKS[name]
    network = models.build(config, shape, 4)
    images = normal(0, (batch, *shape))

    @jax.jit
    def both(variables, images):
        maps = network.apply(variables, images)[1]
        found = {}
        for layer in (layer for layer in maps if layer.startswith(("conv", "pool"))):
            flat = maps[layer].reshape(batch, -1)
            units = jnp.stack(jnp.unravel_index(flat.argmax(axis=1), maps[layer].shape[1:]), axis=-1)
            one = project(lambda x, layer=layer: network.apply(variables, x)[1][layer], images, units)
            found[layer] = one, project_by_switches(network, variables, images, layer, units)
        return found

    for one, other in both(drawn(network, images), images).values():
        assert float(jnp.abs(one).max()) > 0
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(one).max()), rtol=0)


def test_the_projection_is_homogeneous_in_the_activation():
    """recon(s · seed) = s · recon(seed) for s > 0."""
    kernel = normal(0, (3, 3, 1, 4))
    image = normal(1, (1, 9, 9, 1))

    def function(x):
        return jax.nn.relu(ops.conv(jax.nn.relu(ops.conv(x, kernel)), kernel.swapaxes(2, 3)))

    down = jax.jit(lambda seed: jax.vjp(with_relu_rule(function), image)[1](seed)[0])
    seed = np.zeros((1, 5, 5, 1), np.float32)
    seed[0, 2, 3, 0] = 1
    np.testing.assert_allclose(down(7 * seed), 7 * down(seed), rtol=1e-5)


def test_one_relu_used_twice_by_hand():
    """relu([1, -1, 0.2]) sums to 1.2 in each of three outputs; the three signals of 1 add up, at x[1] < 0 too."""
    relu = jax.jit(lambda v: jnp.maximum(v, 0.0))
    x = jnp.array([[1.0, -1.0, 0.2]])
    value, backward = jax.vjp(with_relu_rule(lambda x: relu(2 * (relu(x) @ jnp.ones((3, 3))) - 0.5)), x)
    np.testing.assert_allclose(value, [[1.9] * 3], rtol=1e-6)
    np.testing.assert_allclose(backward(jnp.ones((1, 3)))[0], [[6.0] * 3], rtol=1e-6)


def test_it_runs_under_jit_and_vmap():
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    plain = jax.vjp(with_relu_rule(jax.nn.relu), x)[1](x + 1)[0]
    mapped = jax.jit(jax.vmap(lambda v: jax.vjp(with_relu_rule(jax.nn.relu), v)[1](v + 1)[0]))(x)
    np.testing.assert_array_equal(plain, mapped)


@pytest.mark.wrong_types
def test_bad_input_is_named():
    with pytest.raises(InputError, match="rule must be one of gradient, deconvnet, guided, got 'guide'"):
        with_relu_rule(jax.nn.relu, "guide")  # type: ignore[arg-type]
    network = models.build(ModelConfig("lenet"), (28, 28, 1), 4)
    images = jnp.zeros((1, 28, 28, 1))
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    with pytest.raises(InputError, match="layer must be one of conv1, pool1, conv2, pool2, got 'conv3'"):
        jax.eval_shape(
            lambda variables: project_by_switches(network, variables, images, "conv3", jnp.zeros((1, 3), int)),
            variables,
        )


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "units", [[[0, 0, 9]], [[5, 0, 0]], [[-1, 0, 0]], [[0, 0]], [[0, 0, 0], [0, 0, 0]], [[0.5, 0, 0]]]
)
def test_units_that_do_not_exist_are_refused(units):
    with pytest.raises(InputError, match="units must"):
        project(jax.nn.relu, jnp.zeros((1, 5, 5, 3)), np.array(units))


WEIGHTS = normal(5, (3, 3))
PAIRS = normal(4, (3, 6))
DATA = normal(6, (2, 3))


def exp_softmax(x):
    return jnp.exp(x) / jnp.exp(x).sum(axis=-1, keepdims=True)


def of_flax(module):
    variables = jax.jit(module.init)(jax.random.key(0), DATA)
    return lambda x: module.apply(variables, x)


LEGITIMATE = {
    "batch norm, running": of_flax(nn.BatchNorm(use_running_average=True)),
    "batch norm, of the batch": lambda x: (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1),
    "layer norm": of_flax(nn.LayerNorm()),
    "group norm": of_flax(nn.GroupNorm(num_groups=1)),
    "RMS norm": of_flax(nn.RMSNorm()),
    "unit length, where there is one": lambda x: jnp.where(
        (x * x).sum() > 0, x / jnp.where((x * x).sum() > 0, jnp.linalg.norm(x), 1), 0
    ),
    "softmax": jax.nn.softmax,
    "softmax by hand": exp_softmax,
    "log_softmax": jax.nn.log_softmax,
    "logsumexp": jax.nn.logsumexp,
    "top_k": lambda x: jax.lax.top_k(x, 2)[0],
    "sort": jnp.sort,
    "maximum of two": lambda x: jnp.maximum(x @ WEIGHTS, (x @ WEIGHTS)[:, ::-1]),
    "maxout": lambda x: (x @ PAIRS).reshape(2, 3, 2).max(-1),
    "the largest, by its place": lambda x: (x * jax.nn.one_hot(x.argmax(axis=-1), 3)).sum(axis=-1),
    "nonlinear weights": lambda x: x @ jax.nn.softplus(WEIGHTS),
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_normalization_choices_and_a_softmax_at_the_end_pass(name):
    """And the derivative is theirs: without a ReLU in it the rule changes nothing."""
    function = LEGITIMATE[name]

    @jax.jit
    def both(x):
        value, expected = jax.vjp(function, x)
        same, changed = jax.vjp(with_relu_rule(function), x)
        return (same, changed(value)[0]), (value, expected(value)[0])

    for found, expected in zip(*both(DATA), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    jax.eval_shape(with_relu_rule(lambda x: function(jax.nn.relu(x @ WEIGHTS))), DATA)


WITHOUT_RULE = {
    "tanh": jnp.tanh,
    "logistic": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "leaky_relu": jax.nn.leaky_relu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "log1p": lambda x: jnp.log1p(jnp.exp(x)),
    "sin": jnp.sin,
    "abs": jnp.abs,
    "integer_pow": lambda x: jax.nn.relu(x) ** 2,
    "exp": lambda x: x / (1 + jnp.exp(-x)),  # silu by hand
    "gt": lambda x: jnp.where(x > 0, 1.0, 0.0),
    "clip": lambda x: jnp.clip(x, -1, 1),
    "min": lambda x: jnp.minimum(x, 1),
    "max": lambda x: jnp.maximum(x, 0.5),
}


@pytest.mark.parametrize("name", WITHOUT_RULE)
@pytest.mark.parametrize(
    "then", [lambda x: x, lambda x: x @ jnp.ones((3, 2)), lambda x: x.mean(axis=0) @ jnp.ones((3, 2))]
)
def test_a_nonlinearity_without_a_rule_is_named(name, then):
    function = lambda x: then(WITHOUT_RULE[name](x))  # noqa: E731
    with pytest.raises(InputError, match=f"function must have ReLUs only as its nonlinearities, got {name}(\n|$)"):
        jax.eval_shape(with_relu_rule(function), DATA)
    assert with_relu_rule(function, "gradient") is function
    output, expected = jax.jit(lambda x: (feature_maps_of(function)(x)[0], function(x)))(DATA)
    np.testing.assert_allclose(output, expected, rtol=1e-6)


@pytest.mark.parametrize("approximate", [True, False])
def test_gelu_attention_and_medians_are_refused(approximate):
    for function in (
        lambda x: jax.nn.gelu(x, approximate=approximate),
        lambda x: jax.nn.softmax(x @ x.T) @ x,
        lambda x: jnp.median(x, axis=1),
        lambda x: jax.nn.softmax(x) @ WEIGHTS,
        lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(c), None), x, length=2)[0],
    ):
        with pytest.raises(InputError, match="function must have ReLUs only"):
            jax.eval_shape(with_relu_rule(function), DATA)


@pytest.mark.parametrize("rule", ["gradient", "deconvnet", "guided"])
def test_relus_in_a_scan_are_those_of_the_same_steps_written_out(rule):
    def scanned(x):
        return jax.lax.scan(lambda c, bias: (jax.nn.relu(c @ WEIGHTS + bias), c.sum()), x, DATA)

    def written(x):
        first = jax.nn.relu(x @ WEIGHTS + DATA[0])
        return jax.nn.relu(first @ WEIGHTS + DATA[1]), jnp.stack([x.sum(), first.sum()])

    x = jnp.array([[-1.0, 2.0, 4.0]])
    value, backward = jax.vjp(with_relu_rule(scanned, rule), x)
    expected, other = jax.vjp(with_relu_rule(written, rule), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), value, expected)
    signal = jax.tree.map(lambda leaf: leaf - 1, value)
    np.testing.assert_allclose(backward(signal)[0], other(signal)[0], rtol=1e-5)


def test_a_relu_that_no_rule_reaches_is_said_and_not_passed_over():
    @jax.custom_vjp
    def own(x):
        return jax.nn.relu(x)

    own.defvjp(lambda x: (jax.nn.relu(x), None), lambda _, signal: (signal,))

    def repeated(x):
        return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: jax.nn.relu(c) + 1, x)

    for function, name in ((own, "custom_vjp_call"), (repeated, "while")):
        with pytest.raises(InputError, match=f"outside {name}"):
            with_relu_rule(function)(jnp.ones(3))
    for function, name in (
        (lambda x: jax.lax.scan(lambda c, _: (jax.nn.relu(c), None), x, length=2)[0], "scan"),
        (lambda x: jax.lax.cond(x.sum() > 0, jax.nn.relu, lambda y: y, x), "cond"),
    ):
        with pytest.raises(InputError, match=f"outside {name}"):
            feature_maps_of(function)(jnp.ones(3))


def test_the_rule_holds_inside_a_checkpoint():
    _, backward = jax.vjp(with_relu_rule(jax.checkpoint(lambda x: jax.nn.relu(2 * x - 1))), jnp.array([0.0, 4.0]))
    np.testing.assert_allclose(backward(jnp.array([-3.0, 2.0]))[0], [0.0, 4.0], rtol=1e-6)


def test_feature_maps_of_our_networks_are_those_that_they_return():
    network = models.build(
        ModelConfig("zfnet", widths=(3, 4), filters=(5, 3), strides=(2, 1), dense=(8,)), (19, 17, 3), 4
    )
    images = normal(0, (2, 19, 17, 3))
    variables = drawn(network, images)

    def logits(x):
        return network.apply(variables, x)[0]

    (expected, named), (output, maps), (_, before) = jax.jit(
        lambda x: (network.apply(variables, x), feature_maps_of(logits)(x), feature_maps_of(logits, before=True)(x))
    )(images)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-7)
    after_relu = [value for name, value in named.items() if name.startswith(("conv", "fc"))]
    for value, other, wanted in zip(maps, before, after_relu, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(np.maximum(other, 0), wanted, rtol=1e-5, atol=1e-7)


KERNEL, SECOND = (normal(seed, (3, 3, 3, 3)) / 4 for seed in (7, 8))
IMAGES = normal(9, (2, 8, 8, 3))


def convolved(x, kernel=KERNEL):
    return ops.conv(x, kernel, padding=1)


def squeeze_and_excitation(x, relu):
    x = relu(convolved(x))
    inner = convolved(x, SECOND)
    gate = jax.nn.sigmoid(relu(inner.mean((1, 2)) @ WEIGHTS) @ WEIGHTS)
    return relu(x + inner * gate[:, None, None])


def normalized_in_training(module):
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)
    return lambda x: module.apply(variables, x, mutable=["batch_stats"])[0]


AMONG_OTHERS = {
    "squeeze and excitation": (3, squeeze_and_excitation),
    "after response norm": (1, lambda x, relu: relu(ops.local_response_norm(convolved(x)))),
    "between response norms": (
        2,
        lambda x, relu: relu(convolved(ops.local_response_norm(relu(ops.local_response_norm(convolved(x)))), SECOND)),
    ),
    "after |x|": (1, lambda x, relu: relu(jnp.abs(convolved(x)) - 0.5)),
    "of |x|": (1, lambda x, relu: relu(jnp.abs(convolved(x)))),
    "of x²": (2, lambda x, relu: relu(relu(x) ** 2)),
    "after L2 pooling": (1, lambda x, relu: relu(jnp.sqrt(ops.avg_pool(convolved(x) ** 2, 2)) - 0.4)),
    "of L2 pooling": (1, lambda x, relu: relu(jnp.sqrt(ops.avg_pool(convolved(x) ** 2, 2)))),
    "after a softmax": (1, lambda x, relu: relu(jax.nn.softmax(convolved(x)) - 0.3)),
    "after attention": (2, lambda x, relu: relu(jax.nn.softmax(relu(x[:, 0] @ x[0, 0].T)) @ x[0, 0])),
    "after silu and a pool": (1, lambda x, relu: relu(ops.max_pool(jax.nn.silu(convolved(x)), 2) - 0.1)),
    "after gelu and a sum": (1, lambda x, relu: relu(jax.nn.gelu(convolved(x)).sum(-1))),
    "of gelu": (1, lambda x, relu: relu(jax.nn.gelu(convolved(x)))),
    "after a gate": (1, lambda x, relu: relu(x * jnp.tanh(convolved(x)))),
    "after exp": (1, lambda x, relu: relu(jnp.exp(x) - 1)),
    "after a comparison": (1, lambda x, relu: relu(jnp.where(convolved(x) > 0, x, -x) @ WEIGHTS)),
    "after places of maxima": (1, lambda x, relu: relu(jax.nn.one_hot(x.argmax(-1), 3) @ WEIGHTS)),
    "behind other activations of max and min": (
        1,
        lambda x, relu: relu(
            sum(
                function(x)
                for function in (
                    jax.nn.hard_tanh,
                    jax.nn.hard_sigmoid,
                    jax.nn.hard_swish,
                    jax.nn.leaky_relu,
                    jax.nn.elu,
                    jax.nn.softplus,
                    jax.nn.squareplus,
                    jax.nn.log_sigmoid,
                    lambda x: jnp.logaddexp(x, 0.0),
                    lambda x: jnp.clip(x, -1, 6),
                    lambda x: jnp.where(x > 0, x, 0.1 * x),
                )
            )
        ),
    ),
    "around batch normalization after gelu": (
        2,
        lambda x, relu: relu(normalized_in_training(nn.BatchNorm(use_running_average=False))(jax.nn.gelu(relu(x)))),
    ),
    "around normalizations of squares": (
        2,
        lambda x, relu: relu(normalized_in_training(nn.GroupNorm(num_groups=1))(jnp.exp(relu(x)) ** 2)),
    ),
    "around layer normalizations": (
        2,
        lambda x, relu: relu(jax.nn.standardize(normalized_in_training(nn.LayerNorm())(relu(x) ** 2))),
    ),
}


SPELLINGS = (jax.nn.relu, lambda x: jnp.maximum(x, 0), lambda x: jnp.where(x > 0, x, 0))


@pytest.mark.parametrize("place", range(len(AMONG_OTHERS)), ids=list(AMONG_OTHERS))
def test_every_relu_is_found_whatever_stands_around_it(place):
    """And nothing else: against the same network with a ReLU that notes its output; every spelling in its turn."""
    number, network = list(AMONG_OTHERS.values())[place]

    @jax.jit
    def both(images):
        noted = []

        def noting(x):
            noted.append(jax.nn.relu(x))
            return noted[-1]

        expected = network(images, noting)
        output, maps = feature_maps_of(lambda x: network(x, SPELLINGS[place % 3]))(images)
        return [output, *maps], [expected, *noted]

    found, expected = both(IMAGES)
    assert len(found) == len(expected) == number + 1
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    for spelling in SPELLINGS:
        _, maps = jax.eval_shape(feature_maps_of(lambda x, spelling=spelling: network(x, spelling)), IMAGES)
        assert [value.shape for value in maps] == [value.shape for value in expected[1:]]


def test_an_offset_and_grad_cam_count_the_relus_of_a_network_with_gates():
    number = 2
    for chosen in range(3):
        seen = iter(range(3))
        moved = squeeze_and_excitation(IMAGES, lambda x: jax.nn.relu(x) + 0.5 * (next(seen) == chosen))
        found = with_offset(lambda x: squeeze_and_excitation(x, jax.nn.relu), chosen)(0.5, IMAGES)
        np.testing.assert_allclose(found, moved, rtol=1e-5, atol=1e-6)
    cam = grad_cam(lambda x: squeeze_and_excitation(x, jax.nn.relu).mean((1, 2)), IMAGES, [0, 2], relu=number)
    last = squeeze_and_excitation(IMAGES, jax.nn.relu)[np.arange(2), ..., [0, 2]]
    np.testing.assert_allclose(cam, last / 64, rtol=1e-5, atol=1e-7)


def test_the_derivative_by_an_offset_is_that_by_the_feature_map():
    def function(x):
        return jax.nn.relu(jax.nn.relu(x @ WEIGHTS) @ WEIGHTS + 1)

    (maps,) = feature_maps_of(lambda x: jax.nn.relu(x @ WEIGHTS))(DATA)[1]
    expected = jax.grad(lambda first: (jax.nn.relu(first @ WEIGHTS + 1) ** 2).sum())(maps)
    moved = with_offset(function, 0)
    np.testing.assert_allclose(
        jax.grad(lambda offset: (moved(offset, DATA) ** 2).sum())(jnp.zeros((2, 3))), expected, rtol=1e-5
    )
    with pytest.raises(InputError, match="number must be that of a ReLU, 0 to 1, got 2"):
        with_offset(function, 2)(0.0, DATA)


@pytest.mark.long
def test_a_network_of_flax_nnx_with_residuals_branches_and_batch_norm():
    """Against the same network written out in jnp with the rule by hand at each of its three ReLUs."""
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
            self.left = nnx.Conv(4, 4, (3, 3), rngs=rngs)
            self.right = nnx.Conv(4, 2, (1, 1), rngs=rngs)
            self.out = nnx.Linear(6, 5, rngs=rngs)

        def __call__(self, x, relu=nnx.relu):
            x = relu(self.norm(self.first(x)))
            branches = [x + relu(self.left(x)), relu(self.right(x))]
            return self.out(jnp.concatenate([nnx.max_pool(b, (2, 2), (2, 2)) for b in branches], -1).mean((1, 2)))

    block = Block(nnx.Rngs(0))
    block.norm.mean[...], block.norm.var[...] = jnp.array([0.1, -0.2, 0.3, 0.0]), jnp.array([1.0, 2.0, 0.5, 1.0])
    images = normal(0, (2, 8, 8, 3))
    signal = jnp.eye(5)[jnp.array([1, 3])]

    @jax.custom_vjp
    def rectify(x):
        return jax.nn.relu(x)

    rectify.defvjp(lambda x: (jax.nn.relu(x), x), lambda x, s: (jnp.where((x > 0) & (s > 0), s, 0),))

    @jax.jit
    def computed(images):
        value, expected = jax.vjp(lambda x: block(x, rectify), images)
        found = jax.vjp(with_relu_rule(block, "guided"), images)[1](signal)[0]
        return found, expected(signal)[0], value, *feature_maps_of(block)(images)

    found, expected, value, output, maps = computed(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(output, value, rtol=1e-5)
    assert [value.shape[-1] for value in maps] == [4, 4, 2] and all(float(value.min()) == 0 for value in maps)


@pytest.mark.extra
def test_a_network_of_equinox():
    equinox = pytest.importorskip("equinox")
    network = equinox.nn.Sequential(
        [
            equinox.nn.Conv2d(3, 4, 3, key=jax.random.key(0)),
            equinox.nn.Lambda(jax.nn.relu),
            equinox.nn.MaxPool2d(2, 2),
            equinox.nn.Lambda(jnp.ravel),
            equinox.nn.Linear(36, 3, key=jax.random.key(1)),
        ]
    )
    images = normal(2, (2, 3, 8, 8))  # one image a call, channels first
    kernel, bias, weight = network[0].weight, network[0].bias, network[4].weight

    def by_hand(image):
        """Deconvnet of logit 1: its weights, unpooled to the places of the maxima, rectified, filter transposed."""
        before, down = jax.vjp(lambda x: jax.lax.conv(x[None], kernel, (1, 1), "VALID")[0] + bias, image)
        windows = jax.nn.relu(before).reshape(4, 3, 2, 3, 2).swapaxes(2, 3).reshape(4, 3, 3, 4)
        placed = jax.nn.one_hot(windows.argmax(-1), 4) * weight[1].reshape(4, 3, 3, 1)
        signal = placed.reshape(4, 3, 3, 2, 2).swapaxes(2, 3).reshape(4, 6, 6)
        return down(jnp.maximum(signal, 0))[0]

    @jax.jit
    def both(images):
        value, backward = jax.vjp(with_relu_rule(jax.vmap(network)), images)
        return backward(jnp.zeros_like(value).at[:, 1].set(1.0))[0], jax.vmap(by_hand)(images)

    np.testing.assert_allclose(*both(images), rtol=1e-5, atol=1e-6)


@pytest.mark.extra
def test_the_deconvnet_of_pytorch():
    """Two layers with overlapping pools, by max_unpool2d's switches added up and conv_transpose2d."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    config = ModelConfig("zfnet_small", widths=(5, 6), filters=(3, 3), strides=(2, 1), pools=(2, 2), norm="none")
    network = models.build(config, (30, 26, 3), 4)
    images = normal(0, (2, 30, 26, 3))
    variables = drawn(network, images)
    maps = jax.jit(network.apply)(variables, images)[1]
    x = torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy())
    down = []
    for number, spec in enumerate(network.convolutions, 1):
        params = variables["params"][f"conv{number}"]
        kernel = torch.from_numpy(np.asarray(params["kernel"]).transpose(3, 2, 0, 1).copy())
        size, window = x.shape[2:], {"stride": spec.stride, "padding": spec.padding}
        x = functional.relu(functional.conv2d(x, kernel, torch.from_numpy(np.array(params["bias"])), **window))
        extra = [
            n - ((m - 1) * spec.stride - 2 * spec.padding + spec.filter) for n, m in zip(size, x.shape[2:], strict=True)
        ]
        down.append(
            lambda s, k=kernel, w=window, e=extra: functional.conv_transpose2d(s.clamp(min=0), k, output_padding=e, **w)
        )
        pool = spec.pool
        size = x.shape[2:]
        x, places = functional.max_pool2d(x, pool.window, pool.stride, pool.padding, return_indices=True)
        down.append(
            lambda s, i=places, p=pool, z=size: functional.max_unpool2d(
                s, i, p.window, p.stride, p.padding, output_size=z
            )
        )
    np.testing.assert_allclose(np.asarray(maps["pool2"]), x.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    units = np.stack(np.unravel_index(np.asarray(maps["pool2"]).reshape(2, -1).argmax(1), maps["pool2"].shape[1:]), 1)
    found = jax.jit(lambda images: project(lambda x: network.apply(variables, x)[1]["pool2"], images, units))(images)
    signal = torch.zeros_like(x)
    for image, (row, column, channel) in enumerate(units):
        signal[image, channel, row, column] = x[image, channel, row, column]
    for step in reversed(down):
        signal = step(signal)
    expected = signal.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(
    "layer", ["branches3", *(pytest.param(name, marks=pytest.mark.long) for name in ("conv1", "block2"))]
)
def test_the_evolution_of_a_residual_network(layer):
    """With normalization, a shortcut and two branches: the strongest of all images, and their projections."""

    class Residual(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = first = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
            inner = nn.Conv(4, (3, 3))(nn.relu(nn.Conv(4, (3, 3))(nn.max_pool(x, (2, 2), (2, 2)))))
            x = block = nn.relu(nn.avg_pool(first, (2, 2), (2, 2)) + nn.LayerNorm()(inner))
            x = branches = jnp.concatenate([nn.relu(nn.Conv(2, (1, 1))(x)), nn.relu(nn.Conv(3, (3, 3))(x))], axis=-1)
            return nn.softmax(nn.Dense(3)(x.mean((1, 2)))), {"conv1": first, "block2": block, "branches3": branches}

    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    network = Residual()
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    def preprocess(images):
        return images.astype(jnp.float32) / 64 - 2

    def feature_maps(variables, images):
        return network.apply(variables, images)[1]

    maps = jax.jit(feature_maps)(variables, preprocess(jnp.asarray(images)))
    batches = [Batch(images[:3], np.ones(3)), Batch(images[[3, 4, 4]], np.array([1, 1, 0]))]
    looked = strongest_activations(make_look(feature_maps, preprocess), variables, batches)
    found = {layer: strongest.at_rank(0) for layer, strongest in looked.items()}
    for name, values in maps.items():
        np.testing.assert_allclose(found[name].value, values.max(axis=(0, 1, 2)), rtol=1e-5)
        at = (found[name].image, *found[name].unit.T, np.arange(values.shape[-1]))
        np.testing.assert_allclose(np.asarray(values)[at], found[name].value, rtol=1e-5)
    fields = (ReceptiveField(64, 1, 0.0),) * 2  # the whole image
    projector = make_projector(feature_maps, layer, preprocess)
    tiles = tile_evolution(projector, {0: variables}, {0: found[layer]}, [0, 1], images, fields)
    chosen = preprocess(jnp.asarray(images[found[layer].image[:2]]))
    units = np.column_stack([found[layer].unit[:2], [0, 1]])
    expected = jax.jit(lambda x: project(lambda x: feature_maps(variables, x)[layer], x, units))(chosen)
    assert float(jnp.abs(expected).max()) > 0
    np.testing.assert_allclose(tiles.projections[:, 0], expected, atol=1e-5 * float(jnp.abs(expected).max()))
    output, relus = jax.jit(feature_maps_of(lambda x: network.apply(variables, x)[0]))(preprocess(jnp.asarray(images)))
    np.testing.assert_allclose(output.sum(axis=1), 1, rtol=1e-6)
    shapes = [value.shape[1:] for value in relus]
    assert shapes == [(8, 8, 4), (4, 4, 4), (4, 4, 4), (4, 4, 2), (4, 4, 3)]  # conv, inner, block, two branches
    np.testing.assert_allclose(relus[2], maps["block2"], rtol=1e-5, atol=1e-6)
