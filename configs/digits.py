"""Handwritten digits of 8x8 pixels (scikit-learn): half a minute on two cores."""

from cnnjax.config import Config, DataConfig, Hyperparams, ModelConfig

CONFIG = Config(
    data=DataConfig(name="digits"),
    model=ModelConfig(name="lenet", widths=(16, 32), filters=(3, 3), paddings=(1, 1), dense=(64,), init="small_first"),
    hyper=Hyperparams(flip=0.0, shift=1.0),
)
