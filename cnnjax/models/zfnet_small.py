"""The network of Zeiler & Fergus scaled to small images: the same five convolutions, pools and dense layers."""

from cnnjax.config import ModelConfig
from cnnjax.models.convnet import ConvLayer, ConvNet, Pool, convnet

CONVOLUTIONS = (
    ConvLayer(32, filter=7, stride=2, padding=3, pool=Pool(2, 2)),
    ConvLayer(64, filter=5, padding=2, pool=Pool(2, 2)),
    ConvLayer(96, filter=3, padding=1),
    ConvLayer(96, filter=3, padding=1),
    ConvLayer(64, filter=3, padding=1, pool=Pool(2, 2)),
)


def zfnet_small(config: ModelConfig, num_classes: int) -> ConvNet:
    """For images of about 24 to 96 pixels."""
    return convnet(config, num_classes, convolutions=CONVOLUTIONS, dense=(256,), rounding="floor", init="small_first")
