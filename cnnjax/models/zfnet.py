"""The network of Zeiler & Fergus 2014, figure 3."""

from dataclasses import replace

from cnnjax.config import ModelConfig
from cnnjax.models.convnet import ConvLayer, ConvNet, Pool, convnet

# The paper gives sizes (110, 55, 26, 13, 13, 13, 13, 6) and no paddings. Padding 1 at conv1, pool1 and pool2, rounded
# down, gives them; so does no padding there, rounded up, which is how the authors' framework computed.
CONVOLUTIONS = (
    ConvLayer(96, filter=7, stride=2, padding=1, pool=Pool(3, 2, padding=1), norm="lrn"),
    ConvLayer(256, filter=5, stride=2, padding=0, pool=Pool(3, 2, padding=1), norm="lrn"),
    ConvLayer(384, filter=3, padding=1),
    ConvLayer(384, filter=3, padding=1),
    ConvLayer(256, filter=3, padding=1, pool=Pool(3, 2)),
)


def zfnet(config: ModelConfig, num_classes: int) -> ConvNet:
    """62,357,608 parameters for 1000 classes at 224x224x3. With rounding "ceil", no padding before conv3."""
    convolutions = CONVOLUTIONS
    if config.rounding == "ceil":
        first, second = (replace(layer, padding=0, pool=Pool(3, 2)) for layer in CONVOLUTIONS[:2])
        convolutions = (first, second, *CONVOLUTIONS[2:])
    return convnet(config, num_classes, convolutions=convolutions, dense=(4096, 4096), rounding="floor", init="paper")
