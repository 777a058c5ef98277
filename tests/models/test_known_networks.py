"""The networks that the field knows: published counts, sizes of all maps, and PyTorch's own values."""

import math

import jax
import jax.numpy as jnp
import pytest

from cnnjax import models
from cnnjax.config import Config, DataConfig, Hyperparams, ModelConfig, TrainConfig
from cnnjax.data import load
from cnnjax.errors import InputError
from cnnjax.models import weights
from cnnjax.train import run
from tests.cases import some

# parameters for 1000 classes (torchvision's documentation; alexnet_2012: Caffe's; resnet20: 10 classes), image size
COUNTS = {
    "alexnet": (61_100_840, 224),
    "alexnet_2012": (60_965_224, 227),
    "mobilenet_v2": (3_504_872, 224),
    "resnet18": (11_689_512, 224),
    "resnet20": (269_722, 32),
    "resnet50": (25_557_032, 224),
    "squeezenet1_1": (1_235_496, 224),
    "vgg11": (132_863_336, 224),
    "vgg11_bn": (132_868_840, 224),
    "vgg16": (138_357_544, 224),
    "vgg16_bn": (138_365_992, 224),
}
MAPS = {
    "alexnet": (
        "conv1 55×64 pool1 27×64 conv2 27×192 pool2 13×192 conv3 13×384 conv4 13×256 conv5 13×256 pool5 6×256 "
        "avgpool 6×256 fc6 4096 fc7 4096"
    ),
    "alexnet_2012": (
        "conv1 55×96 norm1 55×96 pool1 27×96 conv2 27×256 norm2 27×256 pool2 13×256 conv3 13×384 conv4 13×384 "
        "conv5 13×256 pool5 6×256 fc6 4096 fc7 4096"
    ),
    "mobilenet_v2": (
        "features.0 112×32 features.1.conv.0 112×32 features.1 112×16 features.2.conv.0 112×96 features.2.conv.1 "
        "56×96 features.2 56×24 features.3.conv.0 56×144 features.3.conv.1 56×144 features.3 56×24 "
        "features.4.conv.0 56×144 features.4.conv.1 28×144 features.4 28×32 features.5.conv.0 28×192 "
        "features.5.conv.1 28×192 features.5 28×32 features.6.conv.0 28×192 features.6.conv.1 28×192 features.6 "
        "28×32 features.7.conv.0 28×192 features.7.conv.1 14×192 features.7 14×64 features.8.conv.0 14×384 "
        "features.8.conv.1 14×384 features.8 14×64 features.9.conv.0 14×384 features.9.conv.1 14×384 features.9 "
        "14×64 features.10.conv.0 14×384 features.10.conv.1 14×384 features.10 14×64 features.11.conv.0 14×384 "
        "features.11.conv.1 14×384 features.11 14×96 features.12.conv.0 14×576 features.12.conv.1 14×576 "
        "features.12 14×96 features.13.conv.0 14×576 features.13.conv.1 14×576 features.13 14×96 "
        "features.14.conv.0 14×576 features.14.conv.1 7×576 features.14 7×160 features.15.conv.0 7×960 "
        "features.15.conv.1 7×960 features.15 7×160 features.16.conv.0 7×960 features.16.conv.1 7×960 features.16"
        " 7×160 features.17.conv.0 7×960 features.17.conv.1 7×960 features.17 7×320 features.18 7×1280 avgpool "
        "1280"
    ),
    "resnet18": (
        "conv1 112×64 pool1 56×64 layer1.0.conv1 56×64 layer1.0 56×64 layer1.1.conv1 56×64 layer1.1 56×64 "
        "layer2.0.conv1 28×128 layer2.0 28×128 layer2.1.conv1 28×128 layer2.1 28×128 layer3.0.conv1 14×256 "
        "layer3.0 14×256 layer3.1.conv1 14×256 layer3.1 14×256 layer4.0.conv1 7×512 layer4.0 7×512 layer4.1.conv1"
        " 7×512 layer4.1 7×512 avgpool 512"
    ),
    "resnet20": (
        "conv1 32×16 layer1.0.conv1 32×16 layer1.0 32×16 layer1.1.conv1 32×16 layer1.1 32×16 layer1.2.conv1 32×16"
        " layer1.2 32×16 layer2.0.conv1 16×32 layer2.0 16×32 layer2.1.conv1 16×32 layer2.1 16×32 layer2.2.conv1 "
        "16×32 layer2.2 16×32 layer3.0.conv1 8×64 layer3.0 8×64 layer3.1.conv1 8×64 layer3.1 8×64 layer3.2.conv1 "
        "8×64 layer3.2 8×64 avgpool 64"
    ),
    "resnet50": (
        "conv1 112×64 pool1 56×64 layer1.0.conv1 56×64 layer1.0.conv2 56×64 layer1.0 56×256 layer1.1.conv1 56×64 "
        "layer1.1.conv2 56×64 layer1.1 56×256 layer1.2.conv1 56×64 layer1.2.conv2 56×64 layer1.2 56×256 "
        "layer2.0.conv1 56×128 layer2.0.conv2 28×128 layer2.0 28×512 layer2.1.conv1 28×128 layer2.1.conv2 28×128 "
        "layer2.1 28×512 layer2.2.conv1 28×128 layer2.2.conv2 28×128 layer2.2 28×512 layer2.3.conv1 28×128 "
        "layer2.3.conv2 28×128 layer2.3 28×512 layer3.0.conv1 28×256 layer3.0.conv2 14×256 layer3.0 14×1024 "
        "layer3.1.conv1 14×256 layer3.1.conv2 14×256 layer3.1 14×1024 layer3.2.conv1 14×256 layer3.2.conv2 14×256"
        " layer3.2 14×1024 layer3.3.conv1 14×256 layer3.3.conv2 14×256 layer3.3 14×1024 layer3.4.conv1 14×256 "
        "layer3.4.conv2 14×256 layer3.4 14×1024 layer3.5.conv1 14×256 layer3.5.conv2 14×256 layer3.5 14×1024 "
        "layer4.0.conv1 14×512 layer4.0.conv2 7×512 layer4.0 7×2048 layer4.1.conv1 7×512 layer4.1.conv2 7×512 "
        "layer4.1 7×2048 layer4.2.conv1 7×512 layer4.2.conv2 7×512 layer4.2 7×2048 avgpool 2048"
    ),
    "squeezenet1_1": (
        "features.0 111×64 features.2 55×64 features.3.squeeze 55×16 features.3.expand1x1 55×64 "
        "features.3.expand3x3 55×64 features.3 55×128 features.4.squeeze 55×16 features.4.expand1x1 55×64 "
        "features.4.expand3x3 55×64 features.4 55×128 features.5 27×128 features.6.squeeze 27×32 "
        "features.6.expand1x1 27×128 features.6.expand3x3 27×128 features.6 27×256 features.7.squeeze 27×32 "
        "features.7.expand1x1 27×128 features.7.expand3x3 27×128 features.7 27×256 features.8 13×256 "
        "features.9.squeeze 13×48 features.9.expand1x1 13×192 features.9.expand3x3 13×192 features.9 13×384 "
        "features.10.squeeze 13×48 features.10.expand1x1 13×192 features.10.expand3x3 13×192 features.10 13×384 "
        "features.11.squeeze 13×64 features.11.expand1x1 13×256 features.11.expand3x3 13×256 features.11 13×512 "
        "features.12.squeeze 13×64 features.12.expand1x1 13×256 features.12.expand3x3 13×256 features.12 13×512 "
        "classifier.1 13×1000"
    ),
    "vgg11": (
        "conv1_1 224×64 pool1 112×64 conv2_1 112×128 pool2 56×128 conv3_1 56×256 conv3_2 56×256 pool3 28×256 "
        "conv4_1 28×512 conv4_2 28×512 pool4 14×512 conv5_1 14×512 conv5_2 14×512 pool5 7×512 avgpool 7×512 fc6 "
        "4096 fc7 4096"
    ),
    "vgg16": (
        "conv1_1 224×64 conv1_2 224×64 pool1 112×64 conv2_1 112×128 conv2_2 112×128 pool2 56×128 conv3_1 56×256 "
        "conv3_2 56×256 conv3_3 56×256 pool3 28×256 conv4_1 28×512 conv4_2 28×512 conv4_3 28×512 pool4 14×512 "
        "conv5_1 14×512 conv5_2 14×512 conv5_3 14×512 pool5 7×512 avgpool 7×512 fc6 4096 fc7 4096"
    ),
}
MAPS |= {f"{name}_bn": MAPS[name] for name in ("vgg11", "vgg16")}


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


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_the_size_of_every_map(name):
    count, size = COUNTS[name]
    variables, maps = shapes_of(ModelConfig(name), (size, size, 3), 10 if name == "resnet20" else 1000)
    assert parameter_count(variables) == count
    assert said(maps) == MAPS[name]


def test_the_network_of_2012_is_the_papers_at_224_pixels_too():
    """cuda-convnet lets the last window of conv1 reach over the edge: 55 places at 224 pixels."""
    variables, maps = shapes_of(ModelConfig("alexnet_2012"), (224, 224, 3))
    assert parameter_count(variables) == COUNTS["alexnet_2012"][0]
    assert said(maps) == MAPS["alexnet_2012"]


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "resnet20", "squeezenet1_1", "vgg11"])
def test_a_width_scales_every_layer(name):
    """Each map but those of the classes has half as many channels at half the width."""
    _, size = COUNTS[name]
    whole, half = (shapes_of(ModelConfig(name, width=width), (size, size, 3), 10)[1] for width in (1.0, 0.5))
    assert {map: shape[-1] for map, shape in half.items() if map != "classifier.1"} == {
        map: shape[-1] // 2 for map, shape in whole.items() if map != "classifier.1"
    }


LEAST = {  # where a pool or a filter fits just once; alexnet_2012's conv1 has no zeros around
    "alexnet": 63, "alexnet_2012": 64, "squeezenet1_1": 17, "vgg11": 32, "vgg11_bn": 32, "vgg16": 32, "vgg16_bn": 32
}  # fmt: skip


@pytest.mark.parametrize("name", some(LEAST, "squeezenet1_1", "vgg11"))
def test_images_that_are_too_small_are_refused_with_the_smallest_size(name):
    least = LEAST[name]
    with pytest.raises(InputError) as error:
        models.build(ModelConfig(name), (least + 5, least - 1, 3), 10)
    assert str(error.value) == f"images must be at least {least}×{least} pixels for {name}, got {least + 5}×{least - 1}"
    models.build(ModelConfig(name), (least, least, 3), 10)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet20"])
def test_networks_that_pad_every_window_take_a_single_pixel(name):
    _, maps = shapes_of(ModelConfig(name, width=0.1), (1, 1, 1), 3)
    assert {shape[1:3] for shape in maps.values() if len(shape) == 4} == {(1, 1)}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig("vgg11", filters=(3,)), "model.filters must be None for vgg11, which has no such field"),
        (ModelConfig("alexnet", norm="lrn", dense=(9,)), "model.dense, model.norm must be None for alexnet"),
        (ModelConfig("lenet", width=0.5), "model.width must be None for lenet"),
    ],
)
def test_a_field_that_a_network_does_not_have_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        models.build(config, (64, 64, 3), 10)


@pytest.mark.long
def test_a_narrow_resnet20_learns_the_digits(tmp_path):
    """Less than a fifth are wrong; chance is 90 %."""
    config = Config(
        data=DataConfig(name="digits"),
        model=ModelConfig("resnet20", width=0.5),
        train=TrainConfig(epochs=6),
        hyper=Hyperparams(learning_rate=0.1, filter_rms=math.inf, flip=0.0, shift=1.0),
    )
    dataset = load(config.data)
    variables, _ = shapes_of(config.model, dataset.image_shape, 10)
    assert parameter_count(variables) <= 300_000
    assert run.run(config, dataset, tmp_path / "run").metrics[-1]["test_error"] < 0.2


@pytest.mark.extra
@pytest.mark.parametrize(
    ("name", "size"), [("alexnet", 64), ("mobilenet_v2", 64), ("resnet18", 64), ("resnet50", 64), ("squeezenet1_1", 64)]
)
def test_values_are_torchvisions(name, size):
    torchvision = pytest.importorskip("torchvision")
    from tests.models.torch_side import assert_same

    module = getattr(torchvision.models, name)(weights=None, num_classes=10)
    assert_same(ModelConfig(name), module, (size, size, 3), classes=10)


@pytest.mark.extra
@pytest.mark.parametrize("letter", "AD")
@pytest.mark.parametrize("normalized", [False, True])
def test_values_of_a_narrow_vgg_are_torchvisions(letter, normalized):
    """An eighth as wide; from images of 48×48 the 7×7 bins in front of the dense layers see one place or two."""
    torchvision = pytest.importorskip("torchvision")
    from torch import nn

    from tests.models.torch_side import assert_same

    vgg = torchvision.models.vgg
    widths = [entry if entry == "M" else entry // 8 for entry in vgg.cfgs[letter]]
    module = vgg.VGG(vgg.make_layers(widths, batch_norm=normalized))
    module.classifier[0], module.classifier[3] = nn.Linear(64 * 7 * 7, 512), nn.Linear(512, 512)
    module.classifier[6] = nn.Linear(512, 10)
    name = {"A": "vgg11", "D": "vgg16"}[letter] + ("_bn" if normalized else "")
    assert_same(ModelConfig(name, width=1 / 8), module, (48, 64, 3), classes=10)


@pytest.mark.extra
@pytest.mark.parametrize("width", [0.1, 0.35, 1.4])
def test_the_width_of_a_mobilenet_is_torchvisions_multiplier(width):
    torchvision = pytest.importorskip("torchvision")
    module = torchvision.models.mobilenet_v2(weights=None, width_mult=width, num_classes=10)
    variables, _ = shapes_of(ModelConfig("mobilenet_v2", width=width), (64, 64, 3), 10)
    weights.variables_of({name: tensor.numpy() for name, tensor in module.state_dict().items()}, variables)


@pytest.mark.extra
def test_values_of_resnet20_are_those_of_its_layers_in_torch():
    torch = pytest.importorskip("torch")
    from torch import nn

    from tests.models.torch_side import assert_same

    class Block(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.stride, self.more = stride, (width - channels) // 2

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            # the paper's option A: identity, with zeros for the maps that are new
            return torch.relu(
                y + nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0,) * 4 + (self.more,) * 2)
            )

    class ResNet20(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
            self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
            self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))

    assert_same(ModelConfig("resnet20"), ResNet20(), (16, 15, 3), classes=10)


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
