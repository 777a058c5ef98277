"""Segments that are computed again: the same values and gradients, in less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models, ops
from cnnjax.config import Config, Hyperparams, ModelConfig, TrainConfig
from cnnjax.data import Batch, checked_dataset
from cnnjax.errors import InputError
from cnnjax.train import run
from cnnjax.train.rematerialization import computes_again, in_segments
from cnnjax.train.step import initial_state, make_preprocess, make_train_step


def several(x, y):
    """Values that are used far behind where they are made, an output that is an input, one that is a number."""
    first = jnp.sin(x)
    second = jax.jit(jnp.cos)(first) * y
    third = jax.nn.relu(second) + first
    return {"last": third * second, "middle": second, "input": x, "number": 2.0}, jnp.sum(third)


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_values_and_gradients_are_those_of_the_function(count):
    x, y = jax.random.normal(jax.random.key(0), (2, 5))

    def total(function):
        return lambda x, y: sum(jax.tree.leaves(jax.tree.map(jnp.sum, function(x, y))))

    cut = in_segments(several, count)
    jax.tree.map(np.testing.assert_array_equal, cut(x, y), several(x, y))
    for transformed in (jax.jit, lambda function: jax.vmap(function, (0, None))):
        got, want = (transformed(jax.grad(total(function), (0, 1)))(x, y) for function in (cut, several))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


def step_of(name, segments, hyper, width):
    network = models.build(ModelConfig(name, width=width), (32, 32, 3), 10)
    config = TrainConfig(epochs=1, batch_size=16, rematerialize=segments)
    state = initial_state(network, config, hyper, (32, 32, 3))
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    batch = Batch(images, np.arange(16, dtype=np.int32) % 10, np.ones(16, np.float32))
    preprocess = make_preprocess(np.full((32, 32, 3), 127.5), 64.0)
    return ops.jit(make_train_step(network, config, preprocess, 3)), (hyper, state, batch)


@pytest.mark.parametrize(("name", "width"), [("resnet20", 0.5), ("vgg16", 0.125)])
def test_a_training_step_is_the_same_in_less_memory(name, width):
    """With batch normalization and its statistics, or with dropout."""
    hyper = dataclasses.replace(Hyperparams(learning_rate=0.01), filter_rms=np.inf)
    compiled, states = [], []
    for segments in (1, 4):
        step, args = step_of(name, segments, hyper, width)
        program = step.lower(*args).compile()
        compiled.append(program.memory_analysis().temp_size_in_bytes)
        states.append(program(*args)[0])
    for part in ("params", "batch_stats"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *(getattr(s, part) for s in states)
        )
    if computes_again():
        assert compiled[1] < 0.75 * compiled[0]
    else:
        assert compiled[1] >= compiled[0]


def test_a_compiler_that_keeps_everything_is_refused(monkeypatch):
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2
    dataset = checked_dataset("made", ("a", "b"), train=(images, labels), test=(images, labels))
    config = Config(model=ModelConfig("mlp"), train=TrainConfig(batch_size=4, rematerialize=3))
    monkeypatch.setattr(run, "computes_again", lambda: False)
    with pytest.raises(InputError, match=r"train.rematerialize must be 1 with this jaxlib on a CPU, .*, got 3"):
        run.build(config, dataset)
    run.build(dataclasses.replace(config, train=TrainConfig(batch_size=4)), dataset)
