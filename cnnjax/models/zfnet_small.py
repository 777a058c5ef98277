"""The network of Zeiler & Fergus scaled to small images: the same five convolutions, pools and dense layers.

The first layer moves by one pixel, not by two: a stride leaves a grid in the projections of every layer above it, and
a field that grows slowly lets the upper layers see parts of a small image and not only the whole.
"""

from cnnjax.config import ModelConfig
from cnnjax.models.convnet import ConvLayer, ConvNet, Pool, convnet

CONVOLUTIONS = (
    ConvLayer(24, filter=7, padding=3, pool=Pool(2, 2)),
    ConvLayer(64, filter=3, padding=1, pool=Pool(2, 2)),
    ConvLayer(64, filter=3, padding=1),
    ConvLayer(64, filter=3, padding=1),
    ConvLayer(64, filter=3, padding=1, pool=Pool(2, 2)),
)


def zfnet_small(config: ModelConfig, num_classes: int) -> ConvNet:
    """For images of about 24 to 96 pixels."""
    return convnet(config, num_classes, convolutions=CONVOLUTIONS, dense=(256,), rounding="floor", init="small_first")
