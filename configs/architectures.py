"""The base of the study of architectures: half of the photographs' patches and few epochs, since it trains a dozen."""

import dataclasses

from cnnjax.config import DataConfig, PhotosConfig, TrainConfig
from configs.photos import CONFIG as PHOTOS

CONFIG = dataclasses.replace(
    PHOTOS, data=DataConfig(photos=PhotosConfig(train_patches=2000)), train=TrainConfig(epochs=8)
)
