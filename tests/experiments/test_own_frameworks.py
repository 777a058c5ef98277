"""Networks as the documentation of their frameworks writes them go through the scripts from the command line."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from cnnjax.cli import parse_options
from cnnjax.models import foreign
from experiments import activations, attribution, classify, invariance, maximization, occlusion
from tests.experiments.test_filter_evolution import Quiet

# "MNIST tutorial" of Flax, with fewer maps and units.
NNX = """
from functools import partial

from flax import nnx


class CNN(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 4, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.dropout1 = nnx.Dropout(rate=0.025, rngs=rngs)
        self.conv2 = nnx.Conv(4, 6, kernel_size=(3, 3), rngs=rngs)
        self.batch_norm2 = nnx.BatchNorm(6, rngs=rngs)
        self.avg_pool = partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.linear1 = nnx.Linear(294, 16, rngs=rngs)
        self.dropout2 = nnx.Dropout(rate=0.025, rngs=rngs)
        self.linear2 = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x, rngs: nnx.Rngs | None = None):
        x = self.avg_pool(nnx.relu(self.batch_norm1(self.dropout1(self.conv1(x), rngs=rngs))))
        x = self.avg_pool(nnx.relu(self.batch_norm2(self.conv2(x))))
        x = x.reshape(x.shape[0], -1)
        x = nnx.relu(self.dropout2(self.linear1(x), rngs=rngs))
        return self.linear2(x)
"""

# "CNN on MNIST" of Equinox, with fewer units.
EQUINOX = """
import equinox as eqx
import jax
import jax.numpy as jnp


class CNN(eqx.Module):
    layers: list

    def __init__(self, key):
        key1, key2, key3, key4 = jax.random.split(key, 4)
        self.layers = [
            eqx.nn.Conv2d(1, 3, kernel_size=4, key=key1),
            eqx.nn.MaxPool2d(kernel_size=2),
            jax.nn.relu,
            jnp.ravel,
            eqx.nn.Linear(1728, 16, key=key2),
            jax.nn.sigmoid,
            eqx.nn.Linear(16, 8, key=key3),
            jax.nn.relu,
            eqx.nn.Linear(8, 3, key=key4),
            jax.nn.log_softmax,
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


model = CNN(jax.random.key(0))
"""

# SqueezeNet 1.1 as torchvision computes it, of torchvision's own weights.
SQUEEZENET = """
import jax
import jax.numpy as jnp
from jax import lax


def conv(weights, name, x, stride=1, padding=0):
    x = lax.conv_general_dilated(
        x, weights[f"{name}.weight"], (stride, stride), [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )
    return jax.nn.relu(x + weights[f"{name}.bias"])


def max_pool(x):
    ends = [(0, 2 * -(-(size - 3) // 2) + 3 - size) for size in x.shape[1:3]]  # ceil_mode
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), *ends, (0, 0)])


def fire(weights, name, x):
    x = conv(weights, f"{name}.squeeze", x)
    sides = [conv(weights, f"{name}.expand1x1", x), conv(weights, f"{name}.expand3x3", x, padding=1)]
    return jnp.concatenate(sides, axis=-1)


def net(weights, images):
    x = max_pool(conv(weights, "features.0", images, stride=2))
    for fires in ((3, 4), (6, 7), (9, 10, 11, 12)):
        for number in fires:
            x = fire(weights, f"features.{number}", x)
        x = max_pool(x) if fires[-1] < 12 else x
    return conv(weights, "classifier.1", x).mean((1, 2))
"""

SCRIPTS = {
    "activations": (activations, ["--random-maps", "2", "--count", "2"]),
    "occlusion": (occlusion, ["--images", "0", "--others", "1", "--tested", "2", "--step", "7"]),
    "attribution": (attribution, ["--images", "0", "--steps", "2", "--samples", "2", "--sanity-images", "1"]),
    "invariance": (
        invariance,
        ["--images", "0", "1", "--per-class", "0", "--translation", "-1", "1", "3", "--scale", "1", "1.2", "2",
         "--rotation", "0", "90", "2"],
    ),
    "maximization": (maximization, ["--units", "1", "--steps", "2"]),
    "classify": (classify, ["--shown", "2"]),
}  # fmt: skip


def through_every_script(folder, code, name, arrays, image_shape):
    """The figures that the scripts leave, of images of noise."""
    (folder / "net.py").write_text(code)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (9, *image_shape), np.uint8)
    labels = np.arange(9) % 3
    np.savez(folder / "images.npz", x_train=images, y_train=labels, x_test=images[::-1], y_test=labels[::-1])
    save_file(arrays, folder / "net.safetensors")
    words = ["--network", f"{folder / 'net.py'}:{name}", "--weights", str(folder / "net.safetensors")]
    words += ["--data.npz", str(folder / "images.npz"), "--workdir", str(folder / "looked")]
    pictures = {}
    for script, (module, own) in SCRIPTS.items():
        pictures[script] = module.main(parse_options([*words, *own], module.Options()), Quiet())
        assert all(picture.is_file() for picture in pictures[script])
    return {script: [picture.stem for picture in of] for script, of in pictures.items()}


@pytest.mark.long
def test_flax_nnx(tmp_path):
    (tmp_path / "given.py").write_text(NNX)
    network, _ = foreign.from_file(f"{tmp_path / 'given.py'}:CNN")
    arrays = foreign.arrays_of(network.init(jax.random.key(1), np.zeros((1, 28, 28, 1), np.float32)))
    assert arrays["params.conv1.kernel"].shape == (3, 3, 1, 4) and "batch_stats.batch_norm2.var" in arrays
    pictures = through_every_script(tmp_path, NNX, "CNN", arrays, (28, 28, 1))
    assert pictures == {
        "activations": ["activations_relu1", "activations_relu2"],
        "occlusion": ["occlusion"],
        "attribution": ["attribution", "attribution_sanity"],
        "invariance": ["invariance"],
        "maximization": ["maximization"],
        "classify": ["classify", "confusion"],
    }


@pytest.mark.extra
def test_equinox(tmp_path):
    pytest.importorskip("equinox")
    (tmp_path / "given.py").write_text(EQUINOX)
    network, _ = foreign.from_file(f"{tmp_path / 'given.py'}:model")
    arrays = foreign.arrays_of(network.own((28, 28, 1)))
    assert arrays["params.layers.0.weight"].shape == (3, 1, 4, 4)
    pictures = through_every_script(tmp_path, EQUINOX, "model", arrays, (28, 28, 1))
    assert pictures["activations"] == ["activations_relu1"] and pictures["classify"] == ["classify", "confusion"]
    with np.load(tmp_path / "looked/figures/epoch-0/attribution.npz") as found:
        assert "gradient" in found and "deconvnet" not in found  # which has no rule for the sigmoid
    with np.load(tmp_path / "looked/figures/epoch-0/attribution_sanity.npz") as found:
        # The module holds its weights and draws none: with its numbers in another order the maps are others.
        assert found["gradient-rank"][0] == 1 and (found["gradient-rank"][1:] < 0.9).all()


@pytest.mark.extra
def test_squeezenet_of_torchvision_as_a_function(tmp_path):
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    torch.manual_seed(0)
    theirs = torchvision.models.squeezenet1_1(weights=None, num_classes=3).eval()
    arrays = {name: np.ascontiguousarray(array.numpy()) for name, array in theirs.state_dict().items()}
    (tmp_path / "given.py").write_text(SQUEEZENET)
    network, _ = foreign.from_file(f"{tmp_path / 'given.py'}:net")
    images = np.random.default_rng(1).normal(size=(2, 38, 35, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(np.moveaxis(images, -1, 1).copy())).numpy()
    logits, _ = network.apply(foreign.variables_from(network, arrays, (38, 35, 3)), images)
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)
    pictures = through_every_script(tmp_path, SQUEEZENET, "net", arrays, (32, 32, 3))
    assert pictures["attribution"] == ["attribution", "attribution_sanity"] and pictures["occlusion"] == ["occlusion"]
