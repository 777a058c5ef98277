"""Weights in PyTorch's layout and names, without PyTorch: in, out, and what is said of those that do not belong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.config import ModelConfig
from cnnjax.errors import InputError
from cnnjax.models import weights
from cnnjax.models.building import KnownNetwork

SHAPE = (8, 8, 3)
CHAIN = ModelConfig("lenet", widths=(3, 4), filters=(3, 3), paddings=(1, 1), pools=(2, 2), dense=(5,), norm="batch")


def body(layers, x):
    """One layer of each kind, under names as published files have them."""
    x = layers.conv("features.denselayer1.conv1", x, 4, 3, padding=1, bias=False)
    x = layers.relu("conv1", layers.batch_norm("features.denselayer1.norm1", x))
    x = layers.relu("conv2", layers.conv("features.depthwise", x, 8, 3, groups=4))
    x = layers.dense("classifier.0", jnp.moveaxis(x, -1, 1).reshape(len(x), -1), 6)
    return layers.dense("classifier.6", x, 3)


NETWORK = KnownNetwork(body)


def variables_of_random_numbers(network, seed=0):
    """Every array with its own numbers, positive for the variances."""
    generator = np.random.default_rng(seed)
    like = weights.like(network, SHAPE)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.uniform(0.1, 1, leaf.shape), jnp.float32), like)


VARIABLES = variables_of_random_numbers(NETWORK)
ARRAYS = weights.named(VARIABLES)
LIKE = weights.like(NETWORK, SHAPE)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_names_and_shapes_are_pytorchs():
    assert {name: array.shape for name, array in ARRAYS.items()} == {
        "features.denselayer1.conv1.weight": (4, 3, 3, 3),
        "features.denselayer1.norm1.weight": (4,),
        "features.denselayer1.norm1.bias": (4,),
        "features.denselayer1.norm1.running_mean": (4,),
        "features.denselayer1.norm1.running_var": (4,),
        "features.depthwise.weight": (8, 1, 3, 3),
        "features.depthwise.bias": (8,),
        "classifier.0.weight": (6, 8 * 6 * 6),
        "classifier.0.bias": (6,),
        "classifier.6.weight": (3, 6),
        "classifier.6.bias": (3,),
    }
    assert weights.shapes(VARIABLES) == weights.shapes(LIKE) == {name: array.shape for name, array in ARRAYS.items()}
    kernel = np.asarray(VARIABLES["params"]["features.denselayer1.conv1"]["kernel"])
    assert ARRAYS["features.denselayer1.conv1.weight"][3, 2, 0, 1] == kernel[0, 1, 2, 3]


def test_what_comes_in_goes_out_with_every_bit():
    same(weights.variables_of(ARRAYS, LIKE), VARIABLES)
    same(weights.named(weights.variables_of(ARRAYS, LIKE)), ARRAYS)


@pytest.mark.parametrize(
    ("config", "layer", "shape"),
    [
        (CHAIN, "fc3", (2, 2, 4)),
        (ModelConfig("mlp", dense=(4,)), "fc1", SHAPE),
        (ModelConfig("mlp", dense=()), "fc1", SHAPE),
    ],
)
def test_of_a_chain_the_first_dense_layer_takes_the_map_in_pytorchs_order(config, layer, shape):
    network = models.build(config, SHAPE, 3)
    flattened = weights.flattened_maps(network, SHAPE)
    assert flattened == {layer: shape}
    variables = variables_of_random_numbers(network)
    arrays = weights.named(variables, flattened)
    height, width, channels = shape
    kernel = np.asarray(variables["params"][layer]["kernel"])
    for row, column, channel in np.ndindex(shape):
        theirs = arrays[f"{layer}.weight"][:, (channel * height + row) * width + column]
        np.testing.assert_array_equal(theirs, kernel[(row * width + column) * channels + channel])
    same(weights.variables_of(arrays, weights.like(network, SHAPE), flattened), variables)


def test_a_known_network_flattens_as_pytorch_does_already():
    assert weights.flattened_maps(NETWORK, SHAPE) == {}


def renamed(arrays, *pairs):
    return {
        next((name.replace(*pair) for pair in pairs if pair[0] in name), name): array for name, array in arrays.items()
    }


@pytest.mark.parametrize(
    "arrays",
    [
        renamed(ARRAYS, ("", "module.")) and {f"module.{name}": array for name, array in ARRAYS.items()},
        renamed(ARRAYS, ("norm1.", "norm.1."), ("conv1.", "conv.1.")),
        renamed(ARRAYS, ("classifier.0", "pre_logits.fc1"), ("classifier.6", "head.fc")),
        renamed(ARRAYS, ("classifier.0", "pre_logits.fc1"), ("classifier.6", "head.fc"))
        | {"pre_logits.fc1.weight": ARRAYS["classifier.0.weight"].reshape(6, 8, 6, 6)},
        ARRAYS | {"features.denselayer1.norm1.num_batches_tracked": np.int64(3)},
        dict(reversed(ARRAYS.items())),
    ],
    ids=["DataParallel", "DenseNet", "timm", "timm's convolutions", "counts of batches", "another order"],
)
def test_other_names_of_the_same_arrays_are_known(arrays):
    said = []
    same(weights.variables_of(arrays, LIKE, say=said.append), VARIABLES)
    assert said == []


def test_auxiliary_heads_are_left_out_with_a_word():
    more = {f"{head}.fc.weight": np.ones((2, 2), np.float32) for head in ("aux1", "aux2", "AuxLogits")}
    said = []
    same(weights.variables_of(ARRAYS | more, LIKE, called="--weights a", say=said.append), VARIABLES)
    assert said == ["--weights a: 3 arrays of auxiliary heads are left out (AuxLogits, aux1, aux2)"]
    with_prefix = {f"module.{name}": array for name, array in (ARRAYS | more).items()}
    same(weights.variables_of(with_prefix, LIKE, say=said.append), VARIABLES)
    assert said[1].endswith("(AuxLogits, aux1, aux2)")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_another_precision_becomes_float32_with_a_word(kind):
    rounded = {name: array.astype(jnp.dtype(kind)) for name, array in ARRAYS.items()}
    said = []
    found = weights.variables_of(rounded, LIKE, say=said.append)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    same(weights.named(found), {name: array.astype(np.float32) for name, array in rounded.items()})
    assert said == [f"the weights: {kind} became float32"]


def changed(name, change):
    array = ARRAYS[name].copy()
    array.flat[-1] = change
    return {name: array}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed("classifier.0.weight", np.nan),
            "classifier.0.weight must be finite numbers, and has a NaN or an infini",
        ),
        (changed("features.depthwise.bias", -np.inf), "features.depthwise.bias must be finite numbers, and has a NaN"),
        (
            {"classifier.6.bias": np.full(3, 1e300)},
            "classifier.6.bias must be finite numbers, and has a NaN or an infi",
        ),
        (
            changed("features.denselayer1.norm1.running_var", -1),
            "norm1.running_var must be variances of at least 0, got",
        ),
        ({"classifier.6.bias": np.arange(3)}, "classifier.6.bias must be of floats, got int64"),
        ({"classifier.6.bias": np.array(["a", "b", "c"])}, "classifier.6.bias must be of floats, got <U1"),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(change, message):
    with pytest.raises(InputError, match=f"^FILE: .*{message}"):
        weights.variables_of(ARRAYS | change, LIKE, called="FILE")


def test_everything_that_does_not_belong_is_said_at_once():
    arrays = {name: array for name, array in ARRAYS.items() if "depthwise" not in name}
    arrays |= {"classifier.6.weight": np.ones((6, 3), np.float32), "other.weight": np.ones(1), "x\n": np.ones(1)}
    with pytest.raises(InputError) as error:
        weights.variables_of(arrays, LIKE, called="FILE")
    assert str(error.value) == (
        "FILE must hold the network's arrays; missing: features.depthwise.bias, features.depthwise.weight; "
        "unexpected: other.weight, x\\n; of another shape: classifier.6.weight [6, 3] for [3, 6]; "
        "they look like no known network"
    )


def test_the_report_is_of_bounded_length():
    arrays = {f"{number}{'x' * 500}": np.ones(1) for number in range(1000)}
    with pytest.raises(InputError) as error:
        weights.variables_of(arrays, LIKE)
    assert "and 996 more" in str(error.value) and "and 7 more" in str(error.value) and len(str(error.value)) < 1000


def test_two_names_of_one_array_are_refused():
    arrays = ARRAYS | renamed({"features.denselayer1.conv1.weight": np.ones((4, 3, 3, 3))}, ("conv1.", "conv.1."))
    with pytest.raises(InputError, match="twice: features.denselayer1.conv.1.weight"):
        weights.variables_of(arrays, LIKE)


def test_nothing_is_taken_by_its_place_or_its_size():
    """Two arrays of one shape under each other's names come to each other's places; a transposed one is refused."""
    network = KnownNetwork(lambda layers, x: layers.dense("b", layers.dense("a", x.mean((1, 2)), 3), 3))
    variables, like = variables_of_random_numbers(network), weights.like(network, SHAPE)
    arrays = weights.named(variables)
    swapped = {
        {"a.weight": "b.weight", "b.weight": "a.weight"}.get(name, name): array for name, array in arrays.items()
    }
    found = weights.variables_of(swapped, like)
    np.testing.assert_array_equal(found["params"]["a"]["kernel"], variables["params"]["b"]["kernel"])
    flat = arrays | {"a.weight": arrays["a.weight"].reshape(9)}
    with pytest.raises(InputError, match=r"of another shape: a.weight \[9\] for \[3, 3\]"):
        weights.variables_of(flat, like)


def test_a_kernel_of_many_blocks_comes_whole_and_a_nan_anywhere_in_it_is_found():
    network = KnownNetwork(lambda layers, x: layers.dense("b", layers.dense("a", x.reshape(len(x), -1), 601), 2))
    like = weights.like(network, (23, 23, 1))
    generator = np.random.default_rng(3)
    arrays = {name: generator.normal(size=shape).astype(np.float32) for name, shape in weights.shapes(like).items()}
    kernel = weights.variables_of(arrays, like)["params"]["a"]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["a.weight"].T)
    for place in ((0, 0), (600, 528), (255, 256), (256, 255), (300, 528)):
        broken = arrays["a.weight"].copy()
        broken[place] = np.nan
        with pytest.raises(InputError, match="a.weight must be finite numbers"):
            weights.variables_of(arrays | {"a.weight": broken}, like)


def test_what_was_read_is_apart_from_the_array_that_it_was_read_from():
    arrays = {name: array.copy() for name, array in ARRAYS.items()}
    found = weights.variables_of(arrays, LIKE)
    for array in arrays.values():
        array[...] = 0
    same(found, VARIABLES)


def test_a_kernel_whose_axes_are_in_order_already_is_apart_too():
    """JAX takes an array that begins at a multiple of 64 bytes as it is, without a copy."""
    network = KnownNetwork(lambda layers, x: layers.dense("a", x.reshape(len(x), -1), 1))
    like = weights.like(network, (64, 64, 1))
    raw = np.ones(4096 + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    arrays = {"a.weight": raw[start : start + 4096].reshape(1, 4096), "a.bias": np.ones(1, np.float32)}
    found = weights.variables_of(arrays, like)["params"]["a"]["kernel"]
    raw[...] = 0
    np.testing.assert_array_equal(found, np.ones((4096, 1)))


def test_a_known_network_is_recognized_by_names_and_shapes():
    shapes = weights.shapes(weights.like(models.build(ModelConfig("resnet18"), (64, 64, 3), 1000), (64, 64, 3)))
    assert weights.look_alike(shapes) == "they look like resnet18"
    narrow = ModelConfig("resnet18", width=0.25)
    of_ten = weights.layout(dataclasses.replace(narrow, width=None), (64, 64, 3), 10)
    assert (
        weights.look_alike({f"module.{name}": shape for name, shape in of_ten.shapes.items()})
        == "they look like resnet18"
    )
    assert (
        weights.look_alike(weights.layout(narrow, (64, 64, 3), 10).shapes) == "they look like resnet18 of other widths"
    )
    del shapes["fc.bias"]
    assert weights.look_alike(shapes) == "they look like no known network"


@pytest.mark.parametrize(
    ("config", "head"),
    [(ModelConfig("resnet18", width=0.1), {"fc.weight", "fc.bias"}), (CHAIN, {"fc4.weight", "fc4.bias"})],
)
def test_the_head_is_what_depends_on_the_classes(config, head):
    known = weights.layout(config, (32, 32, 3), 7)
    assert known.head == head
    arrays = {name: np.empty(shape) for name, shape in known.shapes.items()}
    assert weights.classes_of(arrays, weights.layout(config, (32, 32, 3), 3)) == 7
    assert weights.classes_of({}, known) is None
