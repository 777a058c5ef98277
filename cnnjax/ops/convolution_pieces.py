"""What the forms of a convolution (convolution_forms.py, eigen_forms.py) are made of."""

import itertools

import jax.numpy as jnp
from jax import lax

DIMENSION_NUMBERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def convolution(images, kernel, strides, padding, kernel_dilation, image_dilation=None, groups=1):
    """A convolution as the libraries behind XLA:CPU take it, in 1, 2 or 3 dimensions.

    They know these dimension numbers only. XLA brings others into this form, but not inside a loop. Nor do they know
    negative padding. It cuts rows off, at one end perhaps more than there are without the zeros of the other, so a
    dimension that is cut gets these here too.
    """
    cut = [(low, high, 0) if min(low, high) < 0 else (0, 0, 0) for low, high in padding]
    if image_dilation is None and any(low or high for low, high, _ in cut):
        images = lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *cut, (0, 0, 0)))
        padding = [(0, 0) if min(low, high) < 0 else (low, high) for low, high in padding]
    return lax.conv_general_dilated(
        images,
        kernel,
        strides,
        padding,
        lhs_dilation=image_dilation,
        rhs_dilation=kernel_dilation,
        dimension_numbers=DIMENSION_NUMBERS[kernel.ndim - 2],
        feature_group_count=groups,
    )


def on_slices(product, lhs, rhs, face, windows):
    """A face in two dimensions of [batch, depth, height, width, channels], each slice by itself.

    Args:
        product: (lhs, rhs, face, windows) -> that face, in two dimensions.
    """
    flat = windows._replace(
        **{name: getattr(windows, name)[1:] for name in ("spatial", "window", "strides", "padding", "dilation")}
    )
    slices = lhs.reshape(-1, *lhs.shape[2:])
    if face == "kernel":
        return product(slices, rhs.reshape(-1, *rhs.shape[2:]), face, flat)
    result = product(slices, rhs, face, flat)
    return result.reshape(*lhs.shape[:2], *result.shape[1:])


def depth_slices(images, offset, windows):
    """The slice at `offset` of every window along the depth."""
    (low, high), stride, output = windows.padding[0], windows.strides[0], windows.output[0]
    start = offset * windows.dilation[0]
    padded = lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), (low, high, 0), *((0, 0, 0),) * 3))
    return lax.slice_in_dim(padded, start, start + (output - 1) * stride + 1, stride, axis=1)


def spread_depth(slices, offset, windows):
    """The transpose of `depth_slices`."""
    stride = windows.strides[0]
    before = offset * windows.dilation[0] - windows.padding[0][0]
    after = windows.spatial[0] - before - (windows.output[0] - 1) * stride - 1
    zero = jnp.zeros((), slices.dtype)
    return lax.pad(slices, zero, ((0, 0, 0), (before, after, stride - 1), *((0, 0, 0),) * 3))


def padded_images(images, windows):
    """The images with their zeros around them; a dimension whose high end is cut keeps it."""
    padding = [(low, max(high, 0), 0) for low, high in windows.padding]
    return lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *padding, (0, 0, 0)))


def at_offset(padded, offset, windows):
    """What the weight at `offset` of the window, numbers or tracers, sees of the padded images by output pixel."""
    starts = [step * dilation for step, dilation in zip(offset, windows.dilation, strict=True)]
    reach = [(output - 1) * stride + 1 for output, stride in zip(windows.output, windows.strides, strict=True)]
    region = lax.dynamic_slice(padded, (0, *starts, 0), (padded.shape[0], *reach, padded.shape[-1]))
    return lax.slice(region, (0,) * region.ndim, region.shape, (1, *windows.strides, 1))


def offsets(window):
    """Every weight's place in the window, in order."""
    return list(itertools.product(*map(range, window)))
