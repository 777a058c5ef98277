"""A scanned MLP is a convolutional network: the form with convolutions against the form that loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import geometry, ops
from cnnjax.errors import InputError
from cnnjax.ops import DenseLayer
from tests.cases import some

# spatial shape, channels, window
SIGNALS = {"sound": ((13,), 2, (4,)), "image": ((7, 8), 3, (3, 2)), "volume": ((5, 4, 5), 2, (2, 3, 2))}


def random(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def random_mlp(seed, *sizes):
    return tuple(
        DenseLayer(random(seed + n, inputs, units) / np.sqrt(inputs), random(seed + n + 10, units))
        for n, (inputs, units) in enumerate(itertools.pairwise(sizes))
    )


def close(one, other):
    for mine, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=2e-5, atol=2e-5 * float(np.abs(wanted).max()))


def cut_windows(inputs, window, strides):
    """[positions, batch, inputs]: what the MLP sees at each position, by NumPy."""
    axes = tuple(range(1, inputs.ndim - 1))
    views = np.lib.stride_tricks.sliding_window_view(np.asarray(inputs), window, axes)
    views = views[(slice(None), *[slice(None, None, strides)] * len(axes))]
    views = np.moveaxis(views, len(axes) + 1, -1)  # channels behind the window
    output = views.shape[1 : len(axes) + 1]
    return np.moveaxis(views.reshape(len(inputs), np.prod(output), -1), 1, 0), output


SCANS = [f"{name}, stride {strides}" for name in SIGNALS for strides in (1, 2)]


@pytest.fixture(params=some(SCANS, SCANS[3]))
def scan(request):
    """(layers, inputs, window, strides) of an MLP with three layers."""
    name, strides = request.param.split(", stride ")
    strides = int(strides)
    spatial, channels, window = SIGNALS[name]
    return random_mlp(1, int(np.prod(window)) * channels, 6, 5, 4), random(0, 2, *spatial, channels), window, strides


def test_the_convolutions_are_the_loop_over_positions(scan):
    layers, inputs, window, strides = scan
    convolved = ops.scan_mlp(layers, inputs, window, strides=strides)
    looped = ops.scan_mlp_literally(layers, inputs, window, strides=strides)
    cuts, output = cut_windows(inputs, window, strides)
    assert convolved.shape == looped.shape == (2, *output, 4)
    close(convolved, looped)

    signal = np.asarray(cuts, np.float64)  # and plain NumPy, which knows neither
    for number, (kernel, bias) in enumerate(layers):
        signal = (np.maximum(signal, 0) if number else signal) @ np.asarray(kernel) + np.asarray(bias)
    close(looped, np.moveaxis(signal, 0, 1).reshape(looped.shape))


def test_the_gradient_of_a_shared_weight_is_the_sum_over_its_copies(scan):
    layers, inputs, window, strides = scan
    cuts, _ = cut_windows(inputs, window, strides)
    positions = len(cuts)
    weight = random(5, positions, 2, 4)  # a loss in which no two positions count alike

    def shared_loss(form, layers):
        outputs = form(layers, inputs, window, strides=strides).reshape(2, positions, 4)
        return jnp.sum(jnp.sin(outputs) * jnp.moveaxis(weight, 0, 1))

    def unshared_loss(copies):
        """Every position has an MLP of its own."""
        return jnp.sum(jnp.sin(jax.vmap(ops.apply_mlp)(copies, cuts)) * weight)

    copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (positions, *leaf.shape)), layers)
    of_copies = jax.jit(jax.grad(unshared_loss))(copies)
    first = of_copies[0].kernel
    assert float(jnp.abs(first - first[0]).max()) > 0.01  # the copies do not all ask for the same
    summed = jax.tree.map(lambda leaf: leaf.sum(0), of_copies)
    for form in (ops.scan_mlp, ops.scan_mlp_literally):
        close(jax.jit(jax.grad(functools.partial(shared_loss, form)))(layers), summed)


@pytest.mark.parametrize("name", some(SIGNALS, next(iter(SIGNALS))))
def test_scans_behind_each_other_are_one_scan_of_the_subnet_that_they_make(name):
    """The distributed scan: later layers see windows too, and the subnet is itself scanned within its window."""
    spatial, channels, window = SIGNALS[name]
    dimensions = len(spatial)
    inputs = random(0, 2, *spatial, channels)
    lower = random_mlp(1, int(np.prod(window)) * channels, 5, 4)
    upper = random_mlp(3, 2**dimensions * 4, 6, 3)

    def network(inputs):
        maps = jax.nn.relu(ops.scan_mlp(lower, inputs, window))
        return ops.scan_mlp(upper, maps, 2)

    field = tuple(size + 1 for size in window)  # of one output: the window, moved once
    cuts, output = cut_windows(inputs, field, 1)
    parts = [network(cut.reshape(2, *field, channels)) for cut in cuts]
    assert {part.shape for part in parts} == {(2, *(1,) * dimensions, 3)}
    close(network(inputs), jnp.stack(parts, 1).reshape(2, *output, 3))


def test_one_layer_is_a_convolution_and_a_window_of_one_a_dense_layer():
    inputs, (layer,) = random(0, 2, 6, 6, 3), random_mlp(1, 12, 5)
    close(ops.scan_mlp((layer,), inputs, 2), ops.conv(inputs, layer.kernel.reshape(2, 2, 3, 5)) + layer.bias)
    layers = random_mlp(1, 3, 5, 2)
    close(ops.scan_mlp(layers, inputs, 1), ops.apply_mlp(layers, inputs))


def test_the_output_has_the_size_that_geometry_says():
    inputs, layers = random(0, 1, 11, 8, 1), random_mlp(1, 6, 2)
    for strides in (1, 2, (3, 1)):
        outputs = ops.scan_mlp(layers, inputs, (3, 2), strides=strides)
        assert outputs.shape[1:-1] == geometry.output_shape((11, 8), (3, 2), strides=strides, rounding="floor")
        close(outputs, ops.scan_mlp_literally(layers, inputs, (3, 2), strides=strides))


def test_transformations_and_types():
    inputs, layers = random(0, 3, 9, 2), random_mlp(1, 6, 4, 3)
    alone = ops.scan_mlp(layers, inputs, 3)
    close(jax.jit(lambda layers: ops.scan_mlp(layers, inputs, 3))(layers), alone)
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), layers)
    together = jax.vmap(lambda layers: ops.scan_mlp(layers, inputs, 3))(members)
    close(together[0], alone)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (layers, inputs))
    for form in (ops.scan_mlp, ops.scan_mlp_literally):
        assert form(*half, 3).dtype == jnp.bfloat16


def mlp_of(*shapes, dtype=jnp.float32):
    return tuple(DenseLayer(jnp.zeros(kernel, dtype), jnp.zeros(bias, dtype)) for kernel, bias in shapes)


@pytest.mark.parametrize("form", [ops.scan_mlp, ops.scan_mlp_literally])
@pytest.mark.parametrize(
    "layers, shape, window, strides, message",
    [
        ((), (2, 7, 3), 2, 1, "layers must hold at least 1 layer, got none"),
        (mlp_of(((6, 4), 4)), (7, 3), 2, 1, "inputs must be [batch, *spatial, channels] with 1, 2 or 3 spatial"),
        (
            mlp_of(((7, 4), 4)), (2, 7, 7, 3), (2, 2), 1,
            "layers[0].kernel must have 12 rows (prod(window) · channels = 2·2·3), got shape (7, 4)",
        ),
        (
            mlp_of(((6, 4), 4), ((5, 2), 2)), (2, 7, 3), 2, 1,
            "layers[1].kernel must have 4 rows (the units of layers[0]), got shape (5, 2)",
        ),
        (mlp_of(((2, 3, 4), 4)), (2, 7, 3), 2, 1, "layers[0].kernel must be [inputs, units], got shape (2, 3, 4)"),
        (mlp_of(((6, 4), 3)), (2, 7, 3), 2, 1, "layers[0].bias must have one entry for each unit (4), got (3,)"),
        (
            mlp_of(((6, 4), 4), dtype=jnp.bfloat16), (2, 7, 3), 2, 1,
            "layers[0].kernel must have the type of the inputs (float32), got bfloat16",
        ),
        (mlp_of(((24, 4), 4)), (2, 7, 3), 8, 1, "a filter of 8 with stride 1 does not fit 7 with padding 0"),
        (mlp_of(((6, 4), 4)), (2, 7, 3), 2, 0, "strides must be at least 1, got 0"),
        (mlp_of(((6, 4), 4)), (2, 7, 3), (2, 2), 1, "window must have one entry for each of the 1 dimensions"),
    ],
)  # fmt: skip
def test_bad_input_is_told_the_rule_and_the_value(form, layers, shape, window, strides, message):
    with pytest.raises(InputError) as error:
        form(layers, jnp.zeros(shape), window, strides=strides)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.wrong_types
def test_apply_mlp_checks_its_input():
    (layer,) = mlp_of(((6, 4), 4))
    with pytest.raises(InputError, match=r"kernel must have 5 rows \(the inputs of x, whose shape is \(2, 5\)\), got"):
        ops.apply_mlp((layer,), jnp.zeros((2, 5)))
    with pytest.raises(InputError, match=r"x must be \[\*batch, inputs\], got shape \(\)"):
        ops.apply_mlp((layer,), jnp.zeros(()))
