"""How a face of the convolution's trilinear form is computed, by backend and shape.

`plain` is what XLA makes of a convolution and its gradients; it stays on GPU and TPU. `for_cpu` holds the rules for a
CPU. Both are called while a program is lowered (windowed_product.py); nothing here is differentiated.
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.geometry import effective_window
from cnnjax.ops.precision import sum_dtype

_DIMENSION_NUMBERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}

# In one and three dimensions a batch is worked on in blocks of this many bytes of images and outputs.
BLOCK_BYTES = 2**22
FEW_CHANNELS = 4  # in or out: a matrix product that thin is made thicker
# Up to this many channels on both sides the gradient of a kernel is taken for two columns at once.
THIN_GRADIENT_CHANNELS = 16


def plain(lhs, rhs, *, face, windows):
    """XLA's own convolution, and XLA's own gradients of it."""

    def convolve(images, kernel):
        return lax.conv_general_dilated(
            images,
            kernel,
            windows.strides,
            windows.padding,
            rhs_dilation=windows.dilation,
            dimension_numbers=_DIMENSION_NUMBERS[len(windows.window)],
            feature_group_count=windows.groups,
        )

    return _face_of(convolve, lhs, rhs, face, windows)


def for_cpu(lhs, rhs, *, face, windows):
    """The form that is fastest on a CPU.

    Groups run one after another, since XLA's grouped convolution is slow, and a depthwise
    convolution, whose groups have one channel each, as one multiplication for each offset of the window. Many of the
    forms add up what several products give; in a type narrower than float32 all of that is in float32, and rounded
    once.
    """
    if 0 in (*lhs.shape, *rhs.shape):
        return plain(lhs, rhs, face=face, windows=windows)
    wide = sum_dtype(lhs.dtype)
    return _for_cpu(lhs.astype(wide), rhs.astype(wide), face, windows).astype(lhs.dtype)


def _for_cpu(lhs, rhs, face, windows):
    if windows.groups == 1:
        return _ungrouped(lhs, rhs, face, windows)
    in_channels = {"output": lhs.shape[-1], "images": rhs.shape[-2] * windows.groups, "kernel": lhs.shape[-1]}[face]
    if in_channels == windows.groups:
        return _face_of(functools.partial(_shifted, windows=windows), lhs, rhs, face, windows)
    return _groups_in_turn(lhs, rhs, face, windows)


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
    """Every number of dimensions becomes two, since XLA:CPU is fast at nothing else."""
    if len(windows.window) != 2:
        return _in_blocks({1: _as_one_row, 3: _by_depth}[len(windows.window)], lhs, rhs, face, windows)
    if face == "kernel":
        thin = max(lhs.shape[-1], rhs.shape[-1]) <= THIN_GRADIENT_CHANNELS
        if thin and windows.strides[1] == windows.dilation[1] == 1 < windows.window[1]:
            return _widened_kernel_gradient(lhs, rhs, windows, 2)
        return _kernel_gradient(lhs, rhs, windows)
    if face == "images":
        # Interleaving zeros into the cotangent multiplies by them: 108 -> 80 ms for 7×7/2 on 16×224×224×3, 120 ->
        # 86 ms for 5×5/2 on 16×55×55×96. Strides with dilation keep the zeros: rare.
        if max(windows.strides) > 1 and max(windows.dilation) == 1:
            return _image_gradient_by_phase(lhs, rhs, windows)
        return _image_gradient(lhs, rhs, windows)
    return _convolved(lhs, rhs, windows.strides, windows.padding, windows.dilation)


def _convolved(images, kernel, strides, padding, dilation):
    """A convolution of undilated images, by rows or widened where that is faster."""
    if kernel.shape[-1] <= FEW_CHANNELS and kernel.shape[0] > 1 and max(strides) == 1:
        return _by_rows(images, kernel, padding, dilation)
    columns = _columns(min(kernel.shape[-2:]))
    # With a stride the gain is 0 to 0.1 (7×7/2: 4.2 -> 3.7 ms on 128×32×32×3 -> 32) or a loss (16×224×224×3 -> 96).
    if columns > 1 and strides[1] == 1 and dilation[1] == 1 < kernel.shape[1]:
        return _widened(images, kernel, strides, padding, dilation, columns)
    return _canonical(images, kernel, strides, padding, dilation)


def _by_rows(images, kernel, padding, dilation):
    """The products with all rows of the filter at once, as channels, which are then moved to their places and added up.

    For few out channels, as where the deconvnet comes down to pixels. To `_widened` with four columns, on one core and
    on two: 7×7 on 64×32×32×24 -> 3 0.59, 0.59, 64×32×32×24 -> 1 0.27, 0.33, 5×5 on 64×28×28×32 -> 1 0.53, 0.41,
    64×28×28×8 -> 1 0.60, 0.49, 3×3 on 64×32×32×64 -> 3 0.34, 0.36.
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


def _columns(channels):
    """How many columns of the output a convolution with so many in or out channels makes at once."""
    return 4 if channels <= FEW_CHANNELS else 2 if channels <= 8 else 1


def _in_blocks(form, lhs, rhs, face, windows):
    """A few examples at a time, at least two, so that what lies between stays in the cache and needs no new memory.

    Beside other work: gradient of the kernel for 64×8000×16 -> 16, filter 9, 80 -> 45 ms; output of 16×32×32×32×8 -> 8,
    filter 3, 60 -> 24 ms. Blocks of one example were slower, with temporaries of 20 to 67 MB.
    """
    product = functools.partial(form, face=face, windows=windows)
    batch = lhs.shape[0]
    result = jax.eval_shape(product, lhs, rhs)
    size = max(2, BLOCK_BYTES * batch // (_bytes(lhs) + _bytes(rhs if face == "kernel" else result)))
    blocks, rest = divmod(batch, size)
    if blocks < 2:
        return product(lhs, rhs)

    def of_examples(start, count):
        examples = lax.dynamic_slice_in_dim(lhs, start, count)
        return product(examples, lax.dynamic_slice_in_dim(rhs, start, count) if face == "kernel" else rhs)

    parts = lax.map(lambda block: of_examples(block * size, size), jnp.arange(blocks))
    if face == "kernel":
        total = parts.sum(0, dtype=parts.dtype)
        return total + of_examples(batch - rest, rest) if rest else total
    parts = parts.reshape(-1, *result.shape[1:])
    return jnp.concatenate([parts, of_examples(batch - rest, rest)]) if rest else parts


def _bytes(array):
    return array.size * array.dtype.itemsize


def _canonical(images, kernel, strides, padding, kernel_dilation=(1, 1), image_dilation=(1, 1)):
    """A convolution in two dimensions as XLA:CPU's library takes it.

    It knows these dimension numbers only. XLA brings others into this form, but not inside a loop, where the gradient
    of a kernel then takes 29–198 times as long. Negative padding cuts rows off, at one end perhaps more than there are
    without the zeros of the other, so a dimension that is cut gets these here too.
    """
    cut = [(low, high, 0) if min(low, high) < 0 else (0, 0, 0) for low, high in padding]
    if max(image_dilation) == 1 and any(low or high for low, high, _ in cut):
        images = lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), *cut, (0, 0, 0)))
        padding = [(0, 0) if min(low, high) < 0 else (low, high) for low, high in padding]
    return lax.conv_general_dilated(
        images,
        kernel,
        strides,
        padding,
        lhs_dilation=image_dilation,
        rhs_dilation=kernel_dilation,
        dimension_numbers=_DIMENSION_NUMBERS[2],
    )


def _as_one_row(lhs, rhs, face, windows):
    """One dimension as an image one row high.

    64×8000×16, filter 9, 16 out channels, beside other work: output 63 -> 20 ms.
    """
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
    """Three dimensions as one convolution in two, the images' depth in the batch and the filter's in the channels.

    To one convolution for each offset of the filter's depth, both in blocks: 16×32×32×32×8 -> 8 0.4, 16×24×24×24×16 ->
    16 0.6, 16×16×16×16×32 -> 32 0.8 (output; gradient of the kernel 0.7, 0.8, 0.8).
    """
    flat = windows._replace(
        **{name: getattr(windows, name)[1:] for name in ("spatial", "window", "strides", "padding", "dilation")}
    )
    depth = windows.window[0]
    if face == "kernel":
        if windows.strides[0] == 1:
            outputs = jnp.concatenate([_spread_depth(rhs, offset, windows) for offset in range(depth)], -1)
            kernel = _on_slices(lhs, outputs, face, flat)
            return jnp.moveaxis(kernel.reshape(*kernel.shape[:-1], depth, -1), -2, 0)
        images = jnp.concatenate([_depth_slices(lhs, offset, windows) for offset in range(depth)], -1)
        kernel = _on_slices(images, rhs, face, flat)
        return jnp.moveaxis(kernel.reshape(*kernel.shape[:2], depth, -1, kernel.shape[-1]), 2, 0)
    if face == "output" and windows.strides[0] > 1:
        images = jnp.concatenate([_depth_slices(lhs, offset, windows) for offset in range(depth)], -1)
        return _on_slices(images, _fold_depth(rhs, -2), face, flat)
    products = _on_slices(lhs, _fold_depth(rhs, -1 if face == "output" else -2), face, flat)
    products = products.reshape(*products.shape[:-1], depth, -1)
    move = _depth_slices if face == "output" else _spread_depth
    return functools.reduce(operator.add, [move(products[..., offset, :], offset, windows) for offset in range(depth)])


def _fold_depth(kernel, axis):
    """[depth, height, width, in, out] -> [height, width, depth·in, out] (axis -2) or [height, width, in, depth·out]."""
    kernel = jnp.moveaxis(kernel, 0, axis - 1)
    shape = list(kernel.shape)
    position = kernel.ndim + axis
    shape[position - 1 : position + 1] = [shape[position - 1] * shape[position]]
    return kernel.reshape(shape)


def _on_slices(lhs, rhs, face, flat):
    """[batch, depth, height, width, channels], each slice by itself."""
    slices = lhs.reshape(-1, *lhs.shape[2:])
    if face == "kernel":
        return _ungrouped(slices, rhs.reshape(-1, *rhs.shape[2:]), face, flat)
    product = _ungrouped(slices, rhs, face, flat)
    return product.reshape(*lhs.shape[:2], *product.shape[1:])


def _depth_slices(images, offset, windows):
    """The slice at `offset` of every window along the depth."""
    (low, high), stride, output = windows.padding[0], windows.strides[0], windows.output[0]
    start = offset * windows.dilation[0]
    padded = lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), (low, high, 0), *((0, 0, 0),) * 3))
    return lax.slice_in_dim(padded, start, start + (output - 1) * stride + 1, stride, axis=1)


def _spread_depth(slices, offset, windows):
    """The transpose of `_depth_slices`."""
    stride = windows.strides[0]
    before = offset * windows.dilation[0] - windows.padding[0][0]
    after = windows.spatial[0] - before - (windows.output[0] - 1) * stride - 1
    zero = jnp.zeros((), slices.dtype)
    return lax.pad(slices, zero, ((0, 0, 0), (before, after, stride - 1), *((0, 0, 0),) * 3))


def _widened(images, kernel, strides, padding, dilation, columns):
    """Neighbouring columns of the output at once, as channels: a thicker matrix product.

    As many columns of the images become channels too, which costs no copy, and the kernel holds shifted copies of
    the filter with zeros between. To the plain form: 5×5 on 64×28×28×1 -> 8 0.31, 128×28×28×1 -> 32 0.48, 64×32×32×3
    -> 32 0.67, 3×3 on 128×32×32×3 -> 64 0.99 (2 and 8 columns: 0.77 and 1.3 on average). Two columns: 5×5 on
    64×14×14×8 -> 16 0.7, 3×3 on 512×32×32×8 -> 24 0.85.
    """
    batch, _, size, _ = images.shape
    (low, high), width = padding[1], kernel.shape[1]
    out_width = size + low + high - width + 1
    out_blocks = -(-out_width // columns)
    wide_kernel = _widened_kernel(kernel, columns)
    outputs = _canonical(
        _column_blocks(images, low, out_blocks + wide_kernel.shape[1] - 1, columns),
        wide_kernel,
        (strides[0], 1),
        (padding[0], (0, 0)),
        (dilation[0], 1),
    )
    return outputs.reshape(batch, outputs.shape[1], out_blocks * columns, kernel.shape[-1])[:, :, :out_width]


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


def _flip(kernel):
    """The kernel backwards in space, its channels exchanged: [height, width, in, out] -> [height, width, out, in]."""
    return jnp.flip(kernel, (0, 1)).swapaxes(-1, -2)


def _image_gradient(cotangent, kernel, windows):
    """images[j] = sum over k of cotangent[(j + low - k·dilation) / stride] · kernel[k], as a convolution."""
    padding = []
    for size, output, window, stride, (low, _), dilation in _by_dimension(windows):
        before = effective_window(window, dilation) - 1 - low
        padding.append((before, size - 1 + low - (output - 1) * stride))
    if max(windows.strides) == 1:
        return _convolved(cotangent, _flip(kernel), (1, 1), padding, windows.dilation)
    return _canonical(cotangent, _flip(kernel), (1, 1), padding, windows.dilation, windows.strides)


def _widened_kernel_gradient(images, cotangent, windows, columns):
    """The gradient of the widened kernel, of which every weight has `columns` copies.

    Two columns: 5×5 on 64×28×28×1 -> 8 0.60, 64×14×14×8 -> 16 0.88, filter 9 on 64×8000×16 -> 16 0.78; but 128×28×28×1
    -> 32 1.2, 128×32×32×3 -> 64 1.15, 64×14×14×16 -> 32 1.1.
    """
    out_blocks = -(-windows.output[1] // columns)
    kernel = jax.ShapeDtypeStruct((*windows.window, images.shape[-1], cotangent.shape[-1]), images.dtype)
    taps = jax.eval_shape(lambda kernel: _widened_kernel(kernel, columns), kernel).shape[1]
    wide = windows._replace(
        spatial=(windows.spatial[0], out_blocks + taps - 1),
        window=(windows.window[0], taps),
        padding=(windows.padding[0], (0, 0)),
    )
    gradient = _kernel_gradient(
        _column_blocks(images, windows.padding[1][0], out_blocks + taps - 1, columns),
        _column_blocks(cotangent, 0, out_blocks, columns),
        wide,
    )
    return jax.linear_transpose(lambda kernel: _widened_kernel(kernel, columns), kernel)(gradient)[0]


def _kernel_gradient(images, cotangent, windows):
    """kernel[k] = sum over o of images[o·stride + k·dilation - low] · cotangent[o], as a convolution.

    The batch is the channel that is summed over, the in channels are the batch.
    """
    padding = []
    for size, output, window, stride, (low, _), dilation in _by_dimension(windows):
        padding.append((low, (window - 1) * dilation + (output - 1) * stride + 1 - size - low))
    images = jnp.moveaxis(images, (0, -1), (-1, 0))
    kernel = jnp.moveaxis(cotangent, 0, -2)
    return jnp.moveaxis(_canonical(images, kernel, windows.dilation, padding, windows.strides), 0, -2)


def _image_gradient_by_phase(cotangent, kernel, windows):
    """As `_image_gradient`, without the zeros between the rows of the cotangent.

    Padded image row j = stride·u + phase receives kernel rows k = phase + stride·t from cotangent rows u - t: one
    convolution of stride 1 over t makes all phases as channels, which are then put between one another.
    """
    taps, first, blocks, padding = [], [], [], []
    for size, output, window, stride, (low, _), _ in _by_dimension(windows):
        tap, start, end = -(-window // stride), low // stride, (size - 1 + low) // stride
        taps.append(tap)
        first.append(low - start * stride)
        blocks.append(end - start + 1)
        padding.append((tap - 1 - start, end - (output - 1)))
    phases = _canonical(cotangent, _phase_kernel(kernel, taps, windows.strides), (1, 1), padding)
    images = _interleave(phases, blocks, windows.strides)
    height, width = windows.spatial
    return images[:, first[0] : first[0] + height, first[1] : first[1] + width]


def _phase_kernel(kernel, taps, strides):
    """[height, width, in, out] -> [*taps backwards, out, phases·in]."""
    missing = [(0, tap * stride - size) for tap, stride, size in zip(taps, strides, kernel.shape[:2], strict=True)]
    padded = jnp.pad(kernel, (*missing, (0, 0), (0, 0)))
    split = padded.reshape(taps[0], strides[0], taps[1], strides[1], *kernel.shape[2:])
    by_tap = jnp.flip(split, (0, 2)).transpose(0, 2, 5, 1, 3, 4)
    return by_tap.reshape(*taps, kernel.shape[-1], math.prod(strides) * kernel.shape[-2])


def _interleave(phases, blocks, strides):
    """Depth to space: [batch, *blocks, strides·channels] -> [batch, *(blocks·strides), channels]."""
    split = phases.reshape(phases.shape[0], *blocks, *strides, -1).transpose(0, 1, 3, 2, 4, 5)
    return split.reshape(phases.shape[0], blocks[0] * strides[0], blocks[1] * strides[1], -1)


def _by_dimension(windows):
    return zip(
        windows.spatial, windows.output, windows.window, windows.strides, windows.padding, windows.dilation, strict=True
    )


def _shifted(images, kernel, windows):
    """Depthwise convolution, the sum over the window's offsets of a shifted image times one weight a channel.

    images [batch, *spatial, groups], kernel [*window, 1, groups·multiplier] -> [batch, *output, groups·multiplier].
    """
    multiplier = kernel.shape[-1] // windows.groups
    padding = [(low, max(high, 0), 0) for low, high in windows.padding]
    zero = jnp.zeros((), images.dtype)
    padded = lax.pad(images, zero, ((0, 0, 0), *padding, (0, 0, 0)))
    weights = kernel.reshape(*windows.window, windows.groups, multiplier)
    batch, channels = images.shape[0], windows.groups
    total = jnp.zeros((batch, *windows.output, channels, multiplier), images.dtype)
    for offset in _offsets(windows.window):
        starts = [step * dilation for step, dilation in zip(offset, windows.dilation, strict=True)]
        ends = [
            start + (output - 1) * stride + 1
            for start, output, stride in zip(starts, windows.output, windows.strides, strict=True)
        ]
        shifted = lax.slice(padded, (0, *starts, 0), (batch, *ends, channels), (1, *windows.strides, 1))
        total = total + shifted[..., None] * weights[offset]
    return total.reshape(batch, *windows.output, channels * multiplier)


def _offsets(window):
    if not window:
        return [()]
    return [(first, *rest) for first in range(window[0]) for rest in _offsets(window[1:])]


def _groups_in_turn(lhs, rhs, face, windows):
    single = windows._replace(groups=1)
    lhs_groups = jnp.split(lhs, windows.groups, axis=-1)
    rhs_groups = jnp.split(rhs, windows.groups, axis=-1)
    results = [_ungrouped(left, right, face, single) for left, right in zip(lhs_groups, rhs_groups, strict=True)]
    return jnp.concatenate(results, axis=-1)
