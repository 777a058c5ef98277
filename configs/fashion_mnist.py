"""Fashion-MNIST (Xiao et al. 2017): 70,000 grey articles of clothing of 28x28 pixels, by a LeNet."""

from cnnjax.config import Config, DataConfig, Hyperparams, ModelConfig, TrainConfig

CONFIG = Config(
    data=DataConfig(name="fashion_mnist"),
    model=ModelConfig(name="lenet", widths=(32, 64), dense=(256,), init="small_first"),
    train=TrainConfig(epochs=10, onednn=True),
    hyper=Hyperparams(shift=1.0),
)
