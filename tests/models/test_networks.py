"""Parameter counts and sizes: those of the paper, of LeCun et al. (1998), and those that the network itself makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from tests.cases import some


def parameter_count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def shapes_of(network, image_shape):
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    (logits, maps) = jax.eval_shape(network.apply, variables, jnp.zeros((1, *image_shape)))
    return variables, logits, maps


def test_zfnet_is_the_network_of_figure_3():
    network = models.build(ModelConfig("zfnet"), (224, 224, 3), 1000)
    variables, logits, maps = shapes_of(network, (224, 224, 3))
    assert parameter_count(variables["params"]) == 62_357_608
    names = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    assert [maps[name].shape[1] for name in names] == [110, 55, 26, 13, 13, 13, 13, 6]
    assert logits.shape == (1, 1000)
    rows = {row.name: row for row in models.layers(network, (224, 224, 3))}
    order = "conv1 pool1 norm1 conv2 pool2 norm2 conv3 conv4 conv5 pool5 fc6 fc7 fc8"
    assert " ".join(rows) == order
    assert sum(row.multiply_adds for row in rows.values()) == 1_168_032_896
    assert [rows[name].fields[0].size for name in names] == [7, 11, 27, 43, 75, 107, 139, 171]
    assert [rows[name].fields[0].jump for name in names] == [2, 4, 8, 16, 16, 16, 16, 32]
    # The paper's centres count the first pixel's middle as 0.5, ours as 0.
    assert [rows[name].fields[0].start + 0.5 for name in names] == [2.5, 2.5, 10.5, 10.5, 10.5, 10.5, 10.5, 26.5]


def test_zfnet_rounded_up_without_padding_has_the_same_sizes():
    config = ModelConfig("zfnet", rounding="ceil")
    rows = {row.name: row for row in models.layers(models.build(config, (224, 224, 3), 10), (224, 224, 3))}
    names = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    assert [rows[name].output_shape[0] for name in names] == [110, 55, 26, 13, 13, 13, 13, 6]
    assert [rows[name].fields[0].start + 0.5 for name in names] == [3.5, 5.5, 13.5, 21.5, 21.5, 21.5, 21.5, 37.5]


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (ModelConfig("zfnet", dense=(2048, 2048)), 28_848_232),
        (ModelConfig("zfnet", dense=(8192, 8192)), 154_542_184),
        (ModelConfig("zfnet", widths=(96, 256, 512, 1024, 512)), 107_627_624),
        (ModelConfig("zfnet", widths=(96, 256, 512, 1024, 512), dense=(8192, 8192)), 237_560_936),
    ],
)
def test_the_variants_of_table_3_have_their_parameters(config, count):
    rows = models.layers(models.build(config, (224, 224, 3), 1000), (224, 224, 3))
    assert sum(row.weights + row.biases for row in rows) == count


def test_lenet_has_61706_parameters():
    network = models.build(ModelConfig("lenet"), (28, 28, 1), 10)
    variables, _, maps = shapes_of(network, (28, 28, 1))
    assert parameter_count(variables["params"]) == 61_706
    assert maps["pool2"].shape == (1, 5, 5, 16)


@pytest.mark.parametrize("name", sorted(models.NETWORKS.keys() - models.KNOWN.keys()))
@pytest.mark.parametrize("norm", [None, "batch", "lrn"])
def test_the_table_says_what_the_network_does(name, norm):
    if name == "mlp" and norm:
        pytest.skip("has no convolution to normalize")
    shape = (96, 96, 3) if name == "zfnet" else (28, 28, 1)
    network = models.build(ModelConfig(name, norm=norm), shape, 7)
    variables, logits, maps = shapes_of(network, shape)
    *rows, last = models.layers(network, shape)
    assert {row.name: row.output_shape for row in rows} == {key: value.shape[1:] for key, value in maps.items()}
    assert last.output_shape == logits.shape[1:]
    assert sum(row.weights + row.biases for row in (*rows, last)) == parameter_count(variables["params"])


@pytest.mark.parametrize("layer", some(["conv1", "pool1", "conv2", "conv3"], "pool1"))
def test_the_receptive_field_is_the_support_of_the_gradient(layer):
    """Nonzero gradients of the middle unit stand exactly where the table's field is, all weights being positive."""
    shape = (96, 96, 1)
    config = ModelConfig("zfnet_small", widths=(2, 2, 2), filters=(7, 5, 3), strides=(2, 1, 1), pools=(2, 1, 1))
    network = models.build(config, shape, 3)
    variables = jax.tree.map(jnp.abs, network.init(jax.random.key(0), jnp.zeros((1, *shape))))
    size = models.layers(network, shape)[0]
    field = next(row for row in models.layers(network, shape) if row.name == layer).fields[0]
    maps = network.apply(variables, jnp.ones((1, *shape)))[1]
    unit = maps[layer].shape[1] // 2
    # A smooth mean instead of the max: every pixel of a window then has a gradient. Sum over random images instead:
    support = np.zeros(shape[:2])
    for seed in range(30):
        image = jax.random.uniform(jax.random.key(seed), (1, *shape))
        gradient = jax.grad(lambda x: network.apply(variables, x)[1][layer][0, unit, unit].sum())(image)
        support += np.abs(np.asarray(gradient))[0, :, :, 0]
    rows = np.flatnonzero(support.any(axis=1))
    centre = field.start + field.jump * unit
    assert size.fields[0].size == 7
    assert (rows[0], rows[-1]) == (centre - (field.size - 1) / 2, centre + (field.size - 1) / 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig("resnet"), "model.name must be one of mlp, lenet, zfnet, zfnet_small, .*, got 'resnet'"),
        (ModelConfig("lenet", strides=(2, 1)), r"conv1: a 5×5 filter with stride 2 does not fit 28×28 with padding 2"),
        (ModelConfig("lenet", filters=(5,)), "model.filters must have one entry a convolution, and the network has 2"),
        (ModelConfig("lenet", filters=(5, 15), paddings=(2, 0)), "conv2: a 15×15 filter .* padding .* would fit"),
        (ModelConfig("mlp", widths=(3,)), "model.widths must be None for mlp"),
    ],
)
def test_what_does_not_fit_is_said(config, message):
    with pytest.raises(InputError, match=message):
        models.build(config, (28, 28, 1), 10)


def test_dropout_is_off_in_evaluation_and_traced_in_training():
    network = models.build(ModelConfig("mlp"), (8, 8, 1), 3)
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    variables = network.init(jax.random.key(0), images)
    apply = jax.jit(
        lambda rate: network.apply(
            variables, images, train=True, dropout_rate=rate, rngs={"dropout": jax.random.key(2)}
        )[0]
    )
    still = network.apply(variables, images)[0]
    np.testing.assert_allclose(apply(0.0), still, rtol=1e-5)
    assert not np.allclose(apply(0.5), still)
    assert apply._cache_size() == 1


@pytest.mark.parametrize(
    ("config", "unheard"),
    [
        (ModelConfig("lenet"), {"batch_norm_momentum"}),
        (ModelConfig("lenet", norm="batch"), set()),
        (ModelConfig("lenet", norm="batch", dense=()), {"dropout_rate"}),
        (ModelConfig("mlp", dense=()), {"batch_norm_momentum", "dropout_rate"}),
        (ModelConfig("resnet20", width=0.25), {"dropout_rate"}),
        (ModelConfig("squeezenet1_1", width=0.25), {"batch_norm_momentum"}),
        pytest.param(ModelConfig("mobilenet_v2", width=0.25), set(), marks=pytest.mark.long),
    ],
    ids=lambda value: value.name if isinstance(value, ModelConfig) else None,
)
def test_hyperparameters_that_a_network_does_not_look_at(config, unheard):
    assert set(models.unheard(models.build(config, (32, 32, 1), 10), (32, 32, 1))) == unheard
