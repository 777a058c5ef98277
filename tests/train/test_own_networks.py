"""The training of networks that others wrote: as their own loop would do it, each image counted once."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cnnjax.config import Config, DataConfig, Hyperparams, ModelConfig, TrainConfig
from cnnjax.data import checked_dataset, epoch_order
from cnnjax.errors import InputError
from cnnjax.models import foreign
from cnnjax.ops import jit
from cnnjax.tracing.relus import named_feature_maps_of
from cnnjax.train import run as running
from cnnjax.train.feed import Portion
from cnnjax.train.step import initial_state, make_order, make_train_chunk
from tests.train.small import same

SHAPE, COUNT = (6, 6, 1), 11
CONFIG = TrainConfig(epochs=2, batch_size=4, schedule="constant")  # batches of 4, 4 and 3
HYPER = Hyperparams(learning_rate=0.1, weight_decay=0.0, filter_rms=np.inf, flip=0.0)
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (COUNT, *SHAPE), np.uint8)
LABELS = GENERATOR.integers(0, 3, COUNT).astype(np.int32)


def preprocess(images):
    return jnp.asarray(images, jnp.float32) / 64 - 2


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))


class Linen(nn.Module):
    blocks: int = 2

    @nn.compact
    def __call__(self, x, train: bool = False):
        for _ in range(self.blocks):
            x = Block()(x, train)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class NNX(nnx.Module):
    def __init__(self, rngs, blocks=2):
        self.blocks = nnx.List([nnx.Conv(4 if place else 1, 4, (3, 3), rngs=rngs) for place in range(blocks)])
        self.norms = nnx.List([nnx.BatchNorm(4, rngs=rngs) for _ in range(blocks)])
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.blocks, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return self.head(x.mean((1, 2)))


def unfilled():
    """The batches of two epochs, the last of each as long as it is."""
    for epoch in range(2):
        order, masks = epoch_order(HYPER.seed, epoch, COUNT, CONFIG.batch_size)
        for rows, mask in zip(np.asarray(order), np.asarray(masks), strict=True):
            kept = rows[mask > 0]
            yield preprocess(IMAGES[kept]), LABELS[kept]


def by_linen(variables):
    """Two epochs as Flax's documentation trains."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    optimizer = optax.sgd(HYPER.learning_rate, momentum=HYPER.momentum)
    state = optimizer.init(params)

    @jax.jit
    def step(params, batch_stats, state, images, labels):
        def loss(params):
            own = {"params": params, "batch_stats": batch_stats}
            logits, changed = Linen(1).apply(own, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed["batch_stats"]

        gradient, batch_stats_then = jax.grad(loss, has_aux=True)(params)
        updates, state_then = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), batch_stats_then, state_then

    for images, labels in unfilled():
        params, batch_stats, state = step(params, batch_stats, state, images, labels)
    return params, batch_stats


def by_nnx(variables):
    """The same as NNX's documentation does."""
    model = NNX(nnx.Rngs(0), 1)
    graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    nnx.replace_by_pure_dict(params, variables["params"])
    nnx.replace_by_pure_dict(statistics, variables["batch_stats"])
    model = nnx.merge(graph, params, statistics)
    model.train()
    optimizer = nnx.Optimizer(model, optax.sgd(HYPER.learning_rate, momentum=HYPER.momentum), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, images, labels):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    for images, labels in unfilled():
        step(model, optimizer, images, labels)
    return nnx.to_pure_dict(nnx.state(model, nnx.Param)), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


@pytest.mark.parametrize(("given", "loop"), [(Linen(1), by_linen), (NNX(nnx.Rngs(0), 1), by_nnx)], ids=["linen", "nnx"])
def test_a_last_batch_that_is_filled_up_counts_each_image_once(given, loop):
    """Weights and running statistics after two epochs are those of the framework's own loop over the same images."""
    network = foreign.wrapped(given, "net")
    chunk, order = make_train_chunk(network, CONFIG, preprocess, COUNT), make_order(CONFIG, COUNT)
    start = initial_state(network, CONFIG, HYPER, SHAPE)

    @jit
    def trained(rates, states, epoch):
        def member(rate, state):
            hyper = dataclasses.replace(HYPER, learning_rate=rate)
            portion = Portion(jnp.asarray(IMAGES), jnp.asarray(LABELS), *order(hyper, epoch), 3 * epoch)
            return chunk(hyper, state, portion, 3 * epoch, 3 * epoch + 3)

        return jax.vmap(member)(rates, states)

    rates = jnp.array([0.0, HYPER.learning_rate])  # members of a sweep
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
    for epoch in range(2):
        states = trained(rates, states, epoch)
    assert states.metrics.count.tolist() == [COUNT, COUNT]
    found = jax.tree.map(lambda leaf: leaf[1], (states.params, states.batch_stats))
    wanted = loop({"params": start.params, "batch_stats": start.batch_stats})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.dropout, self.linear = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(1, 2, rngs=rngs)

    def __call__(self, x):
        return self.linear(self.dropout(x).mean((1, 2)))


def dropped_by_equinox():
    equinox = pytest.importorskip("equinox")

    class Net(equinox.Module):
        dropout: equinox.nn.Dropout
        linear: equinox.nn.Linear

        def __init__(self, key):
            self.dropout, self.linear = equinox.nn.Dropout(0.5), equinox.nn.Linear(1, 2, key=key)

        def __call__(self, x, *, key=None):
            return self.linear(self.dropout(x, key=key).mean((1, 2)))

    return Net(jax.random.key(0))


@pytest.mark.parametrize("make", [lambda: Dropped, pytest.param(dropped_by_equinox, marks=pytest.mark.extra)])
def test_dropout_is_another_at_every_step_and_for_every_image_and_none_in_evaluation(make):
    network = foreign.wrapped(make(), "net")
    images = np.ones((2, *SHAPE), np.float32)
    variables = network.init(jax.random.key(0), images)

    def logits(**more):
        return np.asarray(network.apply(variables, images, **more)[0])

    keys = [{"dropout": jax.random.key(seed)} for seed in (1, 2)]
    first, second = (logits(train=True, rngs=rngs) for rngs in keys)
    assert (first != second).any(axis=1).all() and (first[0] != first[1]).any()
    np.testing.assert_array_equal(first, logits(train=True, rngs=keys[0]))
    evaluated = logits()
    np.testing.assert_array_equal(evaluated[0], evaluated[1])


@pytest.mark.parametrize(
    ("given", "frozen"), [(Linen(), ("Block_0",)), (NNX, ("blocks.0", "norms.0"))], ids=["linen", "nnx"]
)
def test_a_frozen_normalization_is_as_in_evaluation_while_training(given, frozen):
    network = foreign.wrapped(given, "net").clone(frozen=frozen)
    images = GENERATOR.normal(size=(3, *SHAPE)).astype(np.float32)
    variables = network.init(jax.random.key(0), images)
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"])

    def both(network):
        """The first ReLU's output in a training and in evaluation, and which statistics have moved in it."""

        def outputs(images):
            (logits, _), changed = network.apply(variables, images, train=True, mutable=["batch_stats"])
            return logits, changed["batch_stats"]

        (_, moved), training = named_feature_maps_of(outputs)(images)
        first = [np.asarray(next(iter(maps.values()))) for maps in (training, network.apply(variables, images)[1])]
        changed = jax.tree.map(lambda now, before: bool((now != before).any()), moved, variables["batch_stats"])
        return first, jax.tree.leaves(changed)

    (training, evaluation), moved = both(network)
    np.testing.assert_allclose(training, evaluation, rtol=1e-5)
    assert moved == [False, False, True, True]
    (training, evaluation), moved = both(foreign.wrapped(given, "net"))
    assert abs(training - evaluation).max() > 0.1 and all(moved)


CODE = """
import flax.linen as nn


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(3, (3, 3))(x)))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = Block(name="stem")(x, train)
        return nn.Dense(3, name="head")(Block(name="body")(x, train).mean((1, 2)))


net = Net()
"""


def test_frozen_layers_of_an_own_network_change_no_bit_and_the_others_do(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "_ALLOWED", {})
    path = tmp_path / "net.py"
    path.write_text(CODE)
    name = f"{path}:net"
    foreign.allow(name)
    dataset = checked_dataset("noise", ("a", "b", "c"), train=(IMAGES, LABELS), test=(IMAGES, LABELS))

    def config(*frozen):
        train = dataclasses.replace(CONFIG, epochs=1, freeze=frozen)
        return Config(DataConfig(), ModelConfig(name), train, dataclasses.replace(HYPER, weight_decay=0.1))

    states = running.run(config("stem", "body.Conv_0"), dataset, tmp_path / "run").states
    first, last = (foreign.arrays_of({"params": state.params, "batch_stats": state.batch_stats})
                   for state in (states[0], states[1]))  # fmt: skip
    kept = {name for name, array in first.items() if array.tobytes() == last[name].tobytes()}
    frozen = {name for name in first if ".stem." in name or ".body.Conv_0." in name}
    assert kept == frozen and len(frozen) == 8
    same(states, running.run(config("stem", "body.Conv_0"), dataset, tmp_path / "run").states)
    for names, message in {
        ("conv",): "train.freeze must be of body.BatchNorm_0, body.Conv_0, head, stem.BatchNorm_0, stem.Conv_0, or "
        "what these begin with, got 'conv'",
        ("stem", "body", "head"): "train.freeze must leave a layer to train, got stem, body, head",
    }.items():
        with pytest.raises(InputError, match=message):
            running.run(config(*names), dataset, tmp_path / "none")
    assert not (tmp_path / "none").exists()
