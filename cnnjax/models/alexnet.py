"""AlexNet: torchvision's form (Krizhevsky 2014, "one weird trick") and the network of Krizhevsky et al. (2012)."""

from jax import Array

from cnnjax import ops
from cnnjax.config import ModelConfig
from cnnjax.models.building import KnownNetwork, Layers, flattened, known_network, scaled


def alexnet(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """torchvision's: 61,100,840 parameters for 1000 classes."""
    return known_network(_body, config, num_classes)


def alexnet_2012(config: ModelConfig, num_classes: int) -> KnownNetwork:
    """The paper's: 60,965,224 parameters for 1000 classes at 224 or 227 pixels; layers have Caffe's names.

    conv2, conv4 and conv5 see half of the maps each, as the paper's two GPUs made it. conv1 has no padding and its
    last window reaches over the edge where it does not fit, as in cuda-convnet, so that 224 pixels give the paper's
    55 as Caffe's 227 do. Local response normalization is behind the ReLU and before the pool, which overlaps.
    """
    return known_network(_body_2012, config, num_classes)


def _body(layers: Layers, x: Array, *, width: float, classes: int) -> Array:
    x = layers.relu("conv1", layers.conv("features.0", x, scaled(width, 64), 11, strides=4, padding=2))
    x = layers.max_pool("pool1", x, 3, 2)
    x = layers.relu("conv2", layers.conv("features.3", x, scaled(width, 192), 5, padding=2))
    x = layers.max_pool("pool2", x, 3, 2)
    x = layers.relu("conv3", layers.conv("features.6", x, scaled(width, 384), 3, padding=1))
    x = layers.relu("conv4", layers.conv("features.8", x, scaled(width, 256), 3, padding=1))
    x = layers.relu("conv5", layers.conv("features.10", x, scaled(width, 256), 3, padding=1))
    x = layers.max_pool("pool5", x, 3, 2)
    x = layers.dropout(flattened(layers.keep("avgpool", ops.adaptive_avg_pool(x, 6))))
    x = layers.relu("fc6", layers.dense("classifier.1", x, scaled(width, 4096)))
    x = layers.relu("fc7", layers.dense("classifier.4", layers.dropout(x), scaled(width, 4096)))
    return layers.dense("classifier.6", x, classes)


def _body_2012(layers: Layers, x: Array, *, width: float, classes: int) -> Array:
    def halves(channels: int) -> int:
        return 2 * scaled(width, channels // 2)

    x = layers.relu("conv1", layers.conv("conv1", x, halves(96), 11, strides=4, rounding="ceil"))
    x = layers.max_pool("pool1", layers.keep("norm1", ops.local_response_norm(x)), 3, 2)
    x = layers.relu("conv2", layers.conv("conv2", x, halves(256), 5, padding=2, groups=2))
    x = layers.max_pool("pool2", layers.keep("norm2", ops.local_response_norm(x)), 3, 2)
    x = layers.relu("conv3", layers.conv("conv3", x, halves(384), 3, padding=1))
    x = layers.relu("conv4", layers.conv("conv4", x, halves(384), 3, padding=1, groups=2))
    x = layers.relu("conv5", layers.conv("conv5", x, halves(256), 3, padding=1, groups=2))
    x = layers.max_pool("pool5", x, 3, 2)
    x = layers.relu("fc6", layers.dense("fc6", flattened(x), scaled(width, 4096)))
    x = layers.relu("fc7", layers.dense("fc7", layers.dropout(x), scaled(width, 4096)))
    return layers.dense("fc8", layers.dropout(x), classes)
