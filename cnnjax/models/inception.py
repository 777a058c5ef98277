"""GoogLeNet (Szegedy et al. 2014) and Inception v3 (Szegedy et al. 2015) as torchvision has them.

Both without their auxiliary classifiers, which only a training uses, and without torchvision's `transform_input`, which
turns images of other means and deviations into those that the networks expect.
"""

from typing import NamedTuple

from jax import Array

from cnnjax.config import ModelConfig
from cnnjax.geometry import Ints, Padding
from cnnjax.models.building import KnownNetwork, Layers, known_network, scaled

EPSILON = 1e-3  # of every batch normalization


class Unit(NamedTuple):
    """Convolution, batch normalization and ReLU; zeros around keep the size where the stride is 1."""

    name: str
    width: int
    window: Ints
    strides: int = 1


class Max(NamedTuple):
    """The maximum of each 3×3 window; zeros around keep the size where the stride is 1."""

    name: str
    strides: int


class Mean(NamedTuple):
    """The mean of each 3×3 window, with the zeros around that keep the size counted."""

    name: str


class Split(NamedTuple):
    """Units of the same input side by side."""

    name: str
    units: tuple[Unit, ...]


Branch = tuple[Unit | Max | Mean | Split, ...]


def googlenet(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """6,624,904 parameters for 1000 classes."""
    return known_network(_googlenet, config, num_classes)


def inception_v3(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """23,834,568 parameters for 1000 classes; images of at least 75×75 pixels, published for 299×299."""
    return known_network(_inception_v3, config, num_classes)


def _googlenet(layers: Layers, x: Array, *, width: float, classes: int) -> Array:
    def module(name: str, x: Array, one: int, reduced: int, three: int, also_reduced: int, also: int, pooled: int):
        branches = (
            (Unit("branch1", one, 1),),
            (Unit("branch2.0", reduced, 1), Unit("branch2.1", three, 3)),
            (Unit("branch3.0", also_reduced, 1), Unit("branch3.1", also, 3)),  # 5×5 in the paper
            (Max("branch4.0", 1), Unit("branch4.1", pooled, 1)),
        )
        return _side_by_side(layers, f"inception{name}", x, width, branches)

    x = _unit(layers, "conv1", x, scaled(width, 64), 7, 2, 3)
    x = layers.max_pool("maxpool1", x, 3, 2, rounding="ceil")
    x = _unit(layers, "conv2", x, scaled(width, 64), 1)
    x = _unit(layers, "conv3", x, scaled(width, 192), 3, padding=1)
    x = layers.max_pool("maxpool2", x, 3, 2, rounding="ceil")
    x = module("3a", x, 64, 96, 128, 16, 32, 32)
    x = module("3b", x, 128, 128, 192, 32, 96, 64)
    x = layers.max_pool("maxpool3", x, 3, 2, rounding="ceil")
    x = module("4a", x, 192, 96, 208, 16, 48, 64)
    x = module("4b", x, 160, 112, 224, 24, 64, 64)
    x = module("4c", x, 128, 128, 256, 24, 64, 64)
    x = module("4d", x, 112, 144, 288, 32, 64, 64)
    x = module("4e", x, 256, 160, 320, 32, 128, 128)
    x = layers.max_pool("maxpool4", x, 2, 2, rounding="ceil")
    x = module("5a", x, 256, 160, 320, 32, 128, 128)
    x = module("5b", x, 384, 192, 384, 48, 128, 128)
    return layers.dense("fc", layers.dropout(x.mean((1, 2))), classes)


def _inception_v3(layers: Layers, x: Array, *, width: float, classes: int) -> Array:
    x = _unit(layers, "Conv2d_1a_3x3", x, scaled(width, 32), 3, 2)
    x = _unit(layers, "Conv2d_2a_3x3", x, scaled(width, 32), 3)
    x = _unit(layers, "Conv2d_2b_3x3", x, scaled(width, 64), 3, padding=1)
    x = layers.max_pool("maxpool1", x, 3, 2)
    x = _unit(layers, "Conv2d_3b_1x1", x, scaled(width, 80), 1)
    x = _unit(layers, "Conv2d_4a_3x3", x, scaled(width, 192), 3)
    x = layers.max_pool("maxpool2", x, 3, 2)
    modules = {
        "Mixed_5b": _mixed_5(32),
        "Mixed_5c": _mixed_5(64),
        "Mixed_5d": _mixed_5(64),
        "Mixed_6a": MIXED_6A,
        "Mixed_6b": _mixed_6(128),
        "Mixed_6c": _mixed_6(160),
        "Mixed_6d": _mixed_6(160),
        "Mixed_6e": _mixed_6(192),
        "Mixed_7a": MIXED_7A,
        "Mixed_7b": MIXED_7,
        "Mixed_7c": MIXED_7,
    }
    for name, branches in modules.items():
        x = _side_by_side(layers, name, x, width, branches)
    return layers.dense("fc", layers.dropout(x.mean((1, 2))), classes)


def _mixed_5(pooled: int) -> tuple[Branch, ...]:
    return (
        (Unit("branch1x1", 64, 1),),
        (Unit("branch5x5_1", 48, 1), Unit("branch5x5_2", 64, 5)),
        (Unit("branch3x3dbl_1", 64, 1), Unit("branch3x3dbl_2", 96, 3), Unit("branch3x3dbl_3", 96, 3)),
        (Mean("pool"), Unit("branch_pool", pooled, 1)),
    )


MIXED_6A = (
    (Unit("branch3x3", 384, 3, 2),),
    (Unit("branch3x3dbl_1", 64, 1), Unit("branch3x3dbl_2", 96, 3), Unit("branch3x3dbl_3", 96, 3, 2)),
    (Max("pool", 2),),
)


def _mixed_6(inner: int) -> tuple[Branch, ...]:
    """7×7 windows as one along a row and one along a column."""
    return (
        (Unit("branch1x1", 192, 1),),
        (Unit("branch7x7_1", inner, 1), Unit("branch7x7_2", inner, (1, 7)), Unit("branch7x7_3", 192, (7, 1))),
        (
            Unit("branch7x7dbl_1", inner, 1),
            Unit("branch7x7dbl_2", inner, (7, 1)),
            Unit("branch7x7dbl_3", inner, (1, 7)),
            Unit("branch7x7dbl_4", inner, (7, 1)),
            Unit("branch7x7dbl_5", 192, (1, 7)),
        ),
        (Mean("pool"), Unit("branch_pool", 192, 1)),
    )


MIXED_7A = (
    (Unit("branch3x3_1", 192, 1), Unit("branch3x3_2", 320, 3, 2)),
    (
        Unit("branch7x7x3_1", 192, 1),
        Unit("branch7x7x3_2", 192, (1, 7)),
        Unit("branch7x7x3_3", 192, (7, 1)),
        Unit("branch7x7x3_4", 192, 3, 2),
    ),
    (Max("pool", 2),),
)

MIXED_7 = (
    (Unit("branch1x1", 320, 1),),
    (
        Unit("branch3x3_1", 384, 1),
        Split("branch3x3", (Unit("branch3x3_2a", 384, (1, 3)), Unit("branch3x3_2b", 384, (3, 1)))),
    ),
    (
        Unit("branch3x3dbl_1", 448, 1),
        Unit("branch3x3dbl_2", 384, 3),
        Split("branch3x3dbl", (Unit("branch3x3dbl_3a", 384, (1, 3)), Unit("branch3x3dbl_3b", 384, (3, 1)))),
    ),
    (Mean("pool"), Unit("branch_pool", 192, 1)),
)


def _side_by_side(layers: Layers, name: str, x: Array, width: float, branches: tuple[Branch, ...]) -> Array:
    """The channels of all branches of `x`, which is a module; every step is a feature map."""

    def step(y: Array, of: Unit | Max | Mean | Split) -> Array:
        scope = f"{name}.{of.name}"
        match of:
            case Split():
                return layers.concatenate(scope, [step(y, unit) for unit in of.units])
            case Mean():
                return layers.avg_pool(scope, y, 3, 1, padding=1)
            case Max():
                return layers.max_pool(scope, y, 3, of.strides, padding=1 if of.strides == 1 else 0)
        sides = (of.window, of.window) if isinstance(of.window, int) else of.window
        padding = [side // 2 for side in sides] if of.strides == 1 else 0
        return _unit(layers, scope, y, scaled(width, of.width), of.window, of.strides, padding)

    outputs = []
    for branch in branches:
        y = x
        for of in branch:
            y = step(y, of)
        outputs.append(y)
    return layers.concatenate(name, outputs)


def _unit(
    layers: Layers, name: str, x: Array, width: int, window: Ints, strides: int = 1, padding: Padding = 0
) -> Array:
    x = layers.conv(f"{name}.conv", x, width, window, strides=strides, padding=padding, bias=False)
    return layers.relu(name, layers.batch_norm(f"{name}.bn", x, epsilon=EPSILON))
