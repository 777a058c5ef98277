"""How a known network is written: layer after layer, each under the name that its weights bear in published files.

The parameters of the layer that PyTorch calls `layer1.0.conv1` are `params["layer1.0.conv1"]`, flat, so that weights
go in and out by name alone (`cnnjax.models.weights`).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from cnnjax import ops
from cnnjax.config import ModelConfig
from cnnjax.errors import InputError, named
from cnnjax.geometry import Ints, Padding, Rounding, as_ints

Initializer = Callable[..., Array]
HE = nn.initializers.he_normal()  # N(0, 2 / inputs) (He et al. 2015)

LARGEST_TRIED = 1024  # pixels of a side; no network asks for more

Mask = Num[Array | np.ndarray, " batch"] | Bool[Array | np.ndarray, " batch"] | None


@dataclasses.dataclass(frozen=True)
class Expects:
    """The images that published weights of a network are for; as it stands, those of torchvision for ImageNet.

    An image is scaled so that its shorter side has `shorter_side` pixels, the centre of `size` × `size` is cut, and of
    each channel (red, green, blue) `mean` is subtracted and the rest divided by `deviation`, both in grey levels from 0
    to 255.
    """

    size: int = 224
    shorter_side: int = 256
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    deviation: tuple[float, ...] = (58.395, 57.12, 57.375)


class Layers:
    """The layers of one call of a network; what is worth looking at is kept in `feature_maps`, in network order."""

    def __init__(
        self,
        module: nn.Module,
        train: bool,
        mask: Mask,
        dropout_rate: Any,
        batch_norm_momentum: Any,
        frozen: tuple[str, ...] = (),
    ):
        self._module, self._train, self._mask, self._frozen = module, train, mask, frozen
        self._dropout_rate, self._momentum = dropout_rate, batch_norm_momentum
        self.feature_maps: dict[str, Array] = {}

    def conv(
        self,
        name: str,
        x: Array,
        width: int,
        window: Ints,
        *,
        strides: Ints = 1,
        padding: Padding = 0,
        groups: int = 1,
        bias: bool = True,
        rounding: Rounding = "floor",
        kernel_init: Initializer = HE,
    ) -> Array:
        """A convolution to `width` channels; the padding is zeros on each side."""
        with named(name):
            return Convolution(width, window, strides, padding, groups, bias, rounding, kernel_init, name=name)(x)

    def batch_norm(self, name: str, x: Array, *, epsilon: float = 1e-5) -> Array:
        train = self._train and not is_of(name, self._frozen)
        return BatchNorm(epsilon, name=name)(x, train=train, mask=self._mask, momentum=self._momentum)

    def relu(self, name: str, x: Array, *, most: float | None = None) -> Array:
        """The ReLU, bounded by `most` (6 for ReLU6), kept as the feature map `name`."""
        return self.keep(name, jax.nn.relu(x) if most is None else jnp.minimum(jax.nn.relu(x), most))

    def max_pool(
        self, name: str, x: Array, window: int, strides: int, *, padding: Padding = 0, rounding: Rounding = "floor"
    ) -> Array:
        """Rounding "ceil" is PyTorch's `ceil_mode`. Kept as the feature map `name`."""
        with named(name):
            return self.keep(name, ops.max_pool(x, window, strides=strides, padding=padding, rounding=rounding))

    def avg_pool(self, name: str, x: Array, window: int, strides: int, *, padding: int = 0) -> Array:
        """The zeros around count, as they do in PyTorch unless told otherwise. Kept as the feature map `name`."""
        around = [(0, 0), *[(padding, padding)] * (x.ndim - 2), (0, 0)]
        with named(name):
            return self.keep(name, ops.avg_pool(jnp.pad(x, around), window, strides=strides))

    def concatenate(self, name: str, parts: Sequence[Array]) -> Array:
        """The channels of all parts, kept as the feature map `name`."""
        return self.keep(name, jnp.concatenate(parts, axis=-1))

    def keep(self, name: str, x: Array) -> Array:
        """`x`, which `apply` returns among the feature maps."""
        self.feature_maps[name] = x
        return x

    def dropout(self, x: Array) -> Array:
        """Drops units in a training, by the one rate of all layers."""
        if not self._train:
            return x
        return ops.dropout(self._module.make_rng("dropout"), x, self._dropout_rate)

    def dense(self, name: str, x: Array, units: int) -> Array:
        return nn.Dense(units, kernel_init=HE, name=name)(x)


class KnownNetwork(nn.Module):
    """A network that the field knows by name; `apply` returns (logits, feature_maps), as `ConvNet`'s does.

    Attributes:
        body: (layers, images) -> logits, in terms of `Layers`.
        frozen: layers (`is_of`) whose batch normalization keeps to its running statistics in a training too.
    """

    body: Callable[[Layers, Array], Array]
    frozen: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        images: Float[Array | np.ndarray, "batch height width channels"],
        *,
        train: bool = False,
        mask: Mask = None,
        dropout_rate: float | Float[Array, ""] = 0.0,
        batch_norm_momentum: float | Float[Array, ""] = 0.9,
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        """The logits and the feature maps of each image; arguments as `ConvNet`'s."""
        layers = Layers(self, train, mask, dropout_rate, batch_norm_momentum, self.frozen)
        logits = self.body(layers, jnp.asarray(images))
        return logits, layers.feature_maps


def known_network(body: Callable[..., Array], config: ModelConfig, num_classes: int, **form: Any) -> KnownNetwork:
    """The network whose `body` takes, besides layers and images, `width`, `classes` and what is in `form`."""
    width = 1.0 if config.width is None else config.width
    return KnownNetwork(functools.partial(body, width=width, classes=num_classes, **form))


class Convolution(nn.Module):
    """`ops.conv` with its parameters, kernel [height width in/groups out] and bias [out]."""

    width: int
    window: Ints
    strides: Ints = 1
    padding: Padding = 0
    groups: int = 1
    bias: bool = True
    rounding: Rounding = "floor"
    kernel_init: Initializer = HE

    @nn.compact
    def __call__(self, x):
        shape = *as_ints(self.window, x.ndim - 2, "window"), x.shape[-1] // self.groups, self.width
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        maps = ops.conv(
            x, kernel, strides=self.strides, padding=self.padding, groups=self.groups, rounding=self.rounding
        )
        if not self.bias:
            return maps
        return ops.add_bias(maps, self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32))


class BatchNorm(nn.Module):
    """Batch normalization over all places of the images that count.

    Normalized is by the variance of the batch, divided by its number of values n; among the running statistics goes
    that divided by n - 1, as in PyTorch.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, *, train: bool, mask: Mask, momentum: Any):
        """`momentum` is the share of the running statistics that a step keeps: 1 minus PyTorch's."""
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(channels, jnp.float32))
        running_variance = self.variable("batch_stats", "var", lambda: jnp.ones(channels, jnp.float32))
        if not train:
            factor = scale * jax.lax.rsqrt(running_variance.value + self.epsilon)
            return ((x - running_mean.value) * factor + bias).astype(x.dtype)
        normed = ops.batch_norm(x, scale, bias, mask, epsilon=self.epsilon)
        if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
            unbiased = normed.variance * normed.count / jnp.maximum(normed.count - 1, 1)
            running_mean.value = momentum * running_mean.value + (1 - momentum) * normed.mean
            running_variance.value = momentum * running_variance.value + (1 - momentum) * unbiased
        return normed.values.astype(x.dtype)


def is_of(layer: str, names: tuple[str, ...]) -> bool:
    """Whether the layer is among these names, or inside of one: `layer1.0.conv1` is of `layer1`."""
    return any(layer == name or layer.startswith(f"{name}.") for name in names)


def dotted(path: tuple[Any, ...]) -> str:
    """A path in a tree of parameters in words: conv1.kernel."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def flattened(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch units"]:
    """Channels before rows and columns, the order in which PyTorch's dense weights are."""
    return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)


def scaled(width: float, channels: int) -> int:
    """`channels` times `width`, at least 1."""
    return max(1, round(width * channels))


def check_images(network: nn.Module, name: str, image_shape: tuple[int, ...]) -> None:
    """Raises InputError where the network does not take images of that shape (height, width, channels).

    Of a known network it says the smallest size, which is found by trying.
    """
    misfit = _misfit(network, image_shape)
    if misfit is None:
        return
    height, width, channels = image_shape
    least = None
    if isinstance(network, KnownNetwork):
        least = smallest_side(lambda side: _misfit(network, (side, side, channels)) is None, min(height, width))
    if least is None:
        raise misfit
    raise InputError(f"images must be at least {least}×{least} pixels for {name}, got {height}×{width}")


def _misfit(network: nn.Module, image_shape: tuple[int, ...]) -> InputError | None:
    try:
        jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    except InputError as error:
        return error
    return None


def smallest_side(fits: Callable[[int], bool], too_small: int) -> int | None:
    """The side of the smallest square images that fit; None where size is not what is wrong.

    Args:
        fits: whether images of a side do.
        too_small: a side that does not, nor do smaller ones.
    """
    enough = too_small + 1
    while not fits(enough):
        if enough > LARGEST_TRIED:
            return None
        too_small, enough = enough, 2 * enough
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        if fits(middle):
            enough = middle
        else:
            too_small = middle
    return enough
