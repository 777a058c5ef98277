"""Densely connected networks (Huang et al. 2017) as torchvision has them: a layer sees all before it in its block."""

import jax.numpy as jnp
from jax import Array

from cnnjax.config import ModelConfig
from cnnjax.models.building import KnownNetwork, Layers, known_network, scaled


def densenet121(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """7,978,856 parameters for 1000 classes.

    Files of before 2018 call the layers' parts `norm.1`, `conv.1`, `norm.2`, `conv.2` and not `norm1`, ….
    """
    return known_network(_body, config, num_classes, depths=(6, 12, 24, 16))


def _body(layers: Layers, x: Array, *, width: float, classes: int, depths: tuple[int, ...]) -> Array:
    growth = scaled(width, 32)
    x = layers.conv("features.conv0", x, scaled(width, 64), 7, strides=2, padding=3, bias=False)
    x = layers.relu("relu0", layers.batch_norm("features.norm0", x))
    x = layers.max_pool("pool0", x, 3, 2, padding=1)
    for number, depth in enumerate(depths, 1):
        block = f"denseblock{number}"
        for place in range(1, depth + 1):
            x = jnp.concatenate([x, _layer(layers, f"{block}.denselayer{place}", x, growth)], axis=-1)
        layers.keep(block, x)
        if number < len(depths):
            x = _transition(layers, f"transition{number}", x)
    x = layers.relu("relu5", layers.batch_norm("features.norm5", x))
    return layers.dense("classifier", x.mean((1, 2)), classes)


def _layer(layers: Layers, name: str, x: Array, growth: int) -> Array:
    x = layers.relu(f"{name}.relu1", layers.batch_norm(f"features.{name}.norm1", x))
    x = layers.conv(f"features.{name}.conv1", x, 4 * growth, 1, bias=False)
    x = layers.relu(f"{name}.relu2", layers.batch_norm(f"features.{name}.norm2", x))
    return layers.keep(name, layers.conv(f"features.{name}.conv2", x, growth, 3, padding=1, bias=False))


def _transition(layers: Layers, name: str, x: Array) -> Array:
    channels = x.shape[-1] // 2
    x = layers.relu(f"{name}.relu", layers.batch_norm(f"features.{name}.norm", x))
    x = layers.conv(f"features.{name}.conv", x, channels, 1, bias=False)
    return layers.avg_pool(name, x, 2, 2)
