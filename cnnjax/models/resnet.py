"""Residual networks (He et al. 2016): torchvision's, with the stride in a bottleneck's 3×3 convolution, and CIFAR's."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from cnnjax.config import ModelConfig
from cnnjax.models.building import KnownNetwork, Layers, known_network, scaled


def resnet18(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """11,689,512 parameters for 1000 classes."""
    return known_network(_body, config, num_classes, depths=(2, 2, 2, 2), bottleneck=False)


def resnet50(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """25,557,032 parameters for 1000 classes."""
    return known_network(_body, config, num_classes, depths=(3, 4, 6, 3), bottleneck=True)


def resnet20(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """The paper's for 32×32 (section 4.2): 269,722 parameters for 10 classes.

    Shortcuts have no parameters ("option A"): every second row and column, and maps of zeros before and behind. Names,
    and that half of the zeros go to each side, are those of Y. Idelbayev's published weights.
    """
    return known_network(_small_body, config, num_classes, blocks=3)


def _body(layers: Layers, x: Array, *, depths, bottleneck: bool, width: float, classes: int) -> Array:
    x = layers.conv("conv1", x, scaled(width, 64), 7, strides=2, padding=3, bias=False)
    x = layers.relu("conv1", layers.batch_norm("bn1", x))
    x = layers.max_pool("pool1", x, 3, 2, padding=1)
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            strides = 2 if stage > 1 and block == 0 else 1
            name, channels = f"layer{stage}.{block}", scaled(width, 64 * 2 ** (stage - 1))
            if bottleneck:
                x = _bottleneck(layers, name, x, channels, strides)
            else:
                x = _basic_block(layers, name, x, channels, strides, _projected)
    return layers.dense("fc", layers.keep("avgpool", x.mean((1, 2))), classes)


def _small_body(layers: Layers, x: Array, *, blocks: int, width: float, classes: int) -> Array:
    x = layers.conv("conv1", x, scaled(width, 16), 3, padding=1, bias=False)
    x = layers.relu("conv1", layers.batch_norm("bn1", x))
    for stage, channels in enumerate((16, 32, 64), 1):
        for block in range(blocks):
            strides = 2 if stage > 1 and block == 0 else 1
            x = _basic_block(layers, f"layer{stage}.{block}", x, scaled(width, channels), strides, _padded)
    return layers.dense("linear", layers.keep("avgpool", x.mean((1, 2))), classes)


def _basic_block(
    layers: Layers, name: str, x: Array, width: int, strides: int, shortcut: Callable[..., Array]
) -> Array:
    y = layers.conv(f"{name}.conv1", x, width, 3, strides=strides, padding=1, bias=False)
    y = layers.relu(f"{name}.conv1", layers.batch_norm(f"{name}.bn1", y))
    y = layers.conv(f"{name}.conv2", y, width, 3, padding=1, bias=False)
    y = layers.batch_norm(f"{name}.bn2", y)
    return layers.relu(name, y + shortcut(layers, name, x, width, strides))


def _bottleneck(layers: Layers, name: str, x: Array, width: int, strides: int) -> Array:
    y = layers.conv(f"{name}.conv1", x, width, 1, bias=False)
    y = layers.relu(f"{name}.conv1", layers.batch_norm(f"{name}.bn1", y))
    y = layers.conv(f"{name}.conv2", y, width, 3, strides=strides, padding=1, bias=False)
    y = layers.relu(f"{name}.conv2", layers.batch_norm(f"{name}.bn2", y))
    y = layers.conv(f"{name}.conv3", y, 4 * width, 1, bias=False)
    y = layers.batch_norm(f"{name}.bn3", y)
    return layers.relu(name, y + _projected(layers, name, x, 4 * width, strides))


def _projected(layers: Layers, name: str, x: Array, width: int, strides: int) -> Array:
    if x.shape[-1] == width and strides == 1:
        return x
    x = layers.conv(f"{name}.downsample.0", x, width, 1, strides=strides, bias=False)
    return layers.batch_norm(f"{name}.downsample.1", x)


def _padded(layers: Layers, name: str, x: Array, width: int, strides: int) -> Array:
    more = width - x.shape[-1]
    return jnp.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
