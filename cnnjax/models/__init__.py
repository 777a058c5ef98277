"""Networks as Flax modules whose `apply` returns (logits, feature_maps)."""

from collections.abc import Callable

from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from cnnjax.models.convnet import ConvNet
from cnnjax.models.layers import Layer, layers
from cnnjax.models.lenet import lenet
from cnnjax.models.mlp import mlp
from cnnjax.models.zfnet import zfnet
from cnnjax.models.zfnet_small import zfnet_small

NETWORKS: dict[str, Callable[[ModelConfig, int], ConvNet]] = {
    "mlp": mlp,
    "lenet": lenet,
    "zfnet": zfnet,
    "zfnet_small": zfnet_small,
}

__all__ = ["NETWORKS", "ConvNet", "Layer", "build", "layers"]


def build(config: ModelConfig, image_shape: tuple[int, ...], num_classes: int) -> ConvNet:
    """The network that `config` names, checked to fit images of `image_shape` (height, width, channels).

    Raises:
        InputError: for a name that does not exist, or a layer that does not fit.
    """
    if config.name not in NETWORKS:
        raise InputError(f"model.name must be one of {', '.join(NETWORKS)}, got {config.name!r}")
    network = NETWORKS[config.name](config, num_classes)
    layers(network, image_shape)
    return network
