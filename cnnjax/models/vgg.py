"""VGG (Simonyan & Zisserman 2015): configurations A (vgg11) and D (vgg16), as torchvision has them."""

from jax import Array

from cnnjax import ops
from cnnjax.config import ModelConfig
from cnnjax.models.building import KnownNetwork, Layers, flattened, known_network, scaled

_WIDTHS = (64, 128, 256, 512, 512)
_VGG11, _VGG16 = (1, 1, 2, 2, 2), (2, 2, 3, 3, 3)  # convolutions before each pool


def vgg11(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """132,863,336 parameters for 1000 classes."""
    return known_network(_body, config, num_classes, depths=_VGG11, normalized=False)


def vgg11_bn(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """With batch normalization before every ReLU of a convolution: 132,868,840 parameters for 1000 classes."""
    return known_network(_body, config, num_classes, depths=_VGG11, normalized=True)


def vgg16(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """138,357,544 parameters for 1000 classes."""
    return known_network(_body, config, num_classes, depths=_VGG16, normalized=False)


def vgg16_bn(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """With batch normalization before every ReLU of a convolution: 138,365,992 parameters for 1000 classes."""
    return known_network(_body, config, num_classes, depths=_VGG16, normalized=True)


def _body(layers: Layers, x: Array, *, width: float, classes: int, depths: tuple[int, ...], normalized: bool) -> Array:
    place = 0  # in torchvision's `features`, where ReLUs and pools count too
    for stage, depth in enumerate(depths, 1):
        for number in range(1, depth + 1):
            x = layers.conv(f"features.{place}", x, scaled(width, _WIDTHS[stage - 1]), 3, padding=1)
            if normalized:
                x = layers.batch_norm(f"features.{place + 1}", x)
            x = layers.relu(f"conv{stage}_{number}", x)
            place += 3 if normalized else 2
        x = layers.max_pool(f"pool{stage}", x, 2, 2)
        place += 1
    x = flattened(layers.keep("avgpool", ops.adaptive_avg_pool(x, 7)))
    x = layers.relu("fc6", layers.dense("classifier.0", x, scaled(width, 4096)))
    x = layers.relu("fc7", layers.dense("classifier.3", layers.dropout(x), scaled(width, 4096)))
    return layers.dense("classifier.6", layers.dropout(x), classes)
