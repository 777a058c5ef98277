"""Ten photographs, told apart by patches of 32x32. About three minutes on two cores.

The colour jitter is strong on purpose: without it the network reads the average colour of a patch and the first-layer
filters stay plain blobs.
"""

from cnnjax.config import Config, Hyperparams, TrainConfig

CONFIG = Config(
    train=TrainConfig(onednn=True), hyper=Hyperparams(learning_rate=0.02, contrast=0.4, saturation=0.6, tint=0.5)
)
