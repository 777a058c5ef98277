import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax import models
from cnnjax.config import Hyperparams, ModelConfig, TrainConfig
from cnnjax.data import Batch, Split, epoch_order
from cnnjax.train import step as step_module
from cnnjax.train.feed import Portion, in_its_own_order, portions
from cnnjax.train.step import (
    all_finite,
    initial_state,
    make_evaluate,
    make_first_unsound,
    make_preprocess,
    make_train_chunk,
    make_train_step,
)
from tests.cases import some

SHAPE, CLASSES, COUNT = (8, 8, 1), 3, 10
CONFIG = TrainConfig(epochs=4, batch_size=4)
HYPER = jax.tree.map(jnp.asarray, Hyperparams(shift=1.0, contrast=0.2, brightness=0.1))
PREPROCESS = make_preprocess(jnp.full(SHAPE, 128.0), 64.0)


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)
    return jnp.asarray(images), jnp.asarray(generator.integers(0, CLASSES, COUNT, dtype=np.int32))


@pytest.fixture(scope="module", params=some(["none", "batch"], "batch"))
def network(request):
    config = ModelConfig("lenet", widths=(4, 4), filters=(3, 3), paddings=(1, 1), dense=(8,), norm=request.param)
    return models.build(config, SHAPE, CLASSES)


def begun(network, hyper=HYPER, config=CONFIG):
    return jax.jit(lambda hyper: initial_state(network, config, hyper, SHAPE))(hyper)


def portion(data, epoch, seed=HYPER.seed):
    (images, labels), (rows, masks) = data, epoch_order(seed, epoch, COUNT, CONFIG.batch_size)
    return Portion(images, labels, rows, masks, 3 * epoch)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_one_step_is_the_textbook_update(data):
    """The step against flax, optax and a plain gradient put together here, all randomness off."""
    hyper = Hyperparams(flip=0.0, dropout_rate=0.0, filter_rms=np.inf, weight_decay=0.0, learning_rate=0.1)
    config = TrainConfig(epochs=4, batch_size=4, schedule="constant")
    network = models.build(ModelConfig("mlp", dense=(5,)), SHAPE, CLASSES)
    state = begun(network, hyper, config)
    batch = Batch(data[0][:4], data[1][:4], jnp.array([1.0, 1.0, 1.0, 0.0]))

    def loss(params):
        x = (data[0][:3].astype(jnp.float32) - 128) / 64
        logits = network.apply({"params": params}, x)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, data[1][:3]).mean()

    value, gradient = jax.value_and_grad(loss)(state.params)
    new, metrics = jax.jit(make_train_step(network, config, PREPROCESS, 3))(hyper, state, batch)
    expected = jax.tree.map(lambda leaf, change: leaf - 0.1 * change, state.params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), new.params, expected)
    assert float(metrics.loss) == pytest.approx(3 * float(value), rel=1e-5)
    assert float(metrics.count) == 3 and int(new.step) == 1


def test_where_a_chunk_ends_changes_no_bit_and_single_steps_agree(network, data):
    chunk = jax.jit(make_train_chunk(network, CONFIG, PREPROCESS, COUNT))
    start = begun(network)
    whole = chunk(HYPER, start, portion(data, 0), 0, 3)
    cut = chunk(HYPER, chunk(HYPER, start, portion(data, 0), 0, 1), portion(data, 0), 1, 3)
    equal(whole, cut)
    assert chunk._cache_size() == 1
    single = jax.jit(make_train_step(network, CONFIG, PREPROCESS, 3))
    order, masks = epoch_order(HYPER.seed, 0, COUNT, CONFIG.batch_size)
    state = start
    for index in range(3):
        state, _ = single(HYPER, state, Batch(data[0][order[index]], data[1][order[index]], masks[index]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, whole.params)


def test_the_losses_of_20_steps_are_those_of_a_python_loop(network, data):
    chunk = jax.jit(make_train_chunk(network, CONFIG, PREPROCESS, COUNT))
    single = jax.jit(make_train_step(network, CONFIG, PREPROCESS, 3))
    looped = called = begun(network)
    for step in range(20):
        epoch, position = divmod(step, 3)
        before = 0.0 if position == 0 else float(looped.metrics.loss)
        looped = chunk(HYPER, looped, portion(data, epoch), step, step + 1)
        order, masks = epoch_order(HYPER.seed, epoch, COUNT, CONFIG.batch_size)
        rows = order[position]
        called, metrics = single(HYPER, called, Batch(data[0][rows], data[1][rows], masks[position]))
        assert float(looped.metrics.loss) - before == pytest.approx(float(metrics.loss), rel=1e-4, abs=1e-5)


def test_metrics_of_an_epoch_count_every_image_once_and_start_anew(network, data):
    chunk = jax.jit(make_train_chunk(network, CONFIG, PREPROCESS, COUNT))
    state = chunk(HYPER, begun(network), portion(data, 0), 0, 3)
    assert float(state.metrics.count) == COUNT
    state = chunk(HYPER, state, portion(data, 1), 3, 4)
    assert float(state.metrics.count) == CONFIG.batch_size


@pytest.mark.long
def test_a_member_under_vmap_is_the_run_alone(network, data):
    chunk = make_train_chunk(network, CONFIG, PREPROCESS, COUNT)

    def trained(hyper):
        return chunk(hyper, initial_state(network, CONFIG, hyper, SHAPE), portion(data, 0, hyper.seed), 0, 3)

    rates = jnp.array([0.01, 0.1])
    members = jax.vmap(lambda rate, seed: dataclasses.replace(HYPER, learning_rate=rate, seed=seed))(
        rates, jnp.arange(2)
    )
    together = jax.jit(jax.vmap(trained))(members)
    trained = jax.jit(trained)
    for index in range(2):
        alone = trained(jax.tree.map(lambda leaf: leaf[index], members))
        got = jax.tree.map(lambda leaf: leaf[index], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got.params, alone.params)


def test_evaluation_counts_every_image_once_whatever_the_batch(network, data):
    state = begun(network)
    results = []
    for batch_size in (3, 16):
        config = dataclasses.replace(CONFIG, batch_size=batch_size)
        (whole,) = portions(
            in_its_own_order(Split(*map(np.asarray, data)), batch_size, jax.device_put),
            HYPER,
            0,
            -(-COUNT // batch_size),
        )
        results.append(jax.jit(make_evaluate(network, config, PREPROCESS))(HYPER, state, *whole))
    logits, _ = network.apply({"params": state.params, "batch_stats": state.batch_stats}, PREPROCESS(data[0]))
    errors = int(jnp.sum(jnp.argmax(logits, axis=1) != data[1]))
    for metrics in results:
        assert (float(metrics.count), float(metrics.errors), float(metrics.errors_top5)) == (COUNT, errors, 0)
        assert float(metrics.loss) == pytest.approx(float(results[0].loss), rel=1e-5)


@pytest.mark.parametrize("shape", [(3,), (300, 300), (65_537,)])  # small, in sixteen parts, with a rest
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(shape, bad):
    leaf = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    places = np.linspace(0, leaf.size - 1, 7).astype(int)
    stacked = np.stack([leaf] * (len(places) + 1))
    for number, place in enumerate(places):
        stacked[number].flat[place] = bad
    finite = jax.vmap(lambda leaf: all_finite({"large": leaf, "narrow": jnp.ones(2, jnp.bfloat16)}))(stacked)
    assert list(finite) == [False] * len(places) + [True]
    assert all_finite({}) and not all_finite([jnp.ones((2, 0)), jnp.float32(bad)])


def test_ties_and_nan_are_errors():
    batch = Batch(jnp.zeros((2, 1, 1, 1)), jnp.array([0, 0]), jnp.ones(2))
    logits = jnp.array([[1.0, 1.0, 0.0], [jnp.nan, 0.0, 0.0]])
    metrics = step_module.batch_metrics(jnp.zeros(2), logits, batch)
    assert float(metrics.errors) == 2


def test_the_initial_scale_multiplies_kernels_and_one_epoch_of_another_seed_differs(network):
    hyper = dataclasses.replace(HYPER, initial_scale=jnp.float32(2.0))
    once, twice = (begun(network, h).params["conv1"]["kernel"] for h in (HYPER, hyper))
    np.testing.assert_array_equal(2 * once, twice)
    other = begun(network, dataclasses.replace(HYPER, seed=jnp.int32(1)))
    assert not np.allclose(other.params["conv1"]["kernel"], once)


class Named(nn.Module):
    """Two dense layers whose names have no digit and stand in no alphabetical order; the root of 0 has no slope."""

    @nn.compact
    def __call__(self, images, **_):
        x = jnp.sqrt(nn.Dense(4, use_bias=False, name="stem")(0 * images.reshape(len(images), -1)))
        return nn.Dense(CLASSES, name="10th")(x), {"root": x}


def test_the_first_gradient_that_is_not_finite_is_named_whatever_layers_are_called(data):
    state = begun(Named())
    first_unsound = make_first_unsound(Named(), CONFIG, PREPROCESS)
    assert first_unsound(HYPER, state, *data) == "the gradient of stem"
    params = jax.tree.map(lambda leaf: leaf * jnp.inf, state.params)
    state = state._replace(params=params)
    assert first_unsound(HYPER, state, *data) == "root"
