"""Members of a loop of one's own, beside a loop in NumPy and beside the project's own step."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.config import Hyperparams, ModelConfig
from cnnjax.data.batches import Batch, epoch_order
from cnnjax.data.scale import scale_of
from cnnjax.errors import InputError
from cnnjax.sweep.own_loop import train_members
from cnnjax.train import run
from cnnjax.train.step import initial_state, make_preprocess, make_train_step
from tests.sweep import sweeps

RATES = np.array([0.01, 0.03, 0.1], np.float32)
START = np.arange(3, dtype=np.float32)
DECAY = 0.5


def split():
    return sweeps.dataset().train  # 32 images of 8x8


def init(hyper):
    return {"weights": jnp.full((64,), hyper["start"]), "seen": jnp.zeros(())}


def step(hyper, state, batch):
    """Least squares of the label in the pixels, by gradient descent with weight decay."""
    x = batch.images.reshape(len(batch.images), -1).astype(jnp.float32) / 255 / 64
    wrong = (x @ state["weights"] - batch.labels) * batch.mask
    gradient = x.T @ wrong / batch.mask.sum() + hyper["decay"] * state["weights"]
    weights = state["weights"] - hyper["rate"] * gradient
    return {"weights": weights, "seen": state["seen"] + batch.mask.sum()}, {"loss": jnp.sum(wrong**2)}


def in_numpy(rate, start, batch_size, epochs, seed):
    images, labels = split().images.reshape(32, -1) / np.float64(255) / 64, split().labels
    weights, losses = np.full(64, start, np.float64), []
    for epoch in range(epochs):
        for row, mask in zip(*map(np.asarray, epoch_order(seed, epoch, 32, batch_size)), strict=True):
            x, y = images[row][mask > 0], labels[row][mask > 0]
            wrong = x @ weights - y
            losses.append(np.sum(wrong**2))
            weights = weights - rate * (x.T @ wrong / len(x) + DECAY * weights)
    return weights, losses


def test_each_member_is_a_loop_in_numpy():
    told = []
    hyper = {"rate": RATES, "start": START, "decay": DECAY}
    states, history = train_members(
        init, step, hyper, split(), batch_size=12, epochs=2, seed=5, report=lambda *of: told.append(of)
    )
    assert history["loss"].shape == (3, 6)  # 3 steps an epoch
    assert np.array_equal(states["seen"], [64, 64, 64])  # padding is masked
    for member, (rate, start) in enumerate(zip(RATES, START, strict=True)):
        weights, losses = in_numpy(rate, start, 12, 2, 5)
        np.testing.assert_allclose(states["weights"][member], weights, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(history["loss"][member], losses, rtol=1e-5)
    assert told == [("3 members", 1, 2), ("3 members", 2, 2)]


def test_a_member_that_diverges_harms_no_other():
    def trained(rates):
        hyper = {"rate": np.array(rates, np.float32), "start": 1.0, "decay": DECAY}
        return train_members(init, step, hyper, split(), batch_size=32, epochs=4).states["weights"]

    beside_a_wild_one = trained([0.1, 1e30])
    assert not np.isfinite(beside_a_wild_one[1]).any()
    np.testing.assert_array_equal(beside_a_wild_one[0], trained([0.1, 0.2])[0])


@pytest.mark.long
def test_the_step_of_the_project_is_such_a_step():
    config = dataclasses.replace(sweeps.CONFIG, model=ModelConfig("mlp", dense=(4,)))
    dataset = sweeps.dataset()
    network = run.build(config, dataset)
    made = make_train_step(network, config.train, make_preprocess(*scale_of(config.data, dataset)), 3)

    def begun(hyper):
        return initial_state(network, config.train, hyper, dataset.image_shape)

    members = [Hyperparams(learning_rate=rate, seed=seed) for rate, seed in ((0.01, 0), (0.1, 1))]
    stacked = jax.tree.map(lambda *leaves: np.array(leaves), *members)
    states, history = train_members(begun, made, stacked, dataset.train, batch_size=12, epochs=1)
    for number, member in enumerate(members):
        state, alone = begun(member), jax.jit(made)
        for rows, mask in zip(*epoch_order(0, 0, 32, 12), strict=True):
            state, metrics = alone(member, state, Batch(dataset.train.images[rows], dataset.train.labels[rows], mask))
        of_member = jax.tree.map(lambda leaf, number=number: leaf[number], states.params)
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5), of_member, state.params
        )
        np.testing.assert_allclose(history.loss[number, -1], metrics.loss, rtol=1e-4)


ON_DEVICES = """
import sys
import jax
import numpy as np
from tests.sweep import test_own_loop as own
rates = np.linspace(0.01, 0.04, 4, dtype=np.float32)
trained = own.train_members(own.init, own.constant, {"rate": rates, "start": 1.0}, own.split(), batch_size=12, epochs=2)
assert jax.device_count() == 3 and len(trained.states["weights"].sharding.device_set) == 2
np.savez(sys.argv[1], weights=trained.states["weights"], loss=trained.history["loss"])
"""


def constant(hyper, state, batch):
    """A part of the state, and of the decay, is the same in all members."""
    new, kept = step(hyper | {"decay": DECAY}, state, batch)
    return new | {"seen": jnp.ones(())}, kept


@pytest.mark.usefixtures("only_on_cpu")
@pytest.mark.long
def test_members_are_divided_among_the_devices_that_divide_them(tmp_path):
    command = [sys.executable, "-c", ON_DEVICES, str(tmp_path / "found.npz")]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    hyper = {"rate": np.linspace(0.01, 0.04, 4, dtype=np.float32), "start": 1.0}
    states, history = train_members(init, constant, hyper, split(), batch_size=12, epochs=2)
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["weights"], states["weights"], rtol=1e-5)
        np.testing.assert_allclose(found["loss"], history["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("hyper", "options", "message"),
    [
        ({"rate": 0.1}, {}, "hyper must have an array with an entry a member, got numbers only"),
        (
            {"rate": RATES, "start": START[:2]}, {},
            r"hyper must have one entry a member in each of its arrays, got 3 at \['rate'\], 2 at \['start'\]",
        ),
        ({"rate": RATES[:0]}, {}, r"hyper must have one entry a member in each of its arrays, got 0 at \['rate'\]"),
        ({"rate": RATES}, {"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"rate": RATES}, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(hyper, options, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        train_members(init, step, hyper, split(), **{"batch_size": 8, "epochs": 1} | options)
