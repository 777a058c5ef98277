"""Networks as Flax modules whose `apply` returns (logits, feature_maps)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from cnnjax.models import resnet
from cnnjax.models.building import KnownNetwork
from cnnjax.models.convnet import ConvNet
from cnnjax.models.layers import FEW, Layer, kernels_of, layers, looked_into, stage_outputs, stages
from cnnjax.models.lenet import lenet
from cnnjax.models.mlp import mlp
from cnnjax.models.zfnet import zfnet
from cnnjax.models.zfnet_small import zfnet_small

Build = Callable[[ModelConfig, int], ConvNet | KnownNetwork]
KNOWN: dict[str, Build] = {"resnet18": resnet.resnet18, "resnet50": resnet.resnet50}
NETWORKS: dict[str, Build] = {"mlp": mlp, "lenet": lenet, "zfnet": zfnet, "zfnet_small": zfnet_small, **KNOWN}

__all__ = [
    "FEW",
    "KNOWN",
    "NETWORKS",
    "ConvNet",
    "KnownNetwork",
    "Layer",
    "build",
    "kernels_of",
    "layers",
    "looked_into",
    "stage_outputs",
    "stages",
]


def build(config: ModelConfig, image_shape: tuple[int, ...], num_classes: int) -> ConvNet | KnownNetwork:
    """The network that `config` names, checked to fit images of `image_shape` (height, width, channels).

    It has `num_classes` outputs, or those that `config.classes` names.

    Raises:
        InputError: for a name that does not exist, a field that the network does not have, or a layer that does not
            fit.
    """
    if config.name not in NETWORKS:
        raise InputError(f"model.name must be one of {', '.join(NETWORKS)}, got {config.name!r}")
    given = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) is not None} - {
        "name",
        "classes",
    }
    fields = {"width"} if config.name in KNOWN else given - {"width"}
    if given - fields:
        named = ", ".join(f"model.{name}" for name in sorted(given - fields))
        raise InputError(f"{named} must be None for {config.name}, which has no such field")
    network = NETWORKS[config.name](config, num_classes if config.classes is None else len(config.classes))
    jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return network
