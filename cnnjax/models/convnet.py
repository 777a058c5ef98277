"""The shape that every network of the lecture shares: convolutions, each with ReLU, pool and norm, then dense layers.

A network is this one Flax module with other numbers; the numbers stand in the files beside this one.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from cnnjax import geometry, ops
from cnnjax.config import ModelConfig
from cnnjax.errors import InputError, named
from cnnjax.models.building import is_of

Init = Literal["small_first", "he", "paper"]
Norm = Literal["none", "lrn", "batch"]


@dataclasses.dataclass(frozen=True)
class Pool:
    """A max pool; -inf outside the border, so that a switch never points there."""

    window: int
    stride: int
    padding: int = 0


@dataclasses.dataclass(frozen=True)
class ConvLayer:
    """One convolution, its ReLU, and what follows in the paper's order: pool, then norm."""

    width: int
    filter: int
    stride: int = 1
    padding: int = 0
    pool: Pool | None = None
    norm: Norm = "none"


class ConvNet(nn.Module):
    """Convolutions and dense layers; `apply` returns (logits, feature_maps).

    feature_maps is in network order: conv1, pool1, norm1, conv2, ..., fc6, ...; conv* and fc* are taken after the
    ReLU. The logits are the last layer and not among them.
    """

    convolutions: tuple[ConvLayer, ...]
    dense: tuple[int, ...]
    num_classes: int
    rounding: geometry.Rounding = "floor"
    initializer: Init = "paper"
    frozen: tuple[str, ...] = ()  # layers whose batch normalization keeps to its running statistics in a training too

    @nn.compact
    def __call__(
        self,
        images: Float[Array | np.ndarray, "batch height width channels"],
        *,
        train: bool = False,
        mask: Num[Array | np.ndarray, " batch"] | Bool[Array | np.ndarray, " batch"] | None = None,
        dropout_rate: float | Float[Array, ""] = 0.0,
        batch_norm_momentum: float | Float[Array, ""] = 0.9,
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        """The logits and the feature maps of each image.

        Args:
            images: in units of the network's input, mean subtracted.
            train: normalize by the statistics of the batch and drop units; a "dropout" key is needed.
            mask: 0 for a row that is padding, which then counts in no statistics of the batch; None: every row counts.
            batch_norm_momentum: share of the running statistics that is kept where `batch_stats` is mutable; the rest
                are the batch's. The variance among them is that of the batch itself, divided by its number of values
                (PyTorch: by one less), and PyTorch's "momentum" is 1 minus this.
        """
        hint = "; or leave the last pixels out with model.rounding floor" if self.rounding == "exact" else ""
        feature_maps: dict[str, Array] = {}
        x = jnp.asarray(images)
        for number, layer in enumerate(self.convolutions, 1):
            kernel_init = kernel_initializer(self.initializer, number)
            with named(f"conv{number}", hint):
                x = jax.nn.relu(_Convolution(layer, self.rounding, kernel_init, name=f"conv{number}")(x))
            feature_maps[f"conv{number}"] = x
            if layer.pool is not None:
                pool = layer.pool
                with named(f"pool{number}", hint):
                    x = ops.max_pool(x, pool.window, strides=pool.stride, padding=pool.padding, rounding=self.rounding)
                feature_maps[f"pool{number}"] = x
            if layer.norm == "lrn":
                x = feature_maps[f"norm{number}"] = ops.local_response_norm(x)
            elif layer.norm == "batch":
                # Flax's fast variance, mean(x^2) - mean(x)^2, has no right digit where the mean is 1000 deviations.
                normalize = nn.BatchNorm(
                    use_running_average=not train or is_of(f"norm{number}", self.frozen),
                    momentum=batch_norm_momentum,  # pyright: ignore[reportArgumentType] - may be traced
                    use_fast_variance=False,
                    name=f"norm{number}",
                )
                counted = None if mask is None else jnp.reshape(mask, (-1,) + (1,) * (x.ndim - 1))
                x = feature_maps[f"norm{number}"] = normalize(x, mask=counted)
        x = x.reshape(x.shape[0], -1)
        for number, units in enumerate(self.dense, len(self.convolutions) + 1):
            kernel_init = kernel_initializer(self.initializer, number)
            x = jax.nn.relu(nn.Dense(units, kernel_init=kernel_init, name=f"fc{number}")(x))
            feature_maps[f"fc{number}"] = x
            if train:
                x = ops.dropout(self.make_rng("dropout"), x, dropout_rate)
        number = len(self.convolutions) + len(self.dense) + 1
        kernel_init = kernel_initializer(self.initializer, number)
        return nn.Dense(self.num_classes, kernel_init=kernel_init, name=f"fc{number}")(x), feature_maps


class _Convolution(nn.Module):
    """`ops.conv` with its parameters, kernel [height width in out] and bias [out]."""

    layer: ConvLayer
    rounding: geometry.Rounding
    kernel_init: Callable[..., Array]

    @nn.compact
    def __call__(self, x):
        layer = self.layer
        shape = layer.filter, layer.filter, x.shape[-1], layer.width
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (layer.width,), jnp.float32)
        maps = ops.conv(x, kernel, strides=layer.stride, padding=layer.padding, rounding=self.rounding)
        return ops.add_bias(maps, bias)


def kernel_initializer(init: Init, number: int) -> Callable[..., Array]:
    """The initial weights of layer `number` (from 1).

    "paper": N(0, 0.01^2), as "all weights initialised to 1e-2" has to be read (Zeiler & Fergus 2014, section 3).
    "he": N(0, 2 / inputs) (He et al. 2015). "small_first": the paper's in layer 1, whose filters then start far below
    their later size and are seen to grow, and He's above, so that small data sets train.
    """
    if init == "paper" or (init == "small_first" and number == 1):
        return nn.initializers.normal(0.01)
    return nn.initializers.he_normal()


def configured(config: ModelConfig, convolutions: tuple[ConvLayer, ...]) -> tuple[ConvLayer, ...]:
    """The network's own convolutions with what `config` says instead.

    Other `widths` may also change how many layers there are: the first ones of the network are kept, its last one is
    repeated. A filter of another size gets the padding that keeps the image size, unless `paddings` says otherwise.

    Raises:
        InputError: where the tuples of the config do not have one entry a layer.
    """
    count = len(config.widths) if config.widths is not None else len(convolutions)
    for name in ("widths", "filters", "strides", "paddings", "pools"):
        value = getattr(config, name)
        if value is not None and len(value) != count:
            given = "model.widths gives" if config.widths is not None else "the network has"
            raise InputError(f"model.{name} must have one entry a convolution, and {given} {count}, got {value}")
    layers = list(convolutions[:count]) + [convolutions[-1]] * (count - len(convolutions))
    for index, layer in enumerate(layers):
        changes: dict = {}
        if config.widths is not None:
            changes["width"] = config.widths[index]
        if config.filters is not None and config.filters[index] != layer.filter:
            changes["filter"], changes["padding"] = config.filters[index], config.filters[index] // 2
        if config.strides is not None:
            changes["stride"] = config.strides[index]
        if config.paddings is not None:
            changes["padding"] = config.paddings[index]
        if config.pools is not None:
            changes["pool"] = _pool(layer.pool or convolutions[0].pool or Pool(2, 2), config.pools[index])
        if config.norm is not None:
            changes["norm"] = config.norm
        layers[index] = dataclasses.replace(layer, **changes)
    return tuple(layers)


def _pool(pool: Pool, stride: int) -> Pool | None:
    """The same pool at another stride: its windows go on overlapping by as much as they did."""
    if stride == 1:
        return None
    return dataclasses.replace(pool, window=pool.window + stride - pool.stride, stride=stride)


def convnet(
    config: ModelConfig,
    num_classes: int,
    *,
    convolutions: tuple[ConvLayer, ...],
    dense: tuple[int, ...],
    rounding: geometry.Rounding,
    init: Init,
) -> ConvNet:
    """A `ConvNet` from a network's own numbers and the fields of `config` that are not None."""
    return ConvNet(
        convolutions=configured(config, convolutions) if convolutions else (),
        dense=config.dense if config.dense is not None else dense,
        num_classes=num_classes,
        rounding=config.rounding or rounding,
        initializer=config.init or init,
    )
