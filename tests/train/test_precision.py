"""Trainings in bfloat16: what is rounded, and what is not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models, ops
from cnnjax.config import DataConfig, Hyperparams, ModelConfig, TrainConfig
from cnnjax.data import Batch, load
from cnnjax.data.scale import scale_of
from cnnjax.train.feed import Portion
from cnnjax.train.precision import in_precision
from cnnjax.train.step import initial_state, make_evaluate, make_preprocess, make_train_step
from tests.cases import some

NETWORKS = [
    *(ModelConfig(name) for name in models.KNOWN),
    ModelConfig("zfnet"),
    ModelConfig("zfnet", norm="batch"),
    ModelConfig("mlp"),
]


@pytest.mark.parametrize("config", some(NETWORKS, ModelConfig("resnet20"), ModelConfig("zfnet")), ids=str)
def test_maps_are_narrow_and_statistics_and_logits_are_not(config):
    side = 32 if config.name == "resnet20" else 299 if config.name == "inception_v3" else 224
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    network = models.build(config, (side, side, 3), 10)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    kwargs = {"train": True, "mask": jnp.ones(2, bool), "dropout_rate": 0.5, "mutable": ["batch_stats"]}
    apply = in_precision(network.apply, "bfloat16")
    (logits, maps), changed = jax.eval_shape(
        lambda variables, images: apply(variables, images, rngs={"dropout": jax.random.key(0)}, **kwargs),
        variables,
        images,
    )
    assert logits.dtype == jnp.float32
    assert {leaf.dtype.name for leaf in maps.values()} <= {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(changed)} <= {"float32"}
    logits, maps = jax.eval_shape(apply, variables, images)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype.name for leaf in maps.values()} <= {"bfloat16"}


def trained(precision, name, steps):
    """The losses of so many steps on the digits, the last state, and the test error."""
    dataset = load(DataConfig("digits", image_size=32))
    config = TrainConfig(epochs=10, batch_size=64, schedule="constant", precision=precision)
    hyper = dataclasses.replace(Hyperparams(learning_rate=0.01, dropout_rate=0.0, flip=0.0), filter_rms=np.inf)
    model = ModelConfig(name, width=0.5 if name == "resnet20" else None, norm=None)
    network = models.build(model, dataset.image_shape, 10)
    preprocess = make_preprocess(*scale_of(DataConfig("digits", image_size=32), dataset))
    step = ops.jit(make_train_step(network, config, preprocess, 1000))
    state, losses = initial_state(network, config, hyper, dataset.image_shape), []
    for number in range(steps):
        rows = slice(64 * number, 64 * (number + 1))
        batch = Batch(dataset.train.images[rows], dataset.train.labels[rows], np.ones(64, np.float32))
        state, metrics = step(hyper, state, batch)
        losses.append(float(metrics.loss) / 64)
    return losses, state


@pytest.mark.parametrize(("name", "steps"), some([("lenet", 15), ("resnet20", 20)], ("lenet", 15)))
def test_losses_are_those_of_float32_to_the_digits_of_bfloat16(name, steps):
    (losses, state), (exact, _) = (trained(precision, name, steps) for precision in ("bfloat16", "float32"))
    assert losses != exact
    np.testing.assert_allclose(losses, exact, rtol=0.05)
    assert exact[-1] < 0.7 * exact[0]
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.batch_stats, state.metrics))} == {
        "float32"
    }
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.opt_state)} <= {"float32", "int32"}


def test_small_updates_are_not_lost():
    """A weight of 1 to which bfloat16 cannot add 1e-3 moves by a thousandth a step."""

    def apply(variables, images, **_):
        logits = images.reshape(len(images), -1) * variables["params"]["scale"]
        return logits, {}

    applied = in_precision(apply, "bfloat16")
    scale = jnp.ones(())
    for _ in range(4):
        gradient = jax.grad(lambda scale: applied({"params": {"scale": scale}}, jnp.ones((1, 1)))[0].sum())(scale)
        assert gradient.dtype == jnp.float32 and float(gradient) == 1
        scale = scale - 1e-3 * gradient
    assert float(scale) == pytest.approx(0.996, abs=1e-6)


def test_evaluation_is_in_the_precision_of_the_training():
    network = models.build(ModelConfig("lenet"), (32, 32, 1), 10)
    config = TrainConfig(epochs=1, batch_size=4, precision="bfloat16")
    state = initial_state(network, config, Hyperparams(), (32, 32, 1))
    portion = Portion(
        jnp.zeros((4, 32, 32, 1), jnp.uint8), jnp.zeros(4, jnp.int32), jnp.arange(4)[None], jnp.ones((1, 4)), 0
    )
    evaluate = make_evaluate(network, config, make_preprocess(np.zeros((32, 32, 1)), 64.0))
    text = str(jax.make_jaxpr(evaluate)(Hyperparams(), state, portion, 0, 1))
    assert "bf16[4,28,28" in text or "bf16[4,32,32" in text
