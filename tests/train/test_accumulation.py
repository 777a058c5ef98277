"""A step's batch in parts: the update of the whole batch, in less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models, ops
from cnnjax.config import Config, Hyperparams, ModelConfig, TrainConfig
from cnnjax.data import Batch, checked_dataset
from cnnjax.errors import InputError
from cnnjax.train import placement
from cnnjax.train.run import build
from cnnjax.train.step import initial_state, make_first_unsound, make_preprocess, make_train_step

SHAPE, CLASSES = (8, 8, 1), 3
CONFIG = TrainConfig(epochs=4, batch_size=8, schedule="constant")
HYPER = Hyperparams(learning_rate=0.1, filter_rms=np.inf, shift=1.0, contrast=0.2, dropout_rate=0.0)
PREPROCESS = make_preprocess(jnp.full(SHAPE, 128.0), 64.0)


def lenet(norm="none"):
    config = ModelConfig("lenet", widths=(4,), filters=(3,), paddings=(1,), dense=(6,), norm=norm)
    return models.build(config, SHAPE, CLASSES)


def batch_of(count):
    generator = np.random.default_rng(count)
    images, labels = generator.integers(0, 256, (8, *SHAPE), np.uint8), np.arange(8, dtype=np.int32) % CLASSES
    return Batch(images, labels, (np.arange(8) < count).astype(np.float32))


def stepped(network, parts, batch, hyper=HYPER):
    config = dataclasses.replace(CONFIG, accumulate=parts)
    start = initial_state(network, config, hyper, SHAPE)
    return start, *ops.jit(make_train_step(network, config, PREPROCESS, 3))(hyper, start, batch)


@pytest.mark.parametrize("count", [8, 5, 1])  # of 1 image three of four parts have none
def test_the_update_is_that_of_the_whole_batch(count):
    _, whole, metrics = stepped(lenet(), 1, batch_of(count))
    for parts in (2, 4):
        _, state, of_parts = stepped(lenet(), parts, batch_of(count))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, whole.params)
        np.testing.assert_allclose(of_parts, metrics, rtol=1e-5)


@pytest.mark.parametrize(("count", "seen"), [(8, ([0, 2, 4, 6], [1, 3, 5, 7])), (1, ([0],))])
def test_each_part_is_normalized_by_itself(count, seen):
    """The running mean moves once for each part that has an image, by the mean over its images."""
    network, hyper, batch = (
        lenet("batch"),
        dataclasses.replace(HYPER, flip=0.0, shift=0.0, contrast=0.0),
        batch_of(count),
    )
    start, state, _ = stepped(network, 2, batch, hyper)
    variables = {"params": start.params, "batch_stats": start.batch_stats}
    _, maps = network.apply(variables, PREPROCESS(batch.images))
    mean = np.zeros(4)
    for rows in seen:
        mean = 0.9 * mean + 0.1 * np.asarray(maps["pool1"])[rows].mean((0, 1, 2))
    np.testing.assert_allclose(state.batch_stats["norm1"]["mean"], mean, rtol=1e-4, atol=1e-6)


def test_parts_drop_units_of_their_own():
    """Of eight images alike, each a part: were the same units dropped in all, each had the loss of the first."""
    hyper = dataclasses.replace(HYPER, flip=0.0, shift=0.0, contrast=0.0, dropout_rate=0.5)
    images = np.repeat(batch_of(8).images[:1], 8, 0)
    alike, first = (Batch(images, np.zeros(8, np.int32), batch_of(count).mask) for count in (8, 1))
    _, _, of_all = stepped(lenet(), 8, alike, hyper)
    _, _, of_first = stepped(lenet(), 8, first, hyper)
    assert abs(float(of_all.loss) / 8 - float(of_first.loss)) > 1e-4


def test_a_number_that_is_not_finite_is_found_in_whichever_part():
    config = dataclasses.replace(CONFIG, accumulate=4)

    def preprocess(images):
        return jnp.where(images == 255, jnp.nan, PREPROCESS(images))

    images, labels, _ = batch_of(8)
    images = np.minimum(images, 254)
    state = initial_state(lenet(), config, HYPER, SHAPE)
    first_unsound = make_first_unsound(lenet(), config, preprocess)
    assert first_unsound(HYPER, state, images, labels) is None
    for row in range(8):
        assert first_unsound(HYPER, state, np.where(np.arange(8).reshape(-1, 1, 1, 1) == row, 255, images), labels) == (
            "the images"
        )


def test_parts_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match=r"train.accumulate must be a divisor of train.batch_size \(8\), got 3"):
        dataclasses.replace(CONFIG, accumulate=3)
    with pytest.raises(
        InputError, match=r"train.batch_size must be a multiple of the 1 devices times train.accumulate"
    ):
        placement.mesh_for(6, 1, parts=4)


def test_a_network_that_takes_no_mask_needs_an_image_in_every_part(tmp_path):
    (tmp_path / "own.py").write_text(
        "import flax.linen as nn\n\n\nclass Own(nn.Module):\n    @nn.compact\n    def __call__(self, images):\n"
        "        return nn.Dense(3)(images.reshape(len(images), -1))\n\n\nown = Own()\n"
    )
    images, labels = np.zeros((11, *SHAPE), np.uint8), np.arange(11) % CLASSES
    dataset = checked_dataset("made", ("a", "b", "c"), train=(images, labels), test=(images, labels))
    config = Config(model=ModelConfig(f"{tmp_path / 'own.py'}:own"), train=dataclasses.replace(CONFIG, accumulate=2))
    rule = r"train.accumulate must divide the 3 images of an epoch's last batch too for a network of one's own, got 2"
    models.foreign.allow(config.model.name)
    with pytest.raises(InputError, match=rule):
        build(config, dataset)
