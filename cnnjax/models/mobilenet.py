"""MobileNetV2 (Sandler et al. 2018) as torchvision has it: bottlenecks whose wide middle is convolved map by map."""

from jax import Array

from cnnjax.config import ModelConfig
from cnnjax.models.building import KnownNetwork, Layers, known_network

# expansion, maps, blocks, stride of the first of them (table 2)
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """3,504,872 parameters for 1000 classes.

    A `width` is the paper's multiplier: widths are rounded to multiples of 8, and below 1 the last convolution keeps
    its 1280 maps.
    """
    return known_network(_body, config, num_classes)


def _body(layers: Layers, x: Array, *, width: float, classes: int) -> Array:
    x = _convolution(layers, "features.0", x, _eights(width, 32), 3, strides=2)
    place = 1
    for expansion, channels, blocks, first in _STAGES:
        for block in range(blocks):
            strides = first if block == 0 else 1
            x = _bottleneck(layers, f"features.{place}", x, expansion, _eights(width, channels), strides)
            place += 1
    x = _convolution(layers, f"features.{place}", x, _eights(max(1.0, width), 1280), 1)
    return layers.dense("classifier.1", layers.dropout(layers.keep("avgpool", x.mean((1, 2)))), classes)


def _bottleneck(layers: Layers, name: str, x: Array, expansion: int, channels: int, strides: int) -> Array:
    y, wide, place = x, expansion * x.shape[-1], 0
    if expansion > 1:
        y = _convolution(layers, f"{name}.conv.0", y, wide, 1)
        place = 1
    y = _convolution(layers, f"{name}.conv.{place}", y, wide, 3, strides=strides, groups=wide)
    y = layers.conv(f"{name}.conv.{place + 1}", y, channels, 1, bias=False)
    y = layers.batch_norm(f"{name}.conv.{place + 2}", y)
    return layers.keep(name, x + y if strides == 1 and x.shape[-1] == channels else y)


def _convolution(layers: Layers, name: str, x: Array, channels: int, window: int, **options) -> Array:
    x = layers.conv(f"{name}.0", x, channels, window, padding=window // 2, bias=False, **options)
    return layers.relu(name, layers.batch_norm(f"{name}.1", x), most=6.0)


def _eights(width: float, channels: int) -> int:
    """`channels` times `width` as a multiple of 8, at least 8 and not below it by more than a tenth."""
    nearest = max(8, int(width * channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width * channels else nearest
