"""Photographs of ten kinds of objects, 64×64, told apart: the main job. About two minutes on two cores."""

from cnnjax.config import Config, DataConfig, Hyperparams, TrainConfig

CONFIG = Config(
    data=DataConfig(name="objects", validation_fraction=0.1),
    train=TrainConfig(batch_size=16, onednn=True),
    hyper=Hyperparams(learning_rate=0.012, weight_decay=2e-3, contrast=0.4, saturation=1.0, tint=0.5, shift=6),
)
