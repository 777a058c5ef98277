"""SqueezeNet 1.1 (Iandola et al. 2016) as torchvision has it: few maps, then many from 1×1 and from 3×3 filters."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from cnnjax.config import ModelConfig
from cnnjax.models.building import KnownNetwork, Layers, known_network, scaled

_SQUEEZED = (16, 16, 32, 32, 48, 48, 64, 64)  # maps of each module; its expansions have four times as many each


def squeezenet1_1(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """1,235,496 parameters for 1000 classes; the last convolution has a map for each class."""
    return known_network(_body, config, num_classes)


def _body(layers: Layers, x: Array, *, width: float, classes: int) -> Array:
    x = layers.relu("features.0", layers.conv("features.0", x, scaled(width, 64), 3, strides=2))
    x = layers.max_pool("features.2", x, 3, 2, rounding="ceil")
    place = 3
    for module, squeezed in enumerate(_SQUEEZED):
        if module in (2, 4):
            x = layers.max_pool(f"features.{place}", x, 3, 2, rounding="ceil")
            place += 1
        x = _fire(layers, f"features.{place}", x, scaled(width, squeezed), scaled(width, 4 * squeezed))
        place += 1
    # As in torchvision, small at first: a class whose ReLU is 0 for all images has no gradient any more.
    small = nn.initializers.normal(0.01)
    x = layers.relu("classifier.1", layers.conv("classifier.1", layers.dropout(x), classes, 1, kernel_init=small))
    return x.mean((1, 2))


def _fire(layers: Layers, name: str, x: Array, squeezed: int, expanded: int) -> Array:
    x = layers.relu(f"{name}.squeeze", layers.conv(f"{name}.squeeze", x, squeezed, 1))
    small = layers.relu(f"{name}.expand1x1", layers.conv(f"{name}.expand1x1", x, expanded, 1))
    large = layers.relu(f"{name}.expand3x3", layers.conv(f"{name}.expand3x3", x, expanded, 3, padding=1))
    return layers.keep(name, jnp.concatenate([small, large], axis=-1))
