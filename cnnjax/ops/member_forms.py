"""How a convolution of members, each with images and a kernel of its own, is computed."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.ops.convolution_pieces import at_offset, offsets, padded_images
from cnnjax.ops.precision import sum_dtype

UNROLLED_MEMBERS = 16  # beyond, a loop: a program that is written out for each takes long to compile
PATCH_BYTES = 2**30  # most memory of the members' patches


def in_turn(product, lhs, rhs, **face):
    """One member after another, each by `product`: unrolled while they are few, then in a loop."""
    product = functools.partial(product, **face)
    if lhs.shape[0] > UNROLLED_MEMBERS:
        return lax.map(lambda operands: product(*operands), (lhs, rhs))
    return jnp.stack([product(lhs[member], rhs[member]) for member in range(lhs.shape[0])])


def together(product, lhs, rhs, *, face, windows):
    """As is fastest on a GPU, of which a small convolution leaves most idle.

    The output is one convolution with a group a member. The gradients, at which that is slow, are matrix products of
    patches, of as many members at once as fit into `PATCH_BYTES`. Members that have groups themselves, or patches too
    large, come one after another by `product`.
    """
    count, one = lhs.shape[0], functools.partial(_gradient_by_patches, face=face, windows=windows)
    if windows.groups > 1 or 0 in (*lhs.shape, *rhs.shape):
        return in_turn(product, lhs, rhs, face=face, windows=windows)
    if face == "output":
        return jax.vmap(functools.partial(product, face=face, windows=windows))(lhs, rhs)
    in_channels = rhs.shape[-2] if face == "images" else lhs.shape[-1]
    entries = lhs.shape[1] * math.prod(windows.output) * math.prod(windows.window) * in_channels
    at_once = PATCH_BYTES // max(1, entries * sum_dtype(lhs.dtype).itemsize)
    if at_once < 2:
        return in_turn(product, lhs, rhs, face=face, windows=windows)
    if count <= at_once:
        return jax.vmap(one)(lhs, rhs)
    evenly = -(-count // -(-count // at_once))
    return lax.map(lambda pair: one(*pair), (lhs, rhs), batch_size=evenly)


def _gradient_by_patches(lhs, rhs, *, face, windows):
    """One member's gradient as a matrix product, or one for each row of the filter."""
    if face == "kernel":
        return _kernel_gradient(lhs, rhs, windows)
    wide = sum_dtype(lhs.dtype)
    kernel = rhs.reshape(-1, rhs.shape[-1])
    products = jnp.matmul(lhs.reshape(-1, lhs.shape[-1]), kernel.T, preferred_element_type=wide)
    images = jax.ShapeDtypeStruct((lhs.shape[0], *windows.spatial, rhs.shape[-2]), wide)
    pixels = functools.partial(patches, windows=windows)
    return jax.linear_transpose(pixels, images)(products)[0].astype(lhs.dtype)


def _kernel_gradient(images, cotangent, windows):
    """Row by row of the filter, because patches of all rows take longer to make than to multiply."""
    padded = padded_images(images, windows)
    outputs = cotangent.reshape(-1, cotangent.shape[-1])
    rows = [_side_by_side(padded, offsets(windows.window[1:]), (row,), windows) for row in range(windows.window[0])]
    return jnp.stack([row.T @ outputs for row in rows]).reshape(*windows.window, images.shape[-1], -1)


def patches(images, windows):
    """[batch, *spatial, channels] -> [batch·output, window·channels], the windows' pixels from shifted images."""
    return _side_by_side(padded_images(images, windows), offsets(windows.window), (), windows)


def _side_by_side(padded, places, first, windows):
    shifted = [at_offset(padded, (*first, *place), windows) for place in places]
    return jnp.concatenate(shifted, -1).reshape(padded.shape[0] * math.prod(windows.output), -1)
