"""The networks that the field knows: published counts, sizes of all maps, and PyTorch's own values."""

import jax
import jax.numpy as jnp
import pytest

from cnnjax import models
from cnnjax.config import ModelConfig

# name -> parameters for 1000 classes (torchvision's documentation; alexnet_2012: Caffe's), and side × maps of each
# feature map at the image size
SIZES = {
    "alexnet": (
        61_100_840,
        224,
        "conv1 55×64 pool1 27×64 conv2 27×192 pool2 13×192 conv3 13×384 conv4 13×256 conv5 13×256 pool5 6×256 "
        "fc6 4096 fc7 4096",
    ),
    "alexnet_2012": (
        60_965_224,
        227,
        "conv1 55×96 norm1 55×96 pool1 27×96 conv2 27×256 norm2 27×256 pool2 13×256 conv3 13×384 conv4 13×384 "
        "conv5 13×256 pool5 6×256 fc6 4096 fc7 4096",
    ),
}


def shapes_of(config, image_shape, classes=1000):
    """Shapes of the variables, and of the feature maps in network order (which jax.eval_shape does not keep)."""
    network = models.build(config, image_shape, classes)
    images = jnp.zeros((1, *image_shape))
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    order = {}

    def apply(variables, images):
        logits, maps = network.apply(variables, images)
        order.update(maps)
        return logits

    assert jax.eval_shape(apply, variables, images).shape == (1, classes)
    return variables, {name: map.shape for name, map in order.items()}


def parameter_count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def said(maps):
    return " ".join(f"{name} {'×'.join(map(str, (*shape[1:-2], shape[-1])))}" for name, shape in maps.items())


@pytest.mark.parametrize("name", SIZES)
def test_parameters_and_the_size_of_every_map(name):
    count, size, table = SIZES[name]
    variables, maps = shapes_of(ModelConfig(name), (size, size, 3))
    assert parameter_count(variables) == count
    assert said(maps) == table


def test_the_network_of_2012_is_the_papers_at_224_pixels_too():
    """cuda-convnet lets the last window of conv1 reach over the edge: 55 places at 224 pixels."""
    variables, maps = shapes_of(ModelConfig("alexnet_2012"), (224, 224, 3))
    assert parameter_count(variables) == SIZES["alexnet_2012"][0]
    assert said(maps) == SIZES["alexnet_2012"][2]


@pytest.mark.extra
@pytest.mark.parametrize(("name", "size"), [("alexnet", 64), ("resnet18", 64), ("resnet50", 64)])
def test_values_are_torchvisions(name, size):
    torchvision = pytest.importorskip("torchvision")
    from tests.models.torch_side import assert_same

    module = getattr(torchvision.models, name)(weights=None, num_classes=10)
    assert_same(ModelConfig(name), module, (size, size, 3), classes=10)


@pytest.mark.extra
@pytest.mark.parametrize("size", [64, 67])  # one that fits, one whose last window reaches over the edge
def test_values_of_the_network_of_2012_are_those_of_its_layers_in_torch(size):
    torch = pytest.importorskip("torch")
    from torch import nn

    from tests.models.torch_side import assert_same

    class AlexNet2012(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 24, 11, stride=4)
            self.conv2 = nn.Conv2d(24, 64, 5, padding=2, groups=2)
            self.conv3 = nn.Conv2d(64, 96, 3, padding=1)
            self.conv4 = nn.Conv2d(96, 96, 3, padding=1, groups=2)
            self.conv5 = nn.Conv2d(96, 64, 3, padding=1, groups=2)
            self.fc6, self.fc7, self.fc8 = nn.Linear(64, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 10)
            # PyTorch divides alpha by the five channels of the window, the paper does not.
            self.norm, self.pool = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0), nn.MaxPool2d(3, 2)

        def forward(self, x):
            over = -(size - 11) % 4
            x = self.pool(self.norm(torch.relu(self.conv1(nn.functional.pad(x, (0, over, 0, over))))))
            x = self.pool(self.norm(torch.relu(self.conv2(x))))
            x = torch.relu(self.conv4(torch.relu(self.conv3(x))))
            x = self.pool(torch.relu(self.conv5(x)))
            return self.fc8(torch.relu(self.fc7(torch.relu(self.fc6(torch.flatten(x, 1))))))

    assert_same(ModelConfig("alexnet_2012", width=0.25), AlexNet2012(), (size, size, 3), classes=10)
