"""The base of the study of architectures: half of the photographs' patches and few epochs, since it trains a dozen."""

import dataclasses

from cnnjax import cli
from cnnjax.config import DataConfig, PhotosConfig, TrainConfig

CONFIG = dataclasses.replace(
    cli.load_config("photos"), data=DataConfig(photos=PhotosConfig(train_patches=2000)), train=TrainConfig(epochs=8)
)
