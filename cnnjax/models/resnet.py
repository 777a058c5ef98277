"""Residual networks (He et al. 2016) as torchvision has them: in bottlenecks the 3×3 convolution has the stride."""

from jax import Array

from cnnjax.config import ModelConfig
from cnnjax.models.building import KnownNetwork, Layers, known_network, scaled


def resnet18(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """11,689,512 parameters for 1000 classes."""
    return known_network(_body, config, num_classes, depths=(2, 2, 2, 2), bottleneck=False)


def resnet50(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """25,557,032 parameters for 1000 classes."""
    return known_network(_body, config, num_classes, depths=(3, 4, 6, 3), bottleneck=True)


def _body(layers: Layers, x: Array, *, depths, bottleneck: bool, width: float, classes: int) -> Array:
    x = layers.conv("conv1", x, scaled(width, 64), 7, strides=2, padding=3, bias=False)
    x = layers.relu("conv1", layers.batch_norm("bn1", x))
    x = layers.max_pool("pool1", x, 3, 2, padding=1)
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            strides = 2 if stage > 1 and block == 0 else 1
            step = _bottleneck if bottleneck else _basic_block
            x = step(layers, f"layer{stage}.{block}", x, scaled(width, 64 * 2 ** (stage - 1)), strides)
    return layers.dense("fc", layers.keep("avgpool", x.mean((1, 2))), classes)


def _basic_block(layers: Layers, name: str, x: Array, width: int, strides: int) -> Array:
    y = layers.conv(f"{name}.conv1", x, width, 3, strides=strides, padding=1, bias=False)
    y = layers.relu(f"{name}.conv1", layers.batch_norm(f"{name}.bn1", y))
    y = layers.conv(f"{name}.conv2", y, width, 3, padding=1, bias=False)
    y = layers.batch_norm(f"{name}.bn2", y)
    return layers.relu(name, y + _shortcut(layers, name, x, width, strides))


def _bottleneck(layers: Layers, name: str, x: Array, width: int, strides: int) -> Array:
    y = layers.conv(f"{name}.conv1", x, width, 1, bias=False)
    y = layers.relu(f"{name}.conv1", layers.batch_norm(f"{name}.bn1", y))
    y = layers.conv(f"{name}.conv2", y, width, 3, strides=strides, padding=1, bias=False)
    y = layers.relu(f"{name}.conv2", layers.batch_norm(f"{name}.bn2", y))
    y = layers.conv(f"{name}.conv3", y, 4 * width, 1, bias=False)
    y = layers.batch_norm(f"{name}.bn3", y)
    return layers.relu(name, y + _shortcut(layers, name, x, 4 * width, strides))


def _shortcut(layers: Layers, name: str, x: Array, width: int, strides: int) -> Array:
    if x.shape[-1] == width and strides == 1:
        return x
    x = layers.conv(f"{name}.downsample.0", x, width, 1, strides=strides, bias=False)
    return layers.batch_norm(f"{name}.downsample.1", x)
