"""A training step whose batch is divided among devices is that of one device, batch normalization included."""

import itertools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cnnjax import models, ops
from cnnjax.config import Hyperparams, ModelConfig, TrainConfig
from cnnjax.data import Batch
from cnnjax.models.building import KnownNetwork
from cnnjax.train.step import initial_state, make_preprocess, make_train_step
from tests.cases import some

BATCH = 16
CONFIG = TrainConfig(epochs=1, batch_size=BATCH)
HYPER = Hyperparams(
    filter_rms=float("inf"), learning_rate=0.1, weight_decay=0.0, dropout_rate=0.0, shift=1.0, contrast=0.2
)
SHAPE = (16, 16, 3)


def residual(layers, x):
    """As a block of resnet20, written as the known networks are."""
    x = layers.relu("bn1", layers.batch_norm("bn1", layers.conv("conv1", x, 4, 3, padding=1, bias=False)))
    beside = layers.batch_norm("bn2", layers.conv("conv2", x, 4, 3, padding=1, bias=False))
    return layers.dense("fc", layers.relu("relu", x + beside).mean((1, 2)), 10)


def built(name):
    known = {"resnet20": lambda: models.build(ModelConfig("resnet20", width=0.25), SHAPE, 10)}
    return known.get(name, lambda: KnownNetwork(residual))()


def furthest(name, count):
    """How far all that a step changes on eight devices is from that on one, as a share of the largest in each array.

    That is loss and errors, weights, running statistics, and the momentum, which after one step is the gradient; for a
    mesh with an Auto axis, as our own, and for one with an Explicit axis.

    Args:
        count: images in the batch of 16, which is filled up behind them.
    """
    network = built(name)
    preprocess = make_preprocess(np.full(SHAPE, 128.0, np.float32), 64.0)
    step = ops.jit(make_train_step(network, CONFIG, preprocess, 2))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (BATCH, *SHAPE), np.uint8)
    labels = generator.integers(0, 10, BATCH).astype(np.int32)
    batch = Batch(images, labels, (np.arange(BATCH) < count).astype(np.float32))
    state = ops.jit(lambda: initial_state(network, CONFIG, HYPER, SHAPE))()

    def most(ours, theirs):
        ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
        return float(np.abs(ours - theirs).max() / (np.abs(theirs).max() + 1e-3))

    wanted, theirs = step(HYPER, state, batch)
    distances = {}
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        divided = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        everywhere = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        found, metrics = step(HYPER, everywhere, divided)
        assert metrics.loss.sharding.device_set == set(jax.devices()) and metrics.count == count
        for part, *pair in (("metrics", metrics, theirs), *zip(found._fields, found, wanted, strict=True)):
            distances[f"{kind.name} {part}"] = max(map(most, *map(jax.tree.leaves, pair)))
    return distances


@pytest.mark.usefixtures("only_on_cpu")
@pytest.mark.parametrize(
    ("name", "count"), some(itertools.product(("a block", "resnet20"), (BATCH, 11)), ("a block", 11))
)
def test_batch_normalization_on_eight_devices_is_that_of_one(name, count):
    code = f"import json; from tests.train import test_devices as of; print(json.dumps(of.furthest({name!r}, {count})))"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert max(found.values()) < 1e-5, found
