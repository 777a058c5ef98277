"""A multilayer perceptron: what a convolutional network is compared with, and what is scanned to make one."""

from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from cnnjax.models.convnet import ConvNet, convnet


def mlp(config: ModelConfig, num_classes: int) -> ConvNet:
    """Two hidden layers of 256 units.

    Raises:
        InputError: for a setting of convolutions, which this network has not.
    """
    for name in ("widths", "filters", "strides", "paddings", "pools", "norm"):
        if getattr(config, name) is not None:
            raise InputError(
                f"model.{name} must be None for mlp, which has no convolution, got {getattr(config, name)}"
            )
    return convnet(config, num_classes, convolutions=(), dense=(256, 256), rounding="exact", init="he")
