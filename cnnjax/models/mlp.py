"""A multilayer perceptron: what a convolutional network is compared with, and what is scanned to make one."""

from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from cnnjax.models.convnet import ConvNet, convnet


def mlp(config: ModelConfig, num_classes: int) -> ConvNet:
    """Two hidden layers of 256 units.

    Raises:
        InputError: for a setting of convolutions, which this network has not.
    """
    names = ("widths", "filters", "strides", "paddings", "pools", "norm")
    given = [f"model.{name}" for name in names if getattr(config, name) is not None]
    if given:
        raise InputError(f"{', '.join(given)} must be None for mlp, which has no convolution")
    return convnet(config, num_classes, convolutions=(), dense=(256, 256), rounding="exact", init="he")
