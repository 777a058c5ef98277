"""LeNet-5 (LeCun et al. 1998), with ReLU and max pooling as the lecture has them, and dense connections."""

from cnnjax.config import ModelConfig
from cnnjax.models.convnet import ConvLayer, ConvNet, Pool, convnet

CONVOLUTIONS = (
    ConvLayer(6, filter=5, padding=2, pool=Pool(2, 2)),  # the padding makes 28x28 the 32x32 of the paper
    ConvLayer(16, filter=5, pool=Pool(2, 2)),
)


def lenet(config: ModelConfig, num_classes: int) -> ConvNet:
    """61,706 parameters for ten classes at 28x28x1."""
    return convnet(config, num_classes, convolutions=CONVOLUTIONS, dense=(120, 84), rounding="exact", init="he")
