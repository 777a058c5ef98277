"""A small run, trained once a session (`whole`, in conftest.py), and what its tests share."""

import jax
import numpy as np

from cnnjax.config import Config, DataConfig, Hyperparams, ModelConfig, TrainConfig

CONFIG = Config(
    data=DataConfig(name="digits"),
    model=ModelConfig("lenet", widths=(4, 8), filters=(3, 3), paddings=(1, 1), dense=(16,)),
    train=TrainConfig(epochs=2, batch_size=64, save_every_seconds=1e6),
    hyper=Hyperparams(dropout_rate=0.2, shift=1.0),
)
# What JSON can hold besides what stands there.
VALUES = (None, True, 0, -1, 10**30, 1.5, float("nan"), "", "x\ny\ud800", [], [[1]], {}, {"a": {"b": []}})


def same(one, other):
    """Every array bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)
