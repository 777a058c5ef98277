"""CIFAR-10 (Krizhevsky 2009): 60,000 colour photographs of 32x32 pixels, by the small ZFNet."""

from cnnjax.config import Config, DataConfig, Hyperparams, TrainConfig

CONFIG = Config(
    data=DataConfig(name="cifar10"),
    train=TrainConfig(onednn=True),
    hyper=Hyperparams(shift=3.0, contrast=0.2, brightness=0.2, weight_decay=1e-3),
)
