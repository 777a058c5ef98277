"""Networks as others write them, under the one contract: the same numbers as their own call, maps in one layout."""

import functools
import hashlib
import os
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnjax.errors import InputError
from cnnjax.models import foreign, layers
from cnnjax.ops import jit

IMAGES = np.random.default_rng(0).normal(size=(3, 12, 16, 3)).astype(np.float32)


class LinenBlock(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, training: bool):
        y = nn.Conv(self.features, (3, 3))(x)
        y = nn.BatchNorm(use_running_average=not training)(y)
        return nn.relu(y + nn.Conv(self.features, (1, 1))(x))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, training: bool = False):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = LinenBlock(6)(x, training)
        x = x.mean((1, 2))
        return nn.Dense(5, name="head")(x)


class NNXNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 4, kernel_size=(3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.conv2 = nnx.Conv(4, 6, kernel_size=(3, 3), strides=2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.linear = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv1(x)))
        x = nnx.relu(self.conv2(x))
        return self.linear(self.dropout(x.mean(axis=(1, 2))))


def plain(weights, images):
    x = jax.nn.relu(jax.lax.conv_general_dilated(
        images, weights["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
    ))  # fmt: skip
    return x.mean((1, 2)) @ weights["dense"], {"first": x}


def drawn(network, images=IMAGES):
    return network.init(jax.random.key(0), images)


def test_a_linen_module():
    module = LinenNet()
    network = foreign.wrapped(module)
    variables = drawn(network)
    logits, maps = jit(network.apply)(variables, IMAGES)
    np.testing.assert_allclose(logits, module.apply(variables, IMAGES), rtol=1e-5, atol=1e-6)
    assert list(layers(network, (12, 16, 3))[0]) and [row.name for row in layers(network, (12, 16, 3))] == [
        "relu1", "LinenBlock_0", "head",
    ]  # fmt: skip
    assert maps["LinenBlock_0"].shape == (3, 6, 8, 6)
    rows = {row.name: row for row in layers(network, (12, 16, 3))}
    assert [row.kind for row in rows.values()] == ["conv", "sum", "dense"]
    assert rows["relu1"].kernel == "stem/kernel"
    assert sum(row.weights + row.biases for row in rows.values()) == sum(
        leaf.size for leaf in jax.tree.leaves(variables["params"])
    )
    (found, _), changed = network.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    wanted, theirs = module.apply(variables, IMAGES, training=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), changed, theirs)


@pytest.mark.parametrize(
    "given", [NNXNet, functools.partial(NNXNet), NNXNet(rngs=nnx.Rngs(0))], ids=["class", "partial", "module"]
)
def test_an_nnx_module(given):
    network = foreign.wrapped(given, "net")
    variables = drawn(network)
    weights = [network.init(jax.random.key(seed), IMAGES)["params"]["conv1"]["kernel"] for seed in (1, 2)]
    assert np.array_equal(*weights) == network.holds == isinstance(given, nnx.Module)
    module = NNXNet(rngs=nnx.Rngs(0))
    module.eval()
    logits, maps = jit(network.apply)(variables, IMAGES)
    np.testing.assert_allclose(logits, module(IMAGES), rtol=1e-4, atol=1e-5)
    assert {name: value.shape for name, value in maps.items()} == {"relu1": (3, 12, 16, 4), "relu2": (3, 6, 8, 6)}
    rows = layers(network, (12, 16, 3))
    assert [row.kind for row in rows] == ["conv", "conv", "dense"]
    assert rows[1].strides == (2, 2) and rows[0].kernel == "conv1/kernel"
    _, changed = network.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    assert not np.array_equal(changed["batch_stats"]["norm"]["mean"], variables["batch_stats"]["norm"]["mean"])


@pytest.mark.extra
def test_an_equinox_module():
    equinox = pytest.importorskip("equinox")

    class Net(equinox.Module):
        conv1: equinox.nn.Conv2d
        conv2: equinox.nn.Conv2d
        linear: equinox.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.conv1 = equinox.nn.Conv2d(3, 4, 3, padding=1, key=keys[0])
            self.conv2 = equinox.nn.Conv2d(4, 6, 3, stride=2, key=keys[1])
            self.linear = equinox.nn.Linear(6, 5, key=keys[2])

        def __call__(self, x):
            x = jax.nn.relu(self.conv1(x))
            x = jax.nn.relu(self.conv2(x))
            return self.linear(x.mean((1, 2)))

    module = Net(jax.random.key(0))
    network = foreign.wrapped(module)
    variables = drawn(network)
    jax.tree.map(np.testing.assert_array_equal, variables, network.init(jax.random.key(1), IMAGES))
    assert network.holds
    of_class = foreign.wrapped(functools.partial(Net))  # draws at every key what the module has of that key
    assert not of_class.holds
    other = foreign.wrapped(Net(jax.random.key(7))).own(IMAGES.shape[1:])
    jax.tree.map(np.testing.assert_array_equal, other, of_class.init(jax.random.key(7), IMAGES))
    assert set(variables["params"]) == {f"{layer}.{kind}" for layer in ("conv1", "conv2", "linear")
                                        for kind in ("weight", "bias")}  # fmt: skip
    logits, maps = jit(network.apply)(variables, IMAGES)
    first = jnp.moveaxis(jnp.asarray(IMAGES), -1, 1)
    np.testing.assert_allclose(logits, jax.vmap(module)(first), rtol=1e-4, atol=1e-5)
    wanted = jnp.moveaxis(jax.nn.relu(jax.vmap(module.conv1)(first)), 1, -1)
    np.testing.assert_allclose(maps["relu1"], wanted, rtol=1e-4, atol=1e-5)
    rows = layers(network, (12, 16, 3))
    assert [(row.kind, row.relu, row.kernel_axes) for row in rows[:2]] == [
        ("conv", 0, (2, 3, 1, 0)), ("conv", 1, (2, 3, 1, 0)),
    ]  # fmt: skip
    assert rows[1].output_shape == (5, 7, 6) and rows[1].fields[0].size == 5


def test_a_plain_function():
    weights = {"conv": jnp.ones((4, 3, 3, 3)) / 9, "dense": jnp.ones((4, 5))}
    variables = {"params": weights}
    network = foreign.wrapped(plain)
    logits, maps = network.apply(variables, IMAGES)
    np.testing.assert_array_equal(logits, plain(weights, IMAGES)[0])
    assert list(maps) == ["first"]
    closed = foreign.wrapped(lambda images: plain(weights, images))
    np.testing.assert_array_equal(closed.apply({"params": {}}, IMAGES)[0], logits)
    with pytest.raises(InputError, match="must be a module to have initial weights, and is a function"):
        closed.init(jax.random.key(0), IMAGES)


FILES = {
    "raises": ("1 / 0", "must be code that runs, and .* raises ZeroDivisionError: division by zero"),
    "lines": ("raise ValueError('one\\ntwo')", "raises ValueError: one$"),
    "exits": ("raise SystemExit(3)", "raises SystemExit: 3$"),
    "lacks": ("def other(x): return x", r"must name what .* holds \(other\), got 'NAME'"),
    "number": ("NAME = 3", "must be a module or a function of images, got int"),
    "class": ("import flax.linen as nn\nclass NAME(nn.Module): pass", "must be a network and not its class"),
    "three": (
        "def NAME(a, b, c): return a",
        r"must be a function of \(images\) or of \(weights, images\), and takes 3",
    ),
    "null": ("def NAME(x): \0", "must be code that runs, and .* raises SyntaxError"),
    "base": ("raise BaseException('no')", "must be code that runs, and .* raises BaseException: no$"),
    "builtin": ("NAME = max", "must name a network, and .*:NAME raises ValueError: no signature found"),
    "silent": (
        "class Own(Exception):\n    def __str__(self): raise ValueError\nraise Own",
        r"raises Own: \(no more is said\)$",
    ),
    "made": (
        "from flax import nnx\nclass NAME(nnx.Module):\n    def __init__(self, rngs): raise KeyError('x')",
        "must name a network, and .*:NAME raises KeyError: 'x'",
    ),
    "syntax": ("def NAME(:", "must be code that runs, and .* raises SyntaxError"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_holds_no_network_is_refused_in_one_line(tmp_path, name):
    code, message = FILES[name]
    path = tmp_path / "net.py"
    path.write_text(code)
    with pytest.raises(InputError, match=message) as refused:
        foreign.from_file(f"{path}:NAME")
    assert "\n" not in str(refused.value)


def test_a_file_is_run_with_what_stands_beside_it(tmp_path):
    (tmp_path / "beside.py").write_text("scale = 2.0")
    (tmp_path / "net.py").write_text(
        textwrap.dedent("""
        from beside import scale

        def net(images):
            return scale * images.mean((1, 2))
        """)
    )
    network, digest = foreign.from_file(f"{tmp_path / 'net.py'}:net")
    np.testing.assert_allclose(network.apply({"params": {}}, IMAGES)[0], 2 * IMAGES.mean((1, 2)), rtol=1e-5)
    assert len(digest) == 64
    (tmp_path / "folder.py").mkdir()
    for given in ("net.py", f"{tmp_path / 'none.py'}:net", f"{tmp_path / 'folder.py'}:net", "net.txt:net"):
        with pytest.raises(InputError, match="--network must"):
            foreign.from_file(given)


LOGITS = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("outputs", "got"),
    [
        (np.zeros((3, 4, 4, 2)), r"\(3, 4, 4, 2\) for 3 images"),
        (np.zeros(3), r"\(3,\) for 3 images"),
        (LOGITS[:1], r"\(1, 2\) for 3 images"),
        (np.zeros((3, 2), np.int32), "logits that are no floats but int32"),
        ((LOGITS, {1: LOGITS}), r"1: \(3, 2\) for 3 images"),
        ((LOGITS, {"a": LOGITS[0]}), r"'a': \(2,\) for 3 images"),
        ((LOGITS, {"a": 1.0}), r"'a': \(\) for 3 images"),
    ],
    ids=["maps", "numbers", "one", "integers", "unnamed", "map of no batch", "number"],
)
def test_outputs_that_are_no_logits_are_refused(outputs, got):
    network = foreign.wrapped(lambda images: jax.tree.map(jnp.asarray, outputs), "net")
    rule = r"net must return logits \[batch, classes\], or \(logits, dict of feature maps by name\), got "
    with pytest.raises(InputError, match=rule + got):
        network.apply({"params": {}}, IMAGES)


def test_what_is_run_is_what_the_file_holds_now_and_nothing_is_written(tmp_path):
    """Python's import takes what it has compiled of a file of the same size and time for the file itself."""
    path = tmp_path / "net.py"
    for factor in (2, 3):
        path.write_text(f"def net(images):\n    return {factor} * images.mean((1, 2))\n")
        os.utime(path, (1e9, 1e9))
        network, digest = foreign.from_file(f"{path}:net")
        np.testing.assert_allclose(network.apply({"params": {}}, IMAGES)[0], factor * IMAGES.mean((1, 2)), rtol=1e-5)
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(tmp_path.iterdir()) == [path]


def test_annotations_that_are_texts_are_understood(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\nimport flax.linen as nn\n\n"
        "@dataclasses.dataclass\nclass Size:\n    width: int = 4\n    kind: dataclasses.InitVar[int] = 0\n\n"
        "class Net(nn.Module):\n    size: Size\n    @nn.compact\n    def __call__(self, x):\n"
        "        return nn.Dense(self.size.width)(x.mean((1, 2)))\n\nnet = Net(Size())\n"
    )
    network, _ = foreign.from_file(f"{path}:net")
    assert network.apply(drawn(network), IMAGES)[0].shape == (3, 4)


def shrinking(x):
    """Two convolutions without padding, which leave nothing of fewer than 9 pixels."""
    for _ in range(2):
        x = nn.relu(nn.Conv(2, (5, 5), padding="VALID")(x))
    return nn.Dense(3)(x.mean((1, 2)))


def untold(x):
    return nn.Dense(3)(nn.BatchNorm(use_running_average=True)(x).mean((1, 2)))


def looking_aside(x):
    """Behind a head that begins at zero."""
    return nn.Dense(3, kernel_init=nn.initializers.zeros)((x - x.mean(0)).mean((1, 2)))


def raising(x):
    raise ValueError("no\nway")


def leaving(x):
    raise SystemExit("no way")


UNTRAINABLE = {
    shrinking: "images must be at least 9×9 pixels for net, got 8×8",
    untold: "net must take one of train, training, .*, for its batch statistics to be those of a training",
    looking_aside: "net must say the same of an image whatever stands beside it",
    raising: "net must take the images, and raises ValueError: no$",
    leaving: "net must take the images, and raises SystemExit: no way",
    lambda x: nn.Dense(4)(x.mean((1, 2))): "net must have an output for each of the 3 classes, and has 4",
    lambda x: nn.Dense(3)(x.mean((1, 2))) / 0 * 0: "net must say numbers of the images, and says NaN",
}


@pytest.mark.parametrize("body", UNTRAINABLE)
def test_a_network_that_cannot_be_trained_is_refused_in_one_line(body):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return body(x)

    with pytest.raises(InputError, match=UNTRAINABLE[body]) as refused:
        foreign.check_trainable(foreign.wrapped(Net(), "net"), (8, 8, 1), 3)
    assert "\n" not in str(refused.value)


def test_a_network_that_looks_at_its_neighbours_is_refused():
    network = foreign.wrapped(lambda images: (images - images.mean(0)).mean((1, 2)), "net")
    with pytest.raises(InputError, match="net must say the same of an image whatever stands beside it"):
        foreign.check_images_apart(network, {"params": {}}, IMAGES, "net")
    foreign.check_images_apart(foreign.wrapped(lambda images: images.mean((1, 2))), {"params": {}}, IMAGES, "net")
