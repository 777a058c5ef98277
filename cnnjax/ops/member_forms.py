"""How a convolution of members, each with images and a kernel of its own, is computed."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.ops.convolution_pieces import at_offset, offsets, padded_images
from cnnjax.ops.precision import sum_dtype

UNROLLED_MEMBERS = 16  # beyond, a loop: a program that is written out for each takes long to compile
FEW_MEMBERS = 8  # that a GPU computes fastest one after another
PATCH_BYTES = 2**30  # most memory of the members' patches


def in_turn(product, lhs, rhs, **face):
    """One member after another, each by `product`: unrolled while they are few, then in a loop."""
    product = functools.partial(product, **face)
    if lhs.shape[0] > UNROLLED_MEMBERS:
        return lax.map(lambda operands: product(*operands), (lhs, rhs))
    return jnp.stack([product(lhs[member], rhs[member]) for member in range(lhs.shape[0])])


def together(product, lhs, rhs, *, face, windows):
    """As is fastest on a GPU, of which a small convolution leaves most idle.

    Many members whose patches are small: matrix products, of as many members at once as fit into `PATCH_BYTES`. Else
    one member after another by `product`.
    """
    in_channels = rhs.shape[-2] if face == "images" else lhs.shape[-1]
    entries = lhs.shape[1] * math.prod(windows.output) * math.prod(windows.window) * in_channels
    at_once = PATCH_BYTES // max(1, entries * sum_dtype(lhs.dtype).itemsize)
    if windows.groups > 1 or min(lhs.shape[0], at_once) <= FEW_MEMBERS or 0 in (*lhs.shape, *rhs.shape):
        return in_turn(product, lhs, rhs, face=face, windows=windows)
    one = functools.partial(of_patches, face=face, windows=windows)
    if lhs.shape[0] <= at_once:
        return jax.vmap(one)(lhs, rhs)
    return lax.map(lambda pair: one(*pair), (lhs, rhs), batch_size=at_once)


def of_patches(lhs, rhs, *, face, windows):
    """One member's face as a matrix product of patches: the windows' pixels side by side."""
    pixels = functools.partial(_patches, windows=windows)
    if face == "output":
        product = pixels(lhs) @ rhs.reshape(-1, rhs.shape[-1])
        return product.reshape(lhs.shape[0], *windows.output, rhs.shape[-1])
    if face == "kernel":
        product = pixels(lhs).T @ rhs.reshape(-1, rhs.shape[-1])
        return product.reshape(*windows.window, lhs.shape[-1], rhs.shape[-1])
    wide = sum_dtype(lhs.dtype)
    kernel = rhs.reshape(-1, rhs.shape[-1])
    products = jnp.matmul(lhs.reshape(-1, lhs.shape[-1]), kernel.T, preferred_element_type=wide)
    images = jax.ShapeDtypeStruct((lhs.shape[0], *windows.spatial, rhs.shape[-2]), wide)
    return jax.linear_transpose(pixels, images)(products)[0].astype(lhs.dtype)


def _patches(images, windows):
    """[batch, *spatial, channels] -> [batch·output, window·channels], the shifted images side by side."""
    padded = padded_images(images, windows)
    shifted = [at_offset(padded, offset, windows) for offset in offsets(windows.window)]
    return jnp.concatenate(shifted, -1).reshape(images.shape[0] * math.prod(windows.output), -1)
