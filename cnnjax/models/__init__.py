"""Networks as Flax modules whose `apply` returns (logits, feature_maps)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from cnnjax.models import alexnet, densenet, efficientnet_lite, foreign, inception, mobilenet, resnet, squeezenet, vgg
from cnnjax.models.building import Expects, KnownNetwork, check_images
from cnnjax.models.convnet import ConvNet
from cnnjax.models.layers import (
    FEW,
    Layer,
    first_convolution,
    kernels_of,
    layers,
    layers_of,
    looked_into,
    stage_outputs,
    stages,
    training_operations,
)
from cnnjax.models.lenet import lenet
from cnnjax.models.mlp import mlp
from cnnjax.models.zfnet import zfnet
from cnnjax.models.zfnet_small import zfnet_small

Build = Callable[[ModelConfig, int], ConvNet | KnownNetwork]
KNOWN: dict[str, Build] = {
    "alexnet": alexnet.alexnet,
    "alexnet_2012": alexnet.alexnet_2012,
    "densenet121": densenet.densenet121,
    "efficientnet_lite0": efficientnet_lite.efficientnet_lite0,
    "googlenet": inception.googlenet,
    "inception_v3": inception.inception_v3,
    "mobilenet_v2": mobilenet.mobilenet_v2,
    "resnet18": resnet.resnet18,
    "resnet20": resnet.resnet20,
    "resnet50": resnet.resnet50,
    "squeezenet1_1": squeezenet.squeezenet1_1,
    "vgg11": vgg.vgg11,
    "vgg11_bn": vgg.vgg11_bn,
    "vgg16": vgg.vgg16,
    "vgg16_bn": vgg.vgg16_bn,
}
# Of weights for ImageNet: torchvision's first (IMAGENET1K_V1), where `transform_input` makes 127.5 of the means for
# GoogLeNet and Inception; efficientnet-lite-pytorch's, which Google has trained.
EXPECTS: dict[str, Expects] = {
    **dict.fromkeys(
        (
            "alexnet",
            "densenet121",
            "mobilenet_v2",
            "resnet18",
            "resnet50",
            "squeezenet1_1",
            "vgg11",
            "vgg11_bn",
            "vgg16",
            "vgg16_bn",
        ),
        Expects(),
    ),
    "efficientnet_lite0": Expects(interpolation="bicubic", mean=(127.0, 127.0, 127.0), deviation=(128.0, 128.0, 128.0)),
    "googlenet": Expects(mean=(127.5, 127.5, 127.5), deviation=(127.5, 127.5, 127.5)),
    "inception_v3": Expects(299, 342, mean=(127.5, 127.5, 127.5), deviation=(127.5, 127.5, 127.5)),
}
NETWORKS: dict[str, Build] = {"mlp": mlp, "lenet": lenet, "zfnet": zfnet, "zfnet_small": zfnet_small, **KNOWN}

__all__ = [
    "EXPECTS",
    "FEW",
    "KNOWN",
    "NETWORKS",
    "OF_LAYERS",
    "ConvNet",
    "Expects",
    "KnownNetwork",
    "Layer",
    "build",
    "first_convolution",
    "kernels_of",
    "layers",
    "layers_of",
    "looked_into",
    "stage_outputs",
    "stages",
    "training_operations",
    "unheard",
]


def build(
    config: ModelConfig, image_shape: tuple[int, ...], num_classes: int
) -> ConvNet | KnownNetwork | foreign.Foreign:
    """The network that `config` names, checked to fit images of `image_shape` (height, width, channels).

    It has `num_classes` outputs, or those that `config.classes` names.

    Raises:
        InputError: for a name that does not exist, a field that the network does not have, or a layer that does not
            fit.
    """
    if foreign.is_code(config.name):
        return _own(config, image_shape, num_classes)
    if config.name not in NETWORKS:
        raise InputError(f"model.name must be one of {', '.join(NETWORKS)}, got {config.name!r}")
    _check_fields(config, {"width"} if config.name in KNOWN else _fields(config) - {"width", "code_sha256"})
    network = NETWORKS[config.name](config, num_classes if config.classes is None else len(config.classes))
    check_images(network, config.name, image_shape)
    return network


def _own(config: ModelConfig, image_shape: tuple[int, ...], num_classes: int) -> foreign.Foreign:
    """A network of the user's, checked to be trainable with an output for each class."""
    _check_fields(config, {"code_sha256"})
    network = foreign.allowed(config.name)
    foreign.check_trainable(network, image_shape, num_classes)
    return network


# Of `Hyperparams`, those of layers that not every network has; each is an argument of `apply`.
OF_LAYERS = {"batch_norm_momentum": "batch normalization", "dropout_rate": "dropout"}


def unheard(network: ConvNet | KnownNetwork | foreign.Foreign, image_shape: tuple[int, ...]) -> tuple[str, ...]:
    """The hyperparameters that change nothing: the network has no such layer, or is somebody's own, with its own."""
    if isinstance(network, foreign.Foreign):
        return tuple(OF_LAYERS)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)

    def training(numbers: dict[str, Any], variables: Any, images: Any):
        keys = {"dropout": jax.random.key(0)}
        return network.apply(variables, images, train=True, rngs=keys, mutable=["batch_stats"], **numbers)

    numbers = dict.fromkeys(OF_LAYERS, jnp.float32(0.5))
    traced = jax.make_jaxpr(training)(numbers, variables, images).jaxpr
    read = {id(value) for equation in traced.eqns for value in equation.invars}
    # The leaves of a dict are in the order of its keys.
    return tuple(name for name, value in zip(sorted(numbers), traced.invars, strict=False) if id(value) not in read)


def _fields(config: ModelConfig) -> set[str]:
    """The fields that say something of the network itself."""
    fields = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) is not None}
    return fields - {"name", "classes"}


def _check_fields(config: ModelConfig, known: set[str]) -> None:
    if other := _fields(config) - known:
        named = ", ".join(f"model.{name}" for name in sorted(other))
        raise InputError(f"{named} must be None for {config.name}, which has no such field")
