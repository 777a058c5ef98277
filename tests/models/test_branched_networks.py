"""Networks with branches, dense blocks and inverted bottlenecks: sizes of all maps, and the values of PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models, ops
from cnnjax.config import ModelConfig
from cnnjax.models import weights

PARAMETERS = {
    "densenet121": 7_978_856,
    "efficientnet_lite0": 4_652_008,
    "googlenet": 6_624_904,
    "inception_v3": 23_834_568,
}


@functools.cache
def shapes_of(name, size):
    """The number of parameters, and (side, maps) of every feature map, in network order."""
    network, maps = models.KNOWN[name](ModelConfig(name), 1000), {}

    def init(images):
        (logits, found), variables = network.init_with_output(jax.random.key(0), images)
        maps.update({name: (value.shape[1], value.shape[3]) for name, value in found.items()})  # eval_shape sorts
        return logits, variables

    logits, variables = jax.eval_shape(init, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    assert logits.shape == (1, 1000)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"])), maps


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert shapes_of(name, 299 if name == "inception_v3" else 224)[0] == PARAMETERS[name]


def side_by_side(module, *branches):
    """`branches` are texts of "scope side maps", a step each; the last steps of all are put beside each other."""
    steps = [[part.split() for part in branch.split(", ")] for branch in branches]
    maps = {f"{module}.{scope}": (int(side), int(width)) for branch in steps for scope, side, width in branch}
    return maps | {module: (int(steps[0][-1][1]), sum(int(branch[-1][2]) for branch in steps))}


def test_every_map_of_googlenet():
    """Szegedy et al. 2014, table 1."""
    table = (  # 1×1, before 3×3, 3×3, before 5×5, 5×5, behind the pool
        ("3a", 28, 192, 64, 96, 128, 16, 32, 32),
        ("3b", 28, 256, 128, 128, 192, 32, 96, 64),
        ("4a", 14, 480, 192, 96, 208, 16, 48, 64),
        ("4b", 14, 512, 160, 112, 224, 24, 64, 64),
        ("4c", 14, 512, 128, 128, 256, 24, 64, 64),
        ("4d", 14, 512, 112, 144, 288, 32, 64, 64),
        ("4e", 14, 528, 256, 160, 320, 32, 128, 128),
        ("5a", 7, 832, 256, 160, 320, 32, 128, 128),
        ("5b", 7, 832, 384, 192, 384, 48, 128, 128),
    )
    expected = {"conv1": (112, 64), "maxpool1": (56, 64), "conv2": (56, 64), "conv3": (56, 192), "maxpool2": (28, 192)}
    for module, side, before, one, reduced, three, also_reduced, five, pooled in table:
        if module in ("4a", "5a"):
            expected[f"maxpool{int(module[0]) - 1}"] = (side, before)
        expected |= side_by_side(
            f"inception{module}",
            f"branch1 {side} {one}",
            f"branch2.0 {side} {reduced}, branch2.1 {side} {three}",
            f"branch3.0 {side} {also_reduced}, branch3.1 {side} {five}",
            f"branch4.0 {side} {before}, branch4.1 {side} {pooled}",
        )
    found = shapes_of("googlenet", 224)[1]
    assert found == expected and list(found) == list(expected)
    assert found["inception5b"] == (7, 1024)


def test_every_map_of_inception_v3():
    expected = {
        "Conv2d_1a_3x3": (149, 32),
        "Conv2d_2a_3x3": (147, 32),
        "Conv2d_2b_3x3": (147, 64),
        "maxpool1": (73, 64),
        "Conv2d_3b_1x1": (73, 80),
        "Conv2d_4a_3x3": (71, 192),
        "maxpool2": (35, 192),
    }
    for letter, before, pooled in (("b", 192, 32), ("c", 256, 64), ("d", 288, 64)):
        expected |= side_by_side(
            f"Mixed_5{letter}",
            "branch1x1 35 64",
            "branch5x5_1 35 48, branch5x5_2 35 64",
            "branch3x3dbl_1 35 64, branch3x3dbl_2 35 96, branch3x3dbl_3 35 96",
            f"pool 35 {before}, branch_pool 35 {pooled}",
        )
    expected |= side_by_side(
        "Mixed_6a",
        "branch3x3 17 384",
        "branch3x3dbl_1 35 64, branch3x3dbl_2 35 96, branch3x3dbl_3 17 96",
        "pool 17 288",
    )
    for letter, inner in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
        expected |= side_by_side(
            f"Mixed_6{letter}",
            "branch1x1 17 192",
            f"branch7x7_1 17 {inner}, branch7x7_2 17 {inner}, branch7x7_3 17 192",
            ", ".join(f"branch7x7dbl_{number} 17 {192 if number == 5 else inner}" for number in range(1, 6)),
            "pool 17 768, branch_pool 17 192",
        )
    expected |= side_by_side(
        "Mixed_7a",
        "branch3x3_1 17 192, branch3x3_2 8 320",
        "branch7x7x3_1 17 192, branch7x7x3_2 17 192, branch7x7x3_3 17 192, branch7x7x3_4 8 192",
        "pool 8 768",
    )
    for letter, before in (("b", 1280), ("c", 2048)):
        expected |= side_by_side(
            f"Mixed_7{letter}",
            "branch1x1 8 320",
            "branch3x3_1 8 384, branch3x3_2a 8 384, branch3x3_2b 8 384, branch3x3 8 768",
            "branch3x3dbl_1 8 448, branch3x3dbl_2 8 384, branch3x3dbl_3a 8 384, branch3x3dbl_3b 8 384, "
            "branch3x3dbl 8 768",
            f"pool 8 {before}, branch_pool 8 192",
        )
    found = shapes_of("inception_v3", 299)[1]
    assert found == expected and list(found) == list(expected)
    assert found["Mixed_7c"] == (8, 2048)


def test_every_map_of_densenet121():
    expected, maps = {"relu0": (112, 64), "pool0": (56, 64)}, 64
    for block, (depth, side) in enumerate(((6, 56), (12, 28), (24, 14), (16, 7)), 1):
        for layer in range(1, depth + 1):
            name = f"denseblock{block}.denselayer{layer}"
            expected |= {f"{name}.relu1": (side, maps), f"{name}.relu2": (side, 128), name: (side, 32)}
            maps += 32
        expected[f"denseblock{block}"] = (side, maps)
        if block < 4:
            expected |= {f"transition{block}.relu": (side, maps), f"transition{block}": (side // 2, maps // 2)}
            maps //= 2
    expected["relu5"] = (7, 1024)
    found = shapes_of("densenet121", 224)[1]
    assert found == expected and list(found) == list(expected)


def test_every_map_of_efficientnet_lite0():
    """Tan & Le 2019, table 1, at the sizes behind each block."""
    sides = [112, 56, 56, 28, 28, *[14] * 6, *[7] * 5]
    widths = [16, 24, 24, 40, 40, *[80] * 3, *[112] * 3, *[192] * 4, 320]
    expected, before, side_before = {"_conv_stem": (112, 32)}, 32, 112
    for block, (side, width) in enumerate(zip(sides, widths, strict=True)):
        inner = before if block == 0 else 6 * before
        if block:
            expected[f"_blocks.{block}._expand_conv"] = (side_before, inner)
        expected |= {f"_blocks.{block}._depthwise_conv": (side, inner), f"_blocks.{block}": (side, width)}
        before, side_before = width, side
    expected["_conv_head"] = (7, 1280)
    found = shapes_of("efficientnet_lite0", 224)[1]
    assert found == expected and list(found) == list(expected)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("resnet18", ["conv1", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        pytest.param(
            "googlenet", ["conv1", "conv3", "inception3b", "inception4e", "inception5b"], marks=pytest.mark.long
        ),
        # Its sums are of maps of both signs: the maps behind them, which are not, are shown
        pytest.param(
            "efficientnet_lite0",
            [*(f"_blocks.{block}._expand_conv" for block in (1, 3, 5, 11)), "_conv_head"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_study_shows_the_end_of_each_stage(name, shown):
    rows = models.layers(models.build(ModelConfig(name, width=0.125), (64, 64, 3), 10), (64, 64, 3))
    assert [row.name for row in models.looked_into(rows)] == shown


@pytest.mark.extra
@pytest.mark.parametrize("name", [name for name in models.EXPECTS if name != "efficientnet_lite0"])
def test_what_weights_expect_is_what_torchvision_says(name):
    torchvision = pytest.importorskip("torchvision")
    torch = pytest.importorskip("torch")
    expects, preset = models.EXPECTS[name], torchvision.models.get_model_weights(name).IMAGENET1K_V1.transforms()
    assert ([expects.size], [expects.shorter_side]) == (preset.crop_size, preset.resize_size)
    assert expects.interpolation == preset.interpolation.value
    images = np.random.default_rng(0).integers(0, 256, (2, expects.size, expects.size, 3), np.uint8)
    theirs = torchvision.transforms.functional.normalize(
        torch.from_numpy(images.transpose(0, 3, 1, 2).copy()) / 255, preset.mean, preset.std
    )
    if name in ("googlenet", "inception_v3"):
        model = getattr(torchvision.models, name)(weights=None, aux_logits=False, init_weights=False)
        model.transform_input = True  # as it is with these weights
        theirs = model._transform_input(theirs)
    ours = (images - np.array(expects.mean)) / np.array(expects.deviation)
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def in_torch(name, size):
    """The network for ten classes, as others have it."""
    if name == "efficientnet_lite0":
        reference = pytest.importorskip("efficientnet_lite_pytorch")
        # Its zeros around are those for one image size; it drops whole blocks, and we do not.
        form = {"image_size": size, "drop_connect_rate": 0.0, "batch_norm_momentum": 0.9}
        return reference.EfficientNet.from_name("efficientnet-lite0", num_classes=10, **form)
    torchvision = pytest.importorskip("torchvision")
    form = {} if name == "densenet121" else {"aux_logits": False, "transform_input": False, "init_weights": False}
    return getattr(torchvision.models, name)(weights=None, num_classes=10, **form)


@pytest.mark.extra
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("efficientnet_lite0", 37),  # with odd sizes, where the zeros around are others
        ("googlenet", 32),
        pytest.param("densenet121", 33, marks=pytest.mark.long),
        pytest.param("inception_v3", 75, marks=pytest.mark.long),
    ],
)
def test_logits_are_pytorchs(name, size):
    torch, module = pytest.importorskip("torch"), in_torch(name, size)
    from tests.models.torch_side import randomized

    randomized(module).eval()
    images = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    network = models.build(ModelConfig(name), (size, size, 3), 10)
    arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    variables = weights.variables_of(arrays, weights.like(network, (size, size, 3)))
    found = ops.jit(lambda x: network.apply(variables, x)[0], runs_once=True)(images)
    with torch.no_grad():
        expected = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.extra
@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "size"), [("densenet121", 64), ("efficientnet_lite0", 64), ("googlenet", 64), ("inception_v3", 107)]
)
def test_gradients_and_training_are_pytorchs(name, size):
    pytest.importorskip("torch")
    from tests.models.torch_side import assert_same

    assert_same(ModelConfig(name), in_torch(name, size), (size, size, 3), classes=10)
