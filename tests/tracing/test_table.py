"""The table of layers: the numbers of a plain arithmetic of chains, and invariants of every network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models, ops
from cnnjax.config import ModelConfig
from cnnjax.tracing.relus import feature_maps_of
from cnnjax.tracing.table import table
from tests.cases import some

CONFIGS = {
    "mlp": (ModelConfig("mlp"), (8, 8, 1)),
    "lenet": (ModelConfig("lenet"), (28, 28, 1)),
    "zfnet": (ModelConfig("zfnet"), (224, 224, 3)),
    "zfnet_ceil": (ModelConfig("zfnet", rounding="ceil"), (224, 224, 3)),
    "zfnet_small": (ModelConfig("zfnet_small"), (32, 32, 3)),
    "zfnet_small_batch": (ModelConfig("zfnet_small", norm="batch"), (64, 48, 3)),
    "lenet_odd": (
        ModelConfig(
            "lenet", widths=(4, 6, 8), filters=(3, 3, 2), strides=(1, 2, 1), pools=(2, 1, 1), rounding="floor",
            norm="lrn",
        ),
        (29, 31, 2),
    ),
}  # fmt: skip
# name, input, output, window, stride, padding, (size, jump, start) of what a unit sees, weights, biases, multiply-adds
CHAINS = {
    "mlp": [
        ("fc1", (64,), (256,), 0, 1, (0, 0), None, 16384, 256, 16384),
        ("fc2", (256,), (256,), 0, 1, (0, 0), None, 65536, 256, 65536),
        ("fc3", (256,), (10,), 0, 1, (0, 0), None, 2560, 10, 2560),
    ],
    "lenet": [
        ("conv1", (28, 28, 1), (28, 28, 6), 5, 1, (2, 2), (5, 1, 0.0), 150, 6, 117600),
        ("pool1", (28, 28, 6), (14, 14, 6), 2, 2, (0, 0), (6, 2, 0.5), 0, 0, 0),
        ("conv2", (14, 14, 6), (10, 10, 16), 5, 1, (0, 0), (14, 2, 4.5), 2400, 16, 240000),
        ("pool2", (10, 10, 16), (5, 5, 16), 2, 2, (0, 0), (16, 4, 5.5), 0, 0, 0),
        ("fc3", (400,), (120,), 0, 1, (0, 0), None, 48000, 120, 48000),
        ("fc4", (120,), (84,), 0, 1, (0, 0), None, 10080, 84, 10080),
        ("fc5", (84,), (10,), 0, 1, (0, 0), None, 840, 10, 840),
    ],
    "zfnet": [
        ("conv1", (224, 224, 3), (110, 110, 96), 7, 2, (1, 1), (7, 2, 2.0), 14112, 96, 170755200),
        ("pool1", (110, 110, 96), (55, 55, 96), 3, 2, (1, 1), (11, 4, 2.0), 0, 0, 0),
        ("norm1", (55, 55, 96), (55, 55, 96), 0, 1, (0, 0), (11, 4, 2.0), 0, 0, 0),
        ("conv2", (55, 55, 96), (26, 26, 256), 5, 2, (0, 0), (27, 8, 10.0), 614400, 256, 415334400),
        ("pool2", (26, 26, 256), (13, 13, 256), 3, 2, (1, 1), (43, 16, 10.0), 0, 0, 0),
        ("norm2", (13, 13, 256), (13, 13, 256), 0, 1, (0, 0), (43, 16, 10.0), 0, 0, 0),
        ("conv3", (13, 13, 256), (13, 13, 384), 3, 1, (1, 1), (75, 16, 10.0), 884736, 384, 149520384),
        ("conv4", (13, 13, 384), (13, 13, 384), 3, 1, (1, 1), (107, 16, 10.0), 1327104, 384, 224280576),
        ("conv5", (13, 13, 384), (13, 13, 256), 3, 1, (1, 1), (139, 16, 10.0), 884736, 256, 149520384),
        ("pool5", (13, 13, 256), (6, 6, 256), 3, 2, (0, 0), (171, 32, 26.0), 0, 0, 0),
        ("fc6", (9216,), (4096,), 0, 1, (0, 0), None, 37748736, 4096, 37748736),
        ("fc7", (4096,), (4096,), 0, 1, (0, 0), None, 16777216, 4096, 16777216),
        ("fc8", (4096,), (10,), 0, 1, (0, 0), None, 40960, 10, 40960),
    ],
    "zfnet_ceil": [
        ("conv1", (224, 224, 3), (110, 110, 96), 7, 2, (0, 1), (7, 2, 3.0), 14112, 96, 170755200),
        ("pool1", (110, 110, 96), (55, 55, 96), 3, 2, (0, 1), (11, 4, 5.0), 0, 0, 0),
        ("norm1", (55, 55, 96), (55, 55, 96), 0, 1, (0, 0), (11, 4, 5.0), 0, 0, 0),
        ("conv2", (55, 55, 96), (26, 26, 256), 5, 2, (0, 0), (27, 8, 13.0), 614400, 256, 415334400),
        ("pool2", (26, 26, 256), (13, 13, 256), 3, 2, (0, 1), (43, 16, 21.0), 0, 0, 0),
        ("norm2", (13, 13, 256), (13, 13, 256), 0, 1, (0, 0), (43, 16, 21.0), 0, 0, 0),
        ("conv3", (13, 13, 256), (13, 13, 384), 3, 1, (1, 1), (75, 16, 21.0), 884736, 384, 149520384),
        ("conv4", (13, 13, 384), (13, 13, 384), 3, 1, (1, 1), (107, 16, 21.0), 1327104, 384, 224280576),
        ("conv5", (13, 13, 384), (13, 13, 256), 3, 1, (1, 1), (139, 16, 21.0), 884736, 256, 149520384),
        ("pool5", (13, 13, 256), (6, 6, 256), 3, 2, (0, 0), (171, 32, 37.0), 0, 0, 0),
        ("fc6", (9216,), (4096,), 0, 1, (0, 0), None, 37748736, 4096, 37748736),
        ("fc7", (4096,), (4096,), 0, 1, (0, 0), None, 16777216, 4096, 16777216),
        ("fc8", (4096,), (10,), 0, 1, (0, 0), None, 40960, 10, 40960),
    ],
    "zfnet_small": [
        ("conv1", (32, 32, 3), (32, 32, 24), 7, 1, (3, 3), (7, 1, 0.0), 3528, 24, 3612672),
        ("pool1", (32, 32, 24), (16, 16, 24), 2, 2, (0, 0), (8, 2, 0.5), 0, 0, 0),
        ("conv2", (16, 16, 24), (16, 16, 64), 3, 1, (1, 1), (12, 2, 0.5), 13824, 64, 3538944),
        ("pool2", (16, 16, 64), (8, 8, 64), 2, 2, (0, 0), (14, 4, 1.5), 0, 0, 0),
        ("conv3", (8, 8, 64), (8, 8, 64), 3, 1, (1, 1), (22, 4, 1.5), 36864, 64, 2359296),
        ("conv4", (8, 8, 64), (8, 8, 64), 3, 1, (1, 1), (30, 4, 1.5), 36864, 64, 2359296),
        ("conv5", (8, 8, 64), (8, 8, 64), 3, 1, (1, 1), (38, 4, 1.5), 36864, 64, 2359296),
        ("pool5", (8, 8, 64), (4, 4, 64), 2, 2, (0, 0), (42, 8, 3.5), 0, 0, 0),
        ("fc6", (1024,), (256,), 0, 1, (0, 0), None, 262144, 256, 262144),
        ("fc7", (256,), (10,), 0, 1, (0, 0), None, 2560, 10, 2560),
    ],
    "zfnet_small_batch": [
        ("conv1", (64, 48, 3), (64, 48, 24), 7, 1, (3, 3), (7, 1, 0.0), 3528, 24, 10838016),
        ("pool1", (64, 48, 24), (32, 24, 24), 2, 2, (0, 0), (8, 2, 0.5), 0, 0, 0),
        ("norm1", (32, 24, 24), (32, 24, 24), 0, 1, (0, 0), (8, 2, 0.5), 24, 24, 0),
        ("conv2", (32, 24, 24), (32, 24, 64), 3, 1, (1, 1), (12, 2, 0.5), 13824, 64, 10616832),
        ("pool2", (32, 24, 64), (16, 12, 64), 2, 2, (0, 0), (14, 4, 1.5), 0, 0, 0),
        ("norm2", (16, 12, 64), (16, 12, 64), 0, 1, (0, 0), (14, 4, 1.5), 64, 64, 0),
        ("conv3", (16, 12, 64), (16, 12, 64), 3, 1, (1, 1), (22, 4, 1.5), 36864, 64, 7077888),
        ("norm3", (16, 12, 64), (16, 12, 64), 0, 1, (0, 0), (22, 4, 1.5), 64, 64, 0),
        ("conv4", (16, 12, 64), (16, 12, 64), 3, 1, (1, 1), (30, 4, 1.5), 36864, 64, 7077888),
        ("norm4", (16, 12, 64), (16, 12, 64), 0, 1, (0, 0), (30, 4, 1.5), 64, 64, 0),
        ("conv5", (16, 12, 64), (16, 12, 64), 3, 1, (1, 1), (38, 4, 1.5), 36864, 64, 7077888),
        ("pool5", (16, 12, 64), (8, 6, 64), 2, 2, (0, 0), (42, 8, 3.5), 0, 0, 0),
        ("norm5", (8, 6, 64), (8, 6, 64), 0, 1, (0, 0), (42, 8, 3.5), 64, 64, 0),
        ("fc6", (3072,), (256,), 0, 1, (0, 0), None, 786432, 256, 786432),
        ("fc7", (256,), (10,), 0, 1, (0, 0), None, 2560, 10, 2560),
    ],
    "lenet_odd": [
        ("conv1", (29, 31, 2), (29, 31, 4), 3, 1, (1, 1), (3, 1, 0.0), 72, 4, 64728),
        ("pool1", (29, 31, 4), (14, 15, 4), 2, 2, (0, 0), (4, 2, 0.5), 0, 0, 0),
        ("norm1", (14, 15, 4), (14, 15, 4), 0, 1, (0, 0), (4, 2, 0.5), 0, 0, 0),
        ("conv2", (14, 15, 4), (7, 8, 6), 3, 2, (1, 1), (8, 4, 0.5), 216, 6, 12096),
        ("norm2", (7, 8, 6), (7, 8, 6), 0, 1, (0, 0), (8, 4, 0.5), 0, 0, 0),
        ("conv3", (7, 8, 6), (8, 9, 8), 2, 1, (1, 1), (12, 4, -1.5), 192, 8, 13824),
        ("norm3", (8, 9, 8), (8, 9, 8), 0, 1, (0, 0), (12, 4, -1.5), 0, 0, 0),
        ("fc4", (576,), (120,), 0, 1, (0, 0), None, 69120, 120, 69120),
        ("fc5", (120,), (84,), 0, 1, (0, 0), None, 10080, 84, 10080),
        ("fc6", (84,), (10,), 0, 1, (0, 0), None, 840, 10, 840),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_the_traced_table_is_that_of_the_arithmetic(name):
    config, shape = CONFIGS[name]
    rows = models.layers(models.build(config, shape, 10), shape)
    assert [row.name for row in rows] == [known[0] for known in CHAINS[name]]
    for row, (_, entering, leaving, window, stride, padding, field, *counts) in zip(rows, CHAINS[name], strict=True):
        assert (row.input_shape, row.output_shape) == (entering, leaving)
        assert row.window == ((window, window) if window else ()), row
        assert row.strides == ((stride, stride) if window else ())
        assert row.padding == ((padding, padding) if window else ())
        assert (row.fields and tuple(row.fields[0])) == (row.fields and tuple(row.fields[1])) == field
        assert [row.weights, row.biases, row.multiply_adds] == counts


def traced(function, shape=(1, 12, 12, 2), variables=None):
    """The rows of a plain function of images that returns its feature maps by name."""

    def apply(variables, images):
        maps = function(variables, images)
        return list(maps.values())[-1], dict(list(maps.items())[:-1])

    return table(apply, {"params": variables or {}}, jax.ShapeDtypeStruct(shape, jnp.float32))


def conv(x, kernel, stride=1, padding="SAME", dilation=1, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, padding, rhs_dilation=(dilation,) * 2, dimension_numbers=numbers,
        feature_group_count=groups,
    )  # fmt: skip


def support(function, shape, name, unit):
    """The first and last row and column that the unit's gradient reaches, all weights positive."""

    def value(x):
        at = function(ONES, x)[name]
        return at[(0, *unit)].sum()

    # Products of positive numbers with random images: no gradient is zero by chance.
    image = jnp.abs(jax.random.normal(jax.random.key(0), shape)) + 1
    reached = np.abs(np.asarray(jax.grad(value)(image)))[0].sum(-1) > 0
    rows, columns = np.flatnonzero(reached.any(1)), np.flatnonzero(reached.any(0))
    return rows[0], rows[-1], columns[0], columns[-1]


KERNELS = {
    "a": (3, 3, 2, 4), "b": (3, 3, 4, 4), "c": (1, 1, 2, 4), "d": (1, 7, 4, 4), "e": (7, 1, 4, 4), "f": (5, 5, 1, 4),
    "g": (3, 3, 8, 4),
}  # fmt: skip
ONES = {"params": {name: jnp.ones(shape) for name, shape in KERNELS.items()}}


def branches(variables, x):
    """A residual sum with a stride, a concatenation of unlike windows, a dilation, a depthwise filter, means."""
    p, maps = variables["params"], {}
    maps["a"] = jax.nn.relu(conv(x, p["a"], 2, ((1, 1), (1, 1))))
    shortcut = conv(x, p["c"], 2, "VALID")
    maps["sum"] = jax.nn.relu(conv(maps["a"], p["b"]) + shortcut)
    maps["wide"] = jax.nn.relu(conv(maps["sum"], p["d"]))
    maps["tall"] = jax.nn.relu(conv(maps["sum"], p["e"]))
    maps["both"] = jnp.concatenate([maps["sum"], maps["wide"]], axis=-1)
    maps["dilated"] = conv(maps["both"], p["g"], dilation=2)
    maps["depthwise"] = conv(maps["dilated"], p["f"], groups=4)
    maps["pool"] = jax.lax.reduce_window(maps["depthwise"], 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    maps["mean"] = maps["pool"].mean((1, 2))
    return maps


def test_branches_have_rows_of_their_own():
    rows = {row.name: row for row in traced(branches, (1, 48, 48, 2), ONES["params"])}
    kinds = {name: row.kind for name, row in rows.items()}
    assert kinds == {
        "a": "conv", "sum": "sum", "wide": "conv", "tall": "conv", "both": "concatenation", "dilated": "conv",
        "depthwise": "conv", "pool": "pool", "logits": "pool",
    }  # fmt: skip
    assert rows["wide"].window == (1, 7) and rows["tall"].window == (7, 1)
    assert rows["dilated"].dilation == (2, 2) and rows["depthwise"].groups == 4
    assert (rows["pool"].window, rows["pool"].strides) == ((2, 2), (2, 2))
    assert rows["sum"].parameters == ("b", "c") and rows["sum"].kernel is None
    assert rows["a"].kernel == "a" and rows["a"].kernel_axes == (0, 1, 2, 3)
    assert sum(row.weights for row in rows.values()) == sum(leaf.size for leaf in jax.tree.leaves(ONES))
    assert rows["sum"].multiply_adds == 24 * 24 * (9 * 4 * 4 + 2 * 4)


@pytest.mark.parametrize("name", ["a", "sum", "wide", "tall", "both", "dilated", "depthwise", "pool"])
def test_what_a_unit_sees_is_the_support_of_its_gradient(name):
    shape = (1, 96, 96, 2)
    rows = {row.name: row for row in traced(branches, shape, ONES["params"])}
    unit = rows[name].output_shape[0] // 2
    first_row, last_row, first_column, last_column = support(branches, shape, name, (unit, unit))
    for field, first, last in zip(rows[name].fields, (first_row, first_column), (last_row, last_column), strict=True):
        centre = field.start + field.jump * unit
        assert (first, last) == (centre - (field.size - 1) / 2, centre + (field.size - 1) / 2)


@pytest.mark.parametrize(
    "name",
    some(["alexnet_2012", "googlenet", "mobilenet_v2", "resnet18", "resnet20", "squeezenet1_1", "vgg11"], "vgg11"),
)
def test_what_a_unit_of_a_known_network_sees_is_the_support_of_its_gradient(name):
    """Of a map that leaves room for it, with positive weights that keep the maps as bright as the images."""
    shape = (1, 96, 96, 3)
    network = models.build(ModelConfig(name, width=0.05), shape[1:], 3)
    variables = network.init(jax.random.key(0), jnp.zeros(shape))
    positive = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.abs(leaf) / jnp.abs(leaf).sum(range(leaf.ndim - 1)) if path[-1].key == "kernel" else leaf
        ),
        variables,
    )
    rows = [row for row in models.layers(network, shape[1:]) if row.fields and row.fields[0].size < 50]
    row = rows[-1]
    unit = [size // 2 for size in row.output_shape[:2]]

    def value(x):
        return network.apply(positive, x)[1][row.name][0, unit[0], unit[1]].sum()

    reached = np.zeros(shape[1:3], bool)
    gradient = ops.jit(jax.grad(value), runs_once=True)
    for seed in range(6):  # a max pool passes one pixel of a window; over several images each
        image = jax.random.uniform(jax.random.key(seed), shape)
        reached |= np.abs(np.asarray(gradient(image)))[0].sum(-1) > 0
    for axis, field in enumerate(row.fields):
        centre = field.start + field.jump * unit[axis]
        pixels = np.flatnonzero(reached.any(1 - axis))
        assert pixels[0] >= centre - (field.size - 1) / 2 and pixels[-1] <= centre + (field.size - 1) / 2
        assert pixels[-1] - pixels[0] + 1 >= field.size - 4  # what stands in no maximum of six images


@pytest.mark.parametrize("name", some(sorted(models.KNOWN), "alexnet_2012", "googlenet", "mobilenet_v2", "resnet18"))
def test_every_parameter_of_a_known_network_is_counted_once(name):
    shape = (224, 224, 3)
    network = models.build(ModelConfig(name), shape, 1000)
    rows = models.layers(network, shape)
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))
    assert sum(row.weights + row.biases for row in rows) == sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert sorted(path for row in rows for path in row.parameters) == sorted(
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    )
    assert len({row.name for row in rows}) == len(rows)


def test_a_mean_pool_written_by_hand_is_a_pool():
    def pooled(variables, x):
        return {"mean": (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4, "end": x.sum(1)}

    row = traced(pooled)[0]
    assert (row.kind, row.window, row.strides) == ("pool", (2, 2), (2, 2))
    assert tuple(row.fields[0]) == (2, 2, 0.5)


def test_what_has_no_place_sees_the_whole():
    def mixed(variables, x):
        gate = jax.nn.sigmoid(x.mean((1, 2), keepdims=True))
        flat = x.reshape(1, -1) @ jnp.ones((12 * 12 * 2, 5))
        return {"gated": x * gate, "sorted": jnp.sort(x, axis=1), "dense": flat, "end": flat}

    rows = {row.name: row for row in traced(mixed)}
    assert rows["gated"].fields is rows["sorted"].fields is rows["dense"].fields is None


def test_a_row_knows_which_relu_it_is():
    network = models.build(ModelConfig("resnet18", width=0.05), (64, 64, 3), 3)
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    variables = network.init(jax.random.key(1), images)
    numbers = {row.name: row.relu for row in models.layers(network, (64, 64, 3))}
    found = ops.jit(
        lambda x: (network.apply(variables, x)[1], feature_maps_of(lambda x: network.apply(variables, x))(x)[1])
    )
    maps, relus = found(images)
    assert numbers["pool1"] is numbers["avgpool"] is numbers["fc"] is None
    assert sorted(number for number in numbers.values() if number is not None) == list(range(len(relus)))
    for name, number in numbers.items():
        if number is not None:
            np.testing.assert_allclose(relus[number], maps[name], rtol=1e-5, atol=1e-6)


def test_a_relu_in_a_loop_is_the_map_of_no_row():
    def looped(variables, x):
        return {"a": jax.lax.scan(lambda x, _: (jax.nn.relu(x), None), x, length=2)[0], "end": x.sum((1, 2))}

    assert traced(looped)[0].relu is None
