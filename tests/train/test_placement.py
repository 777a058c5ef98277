"""A training over several devices: the losses of one device, and no sums between devices but those that must be."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.config import Config, DataConfig, Hyperparams, ModelConfig, TrainConfig
from cnnjax.data import checked_dataset
from cnnjax.errors import InputError
from cnnjax.train import placement
from cnnjax.train.feed import Streamed, portions
from cnnjax.train.run import build
from cnnjax.train.step import make_order, make_preprocess
from cnnjax.train.training import compiled, evaluated

COUNT, BATCH, STEPS = 40, 16, 20  # the last batch of each epoch is half padding
CONFIG = Config(
    DataConfig(),
    ModelConfig("lenet", widths=(4, 4), filters=(3, 3), paddings=(1, 1), dense=(8,), norm="batch"),
    TrainConfig(epochs=7, batch_size=BATCH, keep_epochs=()),
    Hyperparams(shift=1.0, contrast=0.2, dropout_rate=0.4),
)


def made():
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (COUNT, 8, 8, 1), np.uint8), np.arange(COUNT) % 3
    return checked_dataset("made", ("a", "b", "c"), train=(images, labels), test=(images[:9], labels[:9]))


def trained(devices, is_streamed, parts=1):
    """The loss so far in the epoch after each step, the test loss, and the compiled chunk."""
    dataset, mesh = made(), placement.make_mesh(devices)
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, accumulate=parts))
    preprocess = make_preprocess(np.full((8, 8, 1), 128.0), 64.0)
    programs = compiled(config, build(config, dataset), preprocess, dataset, mesh, is_streamed)
    hyper = programs.place(jax.tree.map(jnp.asarray, CONFIG.hyper))
    feed, test, _ = programs.feeds()
    if is_streamed:
        order = jax.jit(make_order(CONFIG.train, COUNT))
        feed = Streamed(dataset.train, BATCH, order, mesh, portion_bytes=2 * BATCH * 64)
    state, losses = programs.init(hyper), []
    text = programs.chunk.lower(hyper, state, feed.portion(hyper, 0)[0], 0, 1).compile().as_text()
    for step in range(STEPS):
        for part in portions(feed, hyper, step, step + 1):
            state = programs.chunk(hyper, state, *part)
        losses.append(float(state.metrics.loss))
    return losses, float(evaluated(programs.evaluate, test, hyper, state).loss), text


def collectives(text):
    """How often each kind is in a compiled program."""
    found = re.findall(r"= .*? (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text)
    return {kind: found.count(kind) for kind in set(found)}


@pytest.fixture(scope="module")
def on_eight():
    code = """
import json
from tests.train.test_placement import collectives, trained
found = {}
for devices, is_streamed in ((1, False), (2, False), (4, False), (8, False), (8, True)):
    losses, test, text = trained(devices, is_streamed)
    found[f"{devices} {is_streamed}"] = [losses, test, collectives(text)]
for devices in (1, 8):
    losses, test, text = trained(devices, False, 2)
    found[f"{devices} in parts"] = [losses, test, collectives(text)]
print(json.dumps(found))
"""
    settings = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("of", ["2 False", "4 False", "8 False", "8 True"])
def test_losses_are_those_of_one_device(on_eight, of):
    """Batch normalization over all images of the batch, dropout, augmentation and padding included."""
    np.testing.assert_allclose(on_eight[of][0], on_eight["1 False"][0], rtol=1e-5)
    assert on_eight[of][1] == pytest.approx(on_eight["1 False"][1], rel=1e-5)


def test_batches_in_parts_are_those_of_one_device(on_eight):
    """Each part has images of all devices, so that its statistics are the same ones."""
    np.testing.assert_allclose(on_eight["8 in parts"][0], on_eight["1 in parts"][0], rtol=1e-5)
    assert on_eight["1 in parts"][0] != on_eight["1 False"][0]


def test_devices_send_each_other_sums_and_nothing_else(on_eight):
    assert on_eight["1 False"][2] == {}
    for of in ("2 False", "8 False", "8 True", "8 in parts"):
        assert set(on_eight[of][2]) == {"all-reduce"}


def test_a_batch_that_the_devices_do_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    with pytest.raises(InputError, match="a multiple of the 4 devices, as 8 or 12 is, got 10"):
        placement.mesh_for(10, 4)
    with pytest.raises(InputError, match=r"--devices must be between 1 and the 4 that JAX has here, got 5"):
        placement.mesh_for(10, 5)
