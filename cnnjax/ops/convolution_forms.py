"""How a face of the convolution's trilinear form is computed, by backend, library and shape.

`plain` is what XLA makes of a convolution and its gradients; it stays on GPU and TPU. `for_cpu` holds the rules for a
CPU. In a program with oneDNN's convolution (`ops.jit`) that takes everything but the gradient of a kernel, which is
written so that XLA leaves it to Eigen's; in all others `eigen_forms` makes up for what Eigen's is slow at. All are
called while a program is lowered (windowed_product.py); nothing here is differentiated. What was measured:
docs/measurements.md.
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.geometry import effective_window
from cnnjax.ops import compiler, eigen_forms, placement
from cnnjax.ops.convolution_pieces import (
    DIMENSION_NUMBERS,
    at_offset,
    convolution,
    depth_slices,
    offsets,
    on_slices,
    padded_images,
    spread_depth,
)
from cnnjax.ops.precision import sum_dtype

# Where a form makes arrays larger than its operands, a batch is worked on in blocks of this many bytes.
BLOCK_BYTES = 2**22
FEW_CHANNELS = 4  # up to so many out channels all rows of a filter are one product


def plain(lhs, rhs, *, face, windows):
    """XLA's own convolution, and XLA's own gradients of it."""

    def convolve(images, kernel):
        return lax.conv_general_dilated(
            images,
            kernel,
            windows.strides,
            windows.padding,
            rhs_dilation=windows.dilation,
            dimension_numbers=DIMENSION_NUMBERS[len(windows.window)],
            feature_group_count=windows.groups,
        )

    return _face_of(convolve, lhs, rhs, face, windows)


def for_cpu(lhs, rhs, *, face, windows):
    """The form that is fastest on a CPU.

    Many of the forms add up what several products give; in a type narrower than float32 all of that is in float32,
    and rounded once.
    """
    if 0 in (*lhs.shape, *rhs.shape):
        return plain(lhs, rhs, face=face, windows=windows)
    wide = sum_dtype(lhs.dtype)
    return _for_cpu(lhs.astype(wide), rhs.astype(wide), face, windows).astype(lhs.dtype)


def _for_cpu(lhs, rhs, face, windows):
    if windows.groups == 1:
        return _ungrouped(lhs, rhs, face, windows)
    in_channels = {"output": lhs.shape[-1], "images": rhs.shape[-2] * windows.groups, "kernel": lhs.shape[-1]}[face]
    depthwise = in_channels == windows.groups
    if _by_onednn(lhs.dtype):
        if face == "output":
            return convolution(lhs, rhs, windows.strides, windows.padding, windows.dilation, groups=windows.groups)
        if face == "images" and max(windows.strides) == 1:
            return _image_gradient(lhs, rhs, windows)
    if depthwise:
        return compiler.isolated(_depthwise)(lhs, rhs, face=face, windows=windows)
    return _groups_in_turn(lhs, rhs, face, windows)


def _by_onednn(dtype) -> bool:
    """Whether convolutions of this type go to oneDNN's."""
    return compiler.lowers_for_onednn() and dtype == jnp.float32


def _face_of(convolve, lhs, rhs, face, windows):
    """The wanted face of `convolve` (images, kernel) -> output, by linear transposition."""
    if face == "output":
        return convolve(lhs, rhs)
    if face == "images":
        images = jax.ShapeDtypeStruct((lhs.shape[0], *windows.spatial, rhs.shape[-2] * windows.groups), lhs.dtype)
        return jax.linear_transpose(lambda images: convolve(images, rhs), images)(lhs)[0]
    kernel = jax.ShapeDtypeStruct((*windows.window, lhs.shape[-1] // windows.groups, rhs.shape[-1]), lhs.dtype)
    return jax.linear_transpose(lambda kernel: convolve(lhs, kernel), kernel)(rhs)[0]


def _ungrouped(lhs, rhs, face, windows):
    """A face without groups, in any number of dimensions."""
    if face == "kernel" and max(windows.window) == 1 and not any(map(any, windows.padding)):
        return _product_of_pixels(lhs, rhs, windows)
    if len(windows.window) != 2 and not (face != "kernel" and _by_onednn(lhs.dtype)):
        form = {1: _as_one_row, 3: _by_depth}[len(windows.window)]
        return _in_blocks(form, lhs, rhs, face, windows, BLOCK_BYTES, least=2)
    if face == "kernel":
        if _by_onednn(lhs.dtype):
            return _kernel_gradient(lhs, rhs, windows)
        return eigen_forms.kernel_gradient(_kernel_gradient, lhs, rhs, windows)
    if face == "images":
        if max(windows.strides) > 1 and max(windows.window) == 1:
            return _spread_pixels(lhs, rhs, windows)
        # Interleaving zeros into the cotangent multiplies by them; strides with dilation keep the zeros: rare.
        if max(windows.strides) > 1 and max(windows.dilation) == 1:
            return _image_gradient_by_phase(lhs, rhs, windows)
        return _image_gradient(lhs, rhs, windows)
    return _convolved(lhs, rhs, windows.strides, windows.padding, windows.dilation)


def _convolved(images, kernel, strides, padding, dilation):
    """A convolution of undilated images, by rows where that is faster."""
    if len(kernel.shape) == 4 and kernel.shape[-1] <= FEW_CHANNELS and kernel.shape[0] > 1 and max(strides) == 1:
        return _by_rows(images, kernel, padding, dilation)
    form = convolution if _by_onednn(images.dtype) else eigen_forms.convolved
    return form(images, kernel, strides, padding, dilation)


def _by_rows(images, kernel, padding, dilation):
    """The products with all rows of the filter at once, as channels, which are then moved to their places and added up.

    For few out channels, as where the deconvnet comes down to pixels.
    """
    rows, width, in_channels, out_channels = kernel.shape
    folded = jnp.moveaxis(kernel, 0, -2).reshape(1, width, in_channels, rows * out_channels)
    products = _convolved(images, folded, (1, 1), ((0, 0), padding[1]), (1, dilation[1]))
    products = lax.pad(products, jnp.zeros((), products.dtype), ((0, 0, 0), (*padding[0], 0), (0, 0, 0), (0, 0, 0)))
    height = products.shape[1] - (rows - 1) * dilation[0]
    moved = [
        lax.slice_in_dim(products[..., row * out_channels : (row + 1) * out_channels], start, start + height, axis=1)
        for row, start in enumerate(range(0, rows * dilation[0], dilation[0]))
    ]
    return functools.reduce(operator.add, moved)


def _product_of_pixels(images, cotangent, windows):
    """The gradient of a kernel of one pixel: a matrix product."""
    starts, strides = (0,) * images.ndim, (1, *windows.strides, 1)
    ends = [(output - 1) * stride + 1 for output, stride in zip(windows.output, windows.strides, strict=True)]
    images, cotangent = _as_computed(images), _as_computed(cotangent)
    seen = lax.slice(images, starts, (images.shape[0], *ends, images.shape[-1]), strides)
    everything = tuple(range(images.ndim - 1))
    gradient = lax.dot_general(seen, cotangent, ((everything, everything), ((), ())))
    return gradient.reshape(*windows.window, *gradient.shape)


def _in_blocks(form, lhs, rhs, face, windows, most_bytes, *, least):
    """A few examples at a time, at least so many, so that what lies between stays in the cache and needs no memory.

    On several devices a few of each share of the batch.
    """
    product = functools.partial(form, face=face, windows=windows)
    shares = placement.shares(lhs.shape[0])
    batch = lhs.shape[0] // shares
    result = jax.eval_shape(product, lhs, rhs)
    size = max(least, most_bytes * lhs.shape[0] // (_bytes(lhs) + _bytes(rhs if face == "kernel" else result)))
    blocks, rest = divmod(batch, size)
    if blocks < 2:
        return product(lhs, rhs)

    def of_examples(start, count):
        examples = _of_each_share(lhs, start, count, shares)
        return product(examples, _of_each_share(rhs, start, count, shares) if face == "kernel" else rhs)

    parts = lax.map(lambda block: of_examples(block * size, size), jnp.arange(blocks))
    if face == "kernel":
        total = parts.sum(0, dtype=parts.dtype)
        return total + of_examples(batch - rest, rest) if rest else total
    parts = jnp.moveaxis(parts.reshape(blocks, shares, size, *result.shape[1:]), 0, 1)
    parts = parts.reshape(shares, blocks * size, *result.shape[1:])
    if rest:
        last = of_examples(batch - rest, rest).reshape(shares, rest, *result.shape[1:])
        parts = jnp.concatenate([parts, last], 1)
    return parts.reshape(result.shape)


def _of_each_share(array, start, count, shares):
    """`count` examples from `start` on in each share of the batch."""
    by_share = array.reshape(shares, -1, *array.shape[1:])
    return lax.dynamic_slice_in_dim(by_share, start, count, 1).reshape(-1, *array.shape[1:])


def _bytes(array):
    return array.size * array.dtype.itemsize


def _as_one_row(lhs, rhs, face, windows):
    """One dimension as an image one row high."""
    kernel_axis, image_axis = 0, 1
    lhs = jnp.expand_dims(lhs, image_axis)
    rhs = jnp.expand_dims(rhs, image_axis if face == "kernel" else kernel_axis)
    row = windows._replace(
        spatial=(1, *windows.spatial),
        window=(1, *windows.window),
        strides=(1, *windows.strides),
        padding=((0, 0), *windows.padding),
        dilation=(1, *windows.dilation),
    )
    return jnp.squeeze(_ungrouped(lhs, rhs, face, row), kernel_axis if face == "kernel" else image_axis)


def _by_depth(lhs, rhs, face, windows):
    """Three dimensions as one product in two, the images' depth in the batch and the filter's in the channels."""
    if face != "kernel":
        return eigen_forms.by_depth(_ungrouped, lhs, rhs, face, windows)
    depth = windows.window[0]
    if windows.strides[0] == 1:
        outputs = jnp.concatenate([spread_depth(rhs, offset, windows) for offset in range(depth)], -1)
        kernel = on_slices(_ungrouped, lhs, outputs, face, windows)
        return jnp.moveaxis(kernel.reshape(*kernel.shape[:-1], depth, -1), -2, 0)
    images = jnp.concatenate([depth_slices(lhs, offset, windows) for offset in range(depth)], -1)
    kernel = on_slices(_ungrouped, images, rhs, face, windows)
    return jnp.moveaxis(kernel.reshape(*kernel.shape[:2], depth, -1, kernel.shape[-1]), 2, 0)


def _turned(kernel, groups=1):
    """The kernel backwards in space, its channels exchanged: [*window, in/groups, out] -> [*window, out/groups, in]."""
    *window, _, out_channels = kernel.shape
    split = kernel.reshape(*kernel.shape[:-1], groups, out_channels // groups)
    turned = jnp.flip(split, range(len(window))).swapaxes(-1, -3)
    return turned.reshape(*window, out_channels // groups, -1)


def _image_gradient(cotangent, kernel, windows):
    """images[j] = sum over k of cotangent[(j + low - k·dilation) / stride] · kernel[k], as a convolution."""
    padding, ones = _padding_of_gradient(windows), (1,) * len(windows.window)
    # Behind a barrier, since XLA leaves a convolution whose kernel is reversed to Eigen's.
    turned = lax.optimization_barrier(_turned(kernel, windows.groups))
    if max(windows.strides) > 1:
        return convolution(cotangent, turned, ones, padding, windows.dilation, windows.strides)
    if windows.groups > 1:
        return convolution(cotangent, turned, ones, padding, windows.dilation, groups=windows.groups)
    return _convolved(cotangent, turned, ones, padding, windows.dilation)


def _kernel_gradient(images, cotangent, windows):
    """kernel[k] = sum over o of images[o·stride + k·dilation - low] · cotangent[o], as a convolution.

    The batch is the channel that is summed over, the in channels are the batch. The window is as large as the images,
    at which oneDNN is slow. It takes no kernel that is reversed, so the out channels are, and XLA leaves it to Eigen.
    """
    reverse = _by_onednn(images.dtype)
    padding = []
    for size, output, window, stride, (low, _), dilation in _by_dimension(windows):
        padding.append((low, (window - 1) * dilation + (output - 1) * stride + 1 - size - low))
    images, cotangent = _as_computed(images), _as_computed(cotangent)
    images = jnp.moveaxis(images, (0, -1), (-1, 0))
    kernel = jnp.moveaxis(cotangent, 0, -2)
    kernel = jnp.flip(kernel, -1) if reverse else kernel
    gradient = convolution(images, kernel, windows.dilation, padding, windows.strides)
    return jnp.moveaxis(jnp.flip(gradient, -1) if reverse else gradient, 0, -2)


def _as_computed(operand):
    """The operand of oneDNN's product as it stands in memory, for XLA to exchange its axes.

    Without a barrier XLA computes all that led to it once more, in the order of the exchanged axes.
    """
    return lax.optimization_barrier(operand) if _by_onednn(operand.dtype) else operand


def _image_gradient_by_phase(cotangent, kernel, windows):
    """As `_image_gradient`, without the zeros between the rows of the cotangent.

    Padded image row j = stride·u + phase receives kernel rows k = phase + stride·t from cotangent rows u - t: one
    convolution of stride 1 over t makes all phases as channels, which are then put between one another.
    """
    ones = (1,) * len(windows.window)
    taps, first, blocks, padding = [], [], [], []
    for size, output, window, stride, (low, _), _ in _by_dimension(windows):
        tap, start, end = -(-window // stride), low // stride, (size - 1 + low) // stride
        taps.append(tap)
        first.append(low - start * stride)
        blocks.append(end - start + 1)
        padding.append((tap - 1 - start, end - (output - 1)))
    phases = convolution(cotangent, _phase_kernel(kernel, taps, windows.strides), ones, padding, ones)
    images = _interleave(phases, blocks, windows.strides)
    ends = [start + size for start, size in zip(first, windows.spatial, strict=True)]
    return lax.slice(images, (0, *first, 0), (images.shape[0], *ends, images.shape[-1]))


def _spread_pixels(cotangent, kernel, windows):
    """As `_image_gradient`, of a kernel of one pixel: its products, and zeros where no window looks."""
    ones = (1,) * len(windows.window)
    products = _convolved(cotangent, _turned(kernel), ones, ((0, 0),) * len(ones), ones)
    spread = [
        (-low, size - 1 + low - (output - 1) * stride, stride - 1)
        for size, output, _, stride, (low, _), _ in _by_dimension(windows)
    ]
    return lax.pad(products, jnp.zeros((), products.dtype), ((0, 0, 0), *spread, (0, 0, 0)))


def _phase_kernel(kernel, taps, strides):
    """[*window, in, out] -> [*taps backwards, out, phases·in]."""
    count, (in_channels, out_channels) = len(taps), kernel.shape[-2:]
    missing = [(0, tap * stride - size) for tap, stride, size in zip(taps, strides, kernel.shape[:-2], strict=True)]
    padded = jnp.pad(kernel, (*missing, (0, 0), (0, 0)))
    split = padded.reshape(*(size for pair in zip(taps, strides, strict=True) for size in pair), *kernel.shape[-2:])
    tap_axes, phase_axes = range(0, 2 * count, 2), range(1, 2 * count, 2)
    by_tap = jnp.flip(split, tap_axes).transpose(*tap_axes, 2 * count + 1, *phase_axes, 2 * count)
    return by_tap.reshape(*taps, out_channels, math.prod(strides) * in_channels)


def _interleave(phases, blocks, strides):
    """Depth to space: [batch, *blocks, strides·channels] -> [batch, *(blocks·strides), channels]."""
    count = len(blocks)
    split = phases.reshape(phases.shape[0], *blocks, *strides, -1)
    pairs = (axis for dimension in range(1, count + 1) for axis in (dimension, dimension + count))
    sizes = (block * stride for block, stride in zip(blocks, strides, strict=True))
    return split.transpose(0, *pairs, 2 * count + 1).reshape(phases.shape[0], *sizes, -1)


def _padding_of_gradient(windows):
    """The zeros around the cotangent, spread by the strides, of which the turned kernel makes the images' gradient."""
    padding = []
    for size, output, window, stride, (low, _), dilation in _by_dimension(windows):
        before = effective_window(window, dilation) - 1 - low
        padding.append((before, size - 1 + low - (output - 1) * stride))
    return padding


def _by_dimension(windows):
    return zip(
        windows.spatial, windows.output, windows.window, windows.strides, windows.padding, windows.dilation, strict=True
    )


def _depthwise(lhs, rhs, *, face, windows):
    """A face of a depthwise convolution. Nothing is to be fused with it, or each offset would compute it anew."""
    if face == "kernel":
        return _in_blocks(_shifted_kernel_gradient, lhs, rhs, face, windows, BLOCK_BYTES // 2, least=1)
    if face == "images" and rhs.shape[-1] == windows.groups:
        return _shifted_image_gradient(lhs, rhs, windows)
    return _face_of(functools.partial(_shifted, windows=windows), lhs, rhs, face, windows)


def _shifted_image_gradient(cotangent, kernel, windows):
    """As `_image_gradient`, of as many out channels as in channels; zeros between the rows of the cotangent."""
    padding = _padding_of_gradient(windows)
    spread = [(low, high, stride - 1) for (low, high), stride in zip(padding, windows.strides, strict=True)]
    padded = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    ones = (1,) * len(windows.window)
    around = windows._replace(spatial=padded.shape[1:-1], strides=ones, padding=((0, 0),) * len(ones))
    return _shifted(padded, jnp.flip(kernel, range(len(ones))), around)


def _shifted(images, kernel, windows):
    """Depthwise convolution, the sum over the window's offsets of a shifted image times one weight a channel.

    images [batch, *spatial, groups], kernel [*window, 1, groups·multiplier] -> [batch, *output, groups·multiplier].
    """
    padded = padded_images(images, windows)
    weights = kernel.reshape(*windows.window, windows.groups, -1)
    products = (at_offset(padded, offset, windows)[..., None] * weights[offset] for offset in offsets(windows.window))
    return functools.reduce(operator.add, products).reshape(images.shape[0], *windows.output, -1)


def _shifted_kernel_gradient(images, cotangent, face, windows):
    """The gradient of a depthwise kernel: for each offset the shifted image times the cotangent, added up.

    XLA:CPU is slow at sums over leading axes, so the rows are added up in a few parts, with the multiplication, and
    what is left by a product with ones. The window's rows are a loop, as each offset is a program of its own.
    """
    shares = placement.shares(images.shape[0])
    if shares > 1:
        one = functools.partial(_shifted_kernel_gradient_on_one, face=face, windows=windows)
        by_share = (array.reshape(shares, -1, *array.shape[1:]) for array in (images, cotangent))
        return jax.vmap(one)(*by_share).sum(0)
    return _shifted_kernel_gradient_on_one(images, cotangent, face, windows)


def _shifted_kernel_gradient_on_one(images, cotangent, face, windows):
    channels, rows = cotangent.shape[-1], cotangent.shape[0] * windows.output[0]
    parts = next(count for count in range(8, 0, -1) if rows % count == 0)
    weights = cotangent.reshape(*cotangent.shape[:-1], windows.groups, -1)
    padded = padded_images(images, windows)
    height, *others = windows.window

    def of_row(row):
        sums = []
        for offset in offsets(others):
            products = (at_offset(padded, (row, *offset), windows)[..., None] * weights).reshape(parts, -1, channels)
            added = functools.reduce(operator.add, [products[part] for part in range(parts)])
            sums.append(jnp.ones((1, added.shape[0]), added.dtype) @ added)
        return jnp.stack(sums)

    return lax.map(of_row, jnp.arange(height)).reshape(*windows.window, 1, channels)


def _groups_in_turn(lhs, rhs, face, windows):
    single = windows._replace(groups=1)
    lhs_groups = jnp.split(lhs, windows.groups, axis=-1)
    rhs_groups = jnp.split(rhs, windows.groups, axis=-1)
    results = [_ungrouped(left, right, face, single) for left, right in zip(lhs_groups, rhs_groups, strict=True)]
    return jnp.concatenate(results, axis=-1)
