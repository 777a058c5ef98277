"""Forms of a convolution that only programs without oneDNN's convolution need (`ops.jit`).

Eigen's convolution is fast in two dimensions and where its matrix products are not thin. Where few channels make them
thin, neighbouring columns are computed at once; one and three dimensions become two.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.ops.convolution_pieces import convolution, depth_slices, on_slices, spread_depth

FEW_CHANNELS = 4  # in or out: four columns at once, and two up to twice as many
# Up to this many channels on both sides the gradient of a kernel is taken for two columns at once.
THIN_GRADIENT_CHANNELS = 16


def convolved(images, kernel, strides, padding, dilation):
    """A convolution in two dimensions; with few channels neighbouring columns of the output at once, as channels.

    As many columns of the images become channels too, which costs no copy, and the kernel holds shifted copies of the
    filter with zeros between. With a stride there is little to gain.
    """
    columns = _columns(min(kernel.shape[-2:]))
    if columns == 1 or strides[1] > 1 or dilation[1] > 1 or kernel.shape[1] == 1:
        return convolution(images, kernel, strides, padding, dilation)
    batch, _, size, _ = images.shape
    (low, high), width = padding[1], kernel.shape[1]
    out_width = size + low + high - width + 1
    out_blocks = -(-out_width // columns)
    wide_kernel = _widened_kernel(kernel, columns)
    outputs = convolution(
        _column_blocks(images, low, out_blocks + wide_kernel.shape[1] - 1, columns),
        wide_kernel,
        (strides[0], 1),
        (padding[0], (0, 0)),
        (dilation[0], 1),
    )
    return outputs.reshape(batch, outputs.shape[1], out_blocks * columns, kernel.shape[-1])[:, :, :out_width]


def _columns(channels):
    """How many columns of the output a convolution with so many in or out channels makes at once."""
    return 4 if channels <= FEW_CHANNELS else 2 if channels <= 2 * FEW_CHANNELS else 1


def _column_blocks(images, low, blocks, columns):
    """[batch, rows, width, channels] -> [batch, rows, blocks, columns·channels], `low` columns of zeros before."""
    batch, rows, size, channels = images.shape
    fill = ((0, 0, 0), (0, 0, 0), (low, blocks * columns - size - low, 0), (0, 0, 0))
    padded = lax.pad(images, jnp.zeros((), images.dtype), fill)
    return padded.reshape(batch, rows, blocks, columns * channels)


def _widened_kernel(kernel, columns):
    """[height, width, in, out] -> [height, blocks, columns·in, columns·out], a copy for every column of the output."""
    height, width, in_channels, out_channels = kernel.shape
    taps = -(-(width + columns - 1) // columns)
    shifted = [
        jnp.pad(kernel, ((0, 0), (column, taps * columns - width - column), (0, 0), (0, 0)))
        for column in range(columns)
    ]
    return jnp.stack(shifted, 3).reshape(height, taps, columns * in_channels, columns * out_channels)


def kernel_gradient(gradient, images, cotangent, windows):
    """The gradient of a kernel in two dimensions by `gradient`; with few channels that of the widened kernel.

    Every weight has two copies in it.
    """
    thin = max(images.shape[-1], cotangent.shape[-1]) <= THIN_GRADIENT_CHANNELS
    if not thin or windows.strides[1] > 1 or windows.dilation[1] > 1 or windows.window[1] == 1:
        return gradient(images, cotangent, windows)
    columns = 2
    out_blocks = -(-windows.output[1] // columns)
    kernel = jax.ShapeDtypeStruct((*windows.window, images.shape[-1], cotangent.shape[-1]), images.dtype)
    taps = jax.eval_shape(lambda kernel: _widened_kernel(kernel, columns), kernel).shape[1]
    wide = windows._replace(
        spatial=(windows.spatial[0], out_blocks + taps - 1),
        window=(windows.window[0], taps),
        padding=(windows.padding[0], (0, 0)),
    )
    of_wide = gradient(
        _column_blocks(images, windows.padding[1][0], out_blocks + taps - 1, columns),
        _column_blocks(cotangent, 0, out_blocks, columns),
        wide,
    )
    return jax.linear_transpose(lambda kernel: _widened_kernel(kernel, columns), kernel)(of_wide)[0]


def by_depth(product, lhs, rhs, face, windows):
    """Output or images in three dimensions by one `product` in two, the filter's depth in its channels."""
    depth = windows.window[0]
    if face == "output" and windows.strides[0] > 1:
        images = jnp.concatenate([depth_slices(lhs, offset, windows) for offset in range(depth)], -1)
        return on_slices(product, images, _fold_depth(rhs, -2), face, windows)
    products = on_slices(product, lhs, _fold_depth(rhs, -1 if face == "output" else -2), face, windows)
    products = products.reshape(*products.shape[:-1], depth, -1)
    move = depth_slices if face == "output" else spread_depth
    return functools.reduce(operator.add, [move(products[..., offset, :], offset, windows) for offset in range(depth)])


def _fold_depth(kernel, axis):
    """[depth, height, width, in, out] -> [height, width, depth·in, out] (axis -2) or [height, width, in, depth·out]."""
    kernel = jnp.moveaxis(kernel, 0, axis - 1)
    shape = list(kernel.shape)
    position = kernel.ndim + axis
    shape[position - 1 : position + 1] = [shape[position - 1] * shape[position]]
    return kernel.reshape(shape)
