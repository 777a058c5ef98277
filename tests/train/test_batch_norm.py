"""Rows that fill up a batch count in nothing: not in the statistics, the loss, the gradient, or what comes of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.config import Hyperparams, ModelConfig, TrainConfig
from cnnjax.data import Batch
from cnnjax.train.step import initial_state, make_preprocess, make_train_step

SHAPE, CLASSES = (8, 8, 1), 3
CONFIG = TrainConfig(epochs=4, batch_size=8, schedule="constant")
PLAIN = Hyperparams(learning_rate=0.1, weight_decay=0.0, filter_rms=np.inf, flip=0.0, dropout_rate=0.0)
PREPROCESS = make_preprocess(jnp.full(SHAPE, 128.0), 64.0)


def lenet(*dense):
    config = ModelConfig("lenet", widths=(4,), filters=(3,), paddings=(1,), dense=dense, norm="batch")
    return models.build(config, SHAPE, CLASSES)


def batches(counts, fill=7, label=0):
    """Batches of 8 rows, of which so many are images; the others are all `fill`."""
    generator = np.random.default_rng(0)
    made = []
    for count in counts:
        images, labels = generator.integers(0, 200, (8, *SHAPE), dtype=np.uint8), generator.integers(0, CLASSES, 8)
        images[count:], labels[count:] = fill, label
        made.append(Batch(images, labels.astype(np.int32), (np.arange(8) < count).astype(np.float32)))
    return made


def trained(network, hyper, batches, preprocess=PREPROCESS):
    step = jax.jit(make_train_step(network, CONFIG, preprocess, 3))
    state = initial_state(network, CONFIG, hyper, SHAPE)
    for batch in batches:
        state, _ = step(hyper, state, batch)
    return state


@pytest.mark.extra
def test_padded_batches_train_as_pytorch_does_on_their_images_alone():
    torch = pytest.importorskip("torch")
    network = lenet()
    start = initial_state(network, CONFIG, PLAIN, SHAPE)
    parameters = {
        f"{layer} {name}": torch.tensor(np.asarray(leaf), requires_grad=True)
        for layer, leaves in start.params.items()
        for name, leaf in leaves.items()
    }
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9)
    mean, variance = np.zeros(4), np.ones(4)
    made = batches((8, 5, 1))
    for batch in made:
        count = int(batch.mask.sum())
        x = (torch.tensor(batch.images[:count]).permute(0, 3, 1, 2).float() - 128) / 64
        kernel = parameters["conv1 kernel"].permute(3, 2, 0, 1)
        x = torch.nn.functional.conv2d(x, kernel, parameters["conv1 bias"], padding=1).relu()
        x = torch.nn.functional.max_pool2d(x, 2)
        mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3)).detach().numpy()
        variance = 0.9 * variance + 0.1 * x.var((0, 2, 3), unbiased=False).detach().numpy()
        scale, offset = parameters["norm1 scale"], parameters["norm1 bias"]
        x = torch.nn.functional.batch_norm(x, None, None, scale, offset, training=True)
        scores = x.permute(0, 2, 3, 1).flatten(1) @ parameters["fc2 kernel"] + parameters["fc2 bias"]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scores, torch.tensor(batch.labels[:count]).long()).backward()
        optimizer.step()
    state = trained(network, PLAIN, made)
    for name, expected in parameters.items():
        layer, leaf = name.split()
        np.testing.assert_allclose(state.params[layer][leaf], expected.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.batch_stats["norm1"]["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(state.batch_stats["norm1"]["var"], variance, rtol=1e-4)


@pytest.mark.long
def test_with_dropout_and_augmentation_too_padding_changes_nothing():
    """The same images in a batch of their own number."""
    network, hyper = lenet(6), Hyperparams(dropout_rate=0.4, shift=1.0, contrast=0.2, brightness=0.1)
    made = batches((8, 5))
    alone = [Batch(*(part[: int(batch.mask.sum())] for part in batch)) for batch in made]
    padded, own = trained(network, hyper, made), trained(network, hyper, alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), padded, own)


def test_what_stands_in_the_padding_changes_no_bit():
    """Not even a NaN, which the input makes of grey level 255 here, or a label that is no class."""

    def preprocess(images):
        return jnp.where(images == 255, jnp.nan, PREPROCESS(images))

    network, hyper = lenet(6), dataclasses.replace(PLAIN, dropout_rate=0.4)
    states = [trained(network, hyper, batches((5, 1), fill, label), preprocess) for fill, label in ((7, 0), (255, 99))]
    assert int(states[0].unsound) == 0
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_member_keeps_its_own_statistics_at_its_own_momentum():
    network = lenet()
    step = make_train_step(network, CONFIG, PREPROCESS, 3)
    start = initial_state(network, CONFIG, PLAIN, SHAPE)
    (batch,) = batches((5,))

    def statistics(momentum, scale):
        params = start.params | {"conv1": jax.tree.map(lambda leaf: leaf * scale, start.params["conv1"])}
        hyper = dataclasses.replace(PLAIN, batch_norm_momentum=momentum)
        return step(hyper, start._replace(params=params), batch)[0].batch_stats["norm1"]["mean"]

    # From 0, the new mean is the batch's times 1 - momentum, and the batch's is as large as the kernel.
    first, second = jax.jit(jax.vmap(statistics))(jnp.array([0.5, 0.9]), jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(first / 0.5, second / 0.1 / 3, rtol=1e-5)
    assert np.all(first > 0)


def test_statistics_are_exact_far_from_zero():
    network = lenet()
    variables = network.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    variables["params"]["conv1"]["bias"] = jnp.full(4, 3000.0)
    images = jax.random.normal(jax.random.key(1), (8, *SHAPE))
    mask = jnp.arange(8) < 5
    (_, maps), changed = network.apply(variables, images, train=True, mask=mask, mutable=["batch_stats"])
    pooled = np.asarray(maps["pool1"][:5], np.float64)
    expected = 0.9 + 0.1 * pooled.var((0, 1, 2))
    np.testing.assert_allclose(changed["batch_stats"]["norm1"]["var"], expected, rtol=1e-4)
    normal = (pooled - pooled.mean((0, 1, 2))) / np.sqrt(pooled.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(maps["norm1"][:5], normal, atol=2e-3)
