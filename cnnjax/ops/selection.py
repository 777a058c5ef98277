"""The maximum of each window with its place, and the linear maps that follow that place, as primitives.

`max_with_choice` gives values and, in small integers, the offset in the window that won. Its derivative is `select`:
of the tangent, take what stands at the winning offset. The transpose of `select` is `place`: put each value at its
winning offset, zeros elsewhere, and add up where windows overlap. `select` and `place` are linear and each other's
transposes, so every derivative, in either mode, is one of these two.

Neither ever becomes a scatter or a sum of padded slices: forward, gradient together take 0.03 (2×2/2) and 0.17
(3×3/2) of the time of XLA's reduce-window and select-and-scatter on a CPU.
Members of a `vmap` are folded into the batch.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching, mlir

from cnnjax.explicit_axes import Spec, automatic
from cnnjax.ops import compiler, placement
from cnnjax.ops.placement import Primitive
from cnnjax.ops.precision import sum_dtype

# Windows up to this many pixels are unrolled, which is fast (all of it is one fused loop) and takes compile time.
UNROLLED_OFFSETS = 64
THIN_CHANNELS = 16  # fewer than these are pooled by forms of their own on a CPU


class PoolWindows(NamedTuple):
    """The static part of a pooling, one entry a spatial dimension; padding stands before the first pixel and behind."""

    spatial: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    low: tuple[int, ...]
    output: tuple[int, ...]
    high: tuple[int, ...]

    @property
    def choice_dtype(self):
        """One byte wherever the window is small enough: the choice is what a gradient keeps in memory."""
        return np.uint8 if math.prod(self.window) <= np.iinfo(np.uint8).max else np.int32


@automatic(lambda images, **_: [_divided(images)] * 2)
def max_with_choice(images, *, windows: PoolWindows):
    """[batch, *spatial, channels] -> (values, choice), both [batch, *output, channels].

    `choice` is the row-major offset in the window of its first maximum, never one in the padding.
    """
    return max_with_choice_p.bind(images, windows=windows)


def _divided(spec: Spec) -> Spec:
    """Batch and channels stay as they are divided."""
    return (spec[0], *[None] * (len(spec) - 2), spec[-1])


max_with_choice_p = Primitive("max_with_choice")
max_with_choice_p.multiple_results = True
# What stands at the chosen offset of each window: [batch, *spatial, channels] -> [batch, *output, channels].
select_p = Primitive("select_in_windows")
# Its transpose: [batch, *output, channels] -> [batch, *spatial, channels].
place_p = Primitive("place_in_windows")


# --- forms ---------------------------------------------------------------------------------------------------------


def _max_with_choice(images, *, windows: PoolWindows):
    padded = _pad(images, _lowest(images.dtype), windows)
    values = jnp.full((images.shape[0], *windows.output, images.shape[-1]), _lowest(images.dtype), images.dtype)
    # A window of minus infinities only must not choose the padding, so the search starts at the first real pixel.
    choice = jnp.broadcast_to(_first_real_offset(windows), values.shape)

    def compare(number, candidate, best):
        values, choice = best
        # `not <=` is true for NaN too; the second test keeps the first NaN
        wins = ~(candidate <= values) & (values == values)
        return jnp.where(wins, candidate, values), jnp.where(wins, jnp.asarray(number, choice.dtype), choice)

    return list(_over_offsets(compare, padded, (values, choice), windows))


def _select(images, choice, *, windows: PoolWindows):

    def take(number, candidate, values):
        return jnp.where(choice == jnp.asarray(number, choice.dtype), candidate, values)

    return _over_offsets(take, _pad(images, 0, windows), jnp.zeros(choice.shape, images.dtype), windows)


def _over_offsets(step, padded, start, windows: PoolWindows, backwards: bool = False):
    """Folds step(number of the offset, the pixel at that offset of every window, result so far) over the window."""
    count = math.prod(windows.window)
    result = start
    if count <= UNROLLED_OFFSETS:
        offsets = list(enumerate(itertools.product(*(range(size) for size in windows.window))))
        for number, offset in reversed(offsets) if backwards else offsets:
            result = step(number, _shifted(padded, offset, windows), result)
        return result

    def body(index, result):
        number = count - 1 - index if backwards else index
        offset = jnp.unravel_index(number, windows.window)
        return step(number, _shifted(padded, offset, windows), result)

    return lax.fori_loop(0, count, body, result)


def _place(values, choice, *, windows: PoolWindows):
    """Row stride·u + phase of the padded image is offset phase + stride·t of window u - t: one sum over t.

    All phases are computed in one broadcast, so that the result is written once and in order. Where windows overlap
    the sum is in `sum_dtype`.
    """
    dtype, dimensions = values.dtype, len(windows.window)
    taps = [-(-window // stride) for window, stride in zip(windows.window, windows.strides, strict=True)]
    reach = [(tap - 1, tap - 1, 0) for tap in taps]
    values = lax.pad(values, jnp.zeros((), values.dtype), ((0, 0, 0), *reach, (0, 0, 0)))
    choice = lax.pad(choice, jnp.zeros((), choice.dtype), ((0, 0, 0), *reach, (0, 0, 0)))
    blocks = [output + tap - 1 for output, tap in zip(windows.output, taps, strict=True)]
    batch, channels = values.shape[0], values.shape[-1]
    by_phase = (batch, *_alternate(blocks, [1] * dimensions), channels)
    total = jnp.zeros((), sum_dtype(dtype))
    for tap in itertools.product(*(range(count) for count in taps)):
        starts = [count - 1 - step for count, step in zip(taps, tap, strict=True)]
        ends = [start + block for start, block in zip(starts, blocks, strict=True)]
        corner, end = (0, *starts, 0), (batch, *ends, channels)
        here = lax.slice(choice, corner, end).reshape(by_phase) == _offset_of_phase(tap, windows).astype(choice.dtype)
        total = total + jnp.where(here, lax.slice(values, corner, end).reshape(by_phase), 0).astype(total.dtype)
    total = total.astype(dtype)
    rows = [block * stride for block, stride in zip(blocks, windows.strides, strict=True)]
    crop = [(-low, size + low - row, 0) for low, size, row in zip(windows.low, windows.spatial, rows, strict=True)]
    padded = jnp.broadcast_to(total, (batch, *_alternate(blocks, windows.strides), channels))
    return lax.pad(padded.reshape(batch, *rows, channels), jnp.zeros((), values.dtype), ((0, 0, 0), *crop, (0, 0, 0)))


def _thin_max_with_choice(images, *, windows: PoolWindows):
    """The same in two searches, whose inner loops over few channels are vectorized."""
    padded = _pad(images, _lowest(images.dtype), windows)
    shape = (images.shape[0], *windows.output, images.shape[-1])
    lowest = jnp.full(shape, _lowest(images.dtype), images.dtype)
    values = _over_offsets(lambda _, candidate, values: lax.max(candidate, values), padded, lowest, windows)

    def found(number, candidate, choice):
        wins = (candidate == values) | (candidate != candidate)
        return jnp.where(wins, jnp.asarray(number, choice.dtype), choice)

    # From the last offset to the first, so that the first maximum (or NaN) stays.
    choice = _over_offsets(found, padded, jnp.zeros(shape, windows.choice_dtype), windows, backwards=True)
    return [values, jnp.maximum(choice, _first_real_offset(windows))]


def _thin_place(values, choice, *, windows: PoolWindows):
    """The same with a choice of the values' own type, so that the inner loop is vectorized."""
    if choice.dtype == np.uint8:
        choice = compiler.isolated(lambda choice: choice.astype(values.dtype))(choice)
    return _place(values, choice, windows=windows)


def _for_cpu(form, thin_form):
    """With few channels nothing is fused with a form, or the gradient of a network does the search for the maximum
    again for each of the window's pixels, in loops that are not vectorized. With more channels that is faster than
    passing the choice through memory.
    """
    thin_form = compiler.isolated(thin_form)

    def chosen(images, *rest, windows: PoolWindows):
        return (thin_form if images.shape[-1] < THIN_CHANNELS else form)(images, *rest, windows=windows)

    return chosen


def _alternate(first, second):
    return tuple(entry for pair in zip(first, second, strict=True) for entry in pair)


def _lowest(dtype):
    return -jnp.inf if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo(dtype).min


def _pad(images, value, windows: PoolWindows):
    """Fills up to the last row of the last window; rows that no window reaches are cut off."""
    config = [
        (low, (output - 1) * stride + window - size - low, 0)
        for size, window, stride, low, output in zip(*windows[:5], strict=True)
    ]
    return lax.pad(images, jnp.asarray(value, images.dtype), ((0, 0, 0), *config, (0, 0, 0)))


def _shifted(padded, offset, windows: PoolWindows):
    """The pixel at `offset`, numbers or tracers, of every window."""
    reach = [(output - 1) * stride + 1 for output, stride in zip(windows.output, windows.strides, strict=True)]
    batch, channels = padded.shape[0], padded.shape[-1]
    if all(isinstance(step, int) for step in offset):
        ends = [step + size for step, size in zip(offset, reach, strict=True)]
        return lax.slice(padded, (0, *offset, 0), (batch, *ends, channels), (1, *windows.strides, 1))
    region = lax.dynamic_slice(padded, (0, *offset, 0), (batch, *reach, channels))
    return lax.slice(region, (0,) * region.ndim, region.shape, (1, *windows.strides, 1))


def _first_real_offset(windows: PoolWindows):
    number = np.zeros((), np.int64)
    for window, stride, low, output in zip(*windows[1:5], strict=True):
        number = np.add.outer(number * window, np.maximum(0, low - stride * np.arange(output)))
    return number[None, ..., None].astype(windows.choice_dtype)


def _offset_of_phase(tap, windows: PoolWindows):
    """The offset's number for every phase at this tap, [1, 1, stride, 1, stride, ..., 1]; an impossible one beyond
    the window."""
    number = np.zeros((), np.int64)
    outside = np.zeros((), bool)
    for step, window, stride in zip(tap, windows.window, windows.strides, strict=True):
        offset = np.arange(stride) + step * stride
        number = np.add.outer(number * window, offset)
        outside = np.logical_or.outer(outside, offset >= window)
    number = np.where(outside, np.iinfo(windows.choice_dtype).max, number).astype(windows.choice_dtype)
    return number.reshape(1, *_alternate([1] * len(windows.strides), windows.strides), 1)


# --- rules ---------------------------------------------------------------------------------------------------------


@functools.cache
def _compiled(primitive, windows: PoolWindows):
    return compiler.eager(functools.partial(primitive.bind, windows=windows))


def _define(primitive, form, abstract, form_for_cpu) -> None:
    def evaluate(*operands, windows: PoolWindows):
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]  # the compiled form would come back here
            return form(*operands, windows=windows)
        return _compiled(primitive, windows)(*operands)

    primitive.def_impl(evaluate)
    primitive.def_abstract_eval(abstract)
    several = primitive.multiple_results
    mlir.register_lowering(primitive, placement.lowering(form, multiple_results=several))
    mlir.register_lowering(primitive, compiler.cpu_lowering(form_for_cpu, multiple_results=several), platform="cpu")
    batching.primitive_batchers[primitive] = functools.partial(_members_in_batch, primitive)


def _abstract_max(images, *, windows: PoolWindows):
    shape = (images.shape[0], *windows.output, images.shape[-1])
    return [placement.result(images, shape, dtype) for dtype in (images.dtype, windows.choice_dtype)]


def _abstract_select(images, choice, *, windows: PoolWindows):
    return placement.result(images, choice.shape, images.dtype)


def _abstract_place(values, choice, *, windows: PoolWindows):
    return placement.result(values, (values.shape[0], *windows.spatial, values.shape[-1]), values.dtype)


def _members_in_batch(primitive, operands, axes, *, windows: PoolWindows):
    members = next(operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None)
    folded = []
    for operand, axis in zip(operands, axes, strict=True):
        if axis is None:
            operand = jnp.broadcast_to(operand, (members, *operand.shape))
        else:
            operand = jnp.moveaxis(operand, axis, 0)
        folded.append(operand.reshape(members * operand.shape[1], *operand.shape[2:]))

    def unfold(result):
        return result.reshape(members, result.shape[0] // members, *result.shape[1:])

    results = primitive.bind(*folded, windows=windows)
    if not primitive.multiple_results:
        return unfold(results), 0
    return [unfold(result) for result in results], [0] * len(results)


_define(max_with_choice_p, _max_with_choice, _abstract_max, _for_cpu(_max_with_choice, _thin_max_with_choice))
_define(select_p, _select, _abstract_select, _for_cpu(_select, _select))
_define(place_p, _place, _abstract_place, _for_cpu(_place, _thin_place))


def _max_jvp(primals, tangents, *, windows: PoolWindows):
    (images,), (tangent,) = primals, tangents
    values, choice = max_with_choice_p.bind(images, windows=windows)
    no_tangent = ad.Zero(jax.typeof(choice).to_tangent_aval())
    if isinstance(tangent, ad.Zero):
        return [values, choice], [ad.Zero(jax.typeof(values).to_tangent_aval()), no_tangent]
    return [values, choice], [select_p.bind(tangent, choice, windows=windows), no_tangent]


def _linear_in_first(primitive, transposed) -> None:
    """`primitive` is linear in its first operand; the second, the choice, has no derivative."""
    ad.defjvp(primitive, lambda tangent, _, choice, windows: primitive.bind(tangent, choice, windows=windows), None)

    def transpose(cotangent, operand, choice, *, windows: PoolWindows):
        if isinstance(cotangent, ad.Zero):
            return [ad.Zero(operand.aval), None]
        return [transposed.bind(cotangent, choice, windows=windows), None]

    ad.primitive_transposes[primitive] = transpose


ad.primitive_jvps[max_with_choice_p] = _max_jvp
_linear_in_first(select_p, place_p)
_linear_in_first(place_p, select_p)
