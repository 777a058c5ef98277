"""The arithmetic of windows that slide over 1, 2 or 3 spatial dimensions: sizes, fit, padding, receptive fields, costs.

Plain integers, no arrays. The lecture's rule for one dimension: a filter of F pixels that moves by S pixels over N
pixels with P zeros at either end gives (N - F + 2P)/S + 1 outputs, and *does not fit* where that is a fraction. What
is done then is the `rounding`: "exact" refuses (the lecture), "floor" leaves the last pixels out (XLA, PyTorch),
"ceil" adds zeros at the high end (cuda-convnet, Caffe).

A `padding` is a number for all dimensions, a number for each, a pair (low, high) for each, 'SAME' (the output has
ceil(N / S) pixels, odd zeros go to the high end, as in TensorFlow) or 'VALID' (none). Every other argument is a
number for all dimensions or one for each.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from cnnjax.errors import InputError

Ints: TypeAlias = int | Sequence[int]
Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = int | str | Sequence[int] | Sequence[Sequence[int]]
Rounding: TypeAlias = Literal["exact", "floor", "ceil"]


class Placement(NamedTuple):
    """Where the windows lie: how many there are along each dimension, and the zeros (low, high) around the input."""

    output: tuple[int, ...]
    padding: tuple[Pair, ...]


class FittingPaddings(NamedTuple):
    """What would make a filter fit: numbers for both ends, and the smallest (low, high) pair."""

    symmetric: tuple[int, ...]
    smallest: Pair


class ReceptiveField(NamedTuple):
    """What one unit sees of the input, along one dimension, in input pixels.

    `start` is the centre of the first unit's field, where 0 is the centre of the first pixel: unit i sees the
    pixels from start + i·jump - (size - 1)/2 to start + i·jump + (size - 1)/2 (outside the input it sees padding).
    """

    size: int = 1
    jump: int = 1
    start: float = 0.0


def as_ints(value: Ints, dimensions: int, name: str, *, minimum: int = 1) -> tuple[int, ...]:
    """One integer for each dimension; InputError where the count is wrong or one is below `minimum`."""
    values = value if isinstance(value, Sequence) else (value,) * dimensions
    if not all(_is_int(entry) for entry in values):
        raise InputError(f"{name} must be an integer or {dimensions} of them, got {value!r}")
    if len(values) != dimensions:
        raise InputError(f"{name} must have one entry for each of the {dimensions} dimensions, got {value!r}")
    integers = tuple(int(entry) for entry in values)
    if min(integers) < minimum:
        raise InputError(f"{name} must be at least {minimum}, got {value!r}")
    return integers


def effective_window(window: int, dilation: int = 1) -> int:
    """Pixels from the first to the last that a dilated filter touches."""
    return (window - 1) * dilation + 1


def resolve_padding(
    padding: Padding, spatial: Sequence[int], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> tuple[Pair, ...]:
    """The zeros (low, high) for each dimension that `padding` stands for."""
    dimensions = len(spatial)
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise InputError(f"padding must be numbers, 'SAME' or 'VALID', got {padding!r}")
        if padding == "VALID":
            return ((0, 0),) * dimensions
        return tuple(_same_padding(*sizes) for sizes in zip(spatial, window, strides, dilation, strict=True))
    entries = padding if isinstance(padding, Sequence) else (padding,) * dimensions
    if len(entries) != dimensions:
        raise InputError(
            f"padding must be a number, a number or a pair (low, high) for each of the {dimensions} dimensions, "
            f"'SAME' or 'VALID', got {padding!r}"
        )
    return tuple(_as_pair(entry, padding) for entry in entries)


def place_windows(
    spatial: Sequence[int],
    window: Ints,
    *,
    strides: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    rounding: Rounding = "exact",
) -> Placement:
    """How many windows there are along each dimension, and the zeros that they need.

    Raises:
        InputError: the filter does not fit (`rounding` "exact") or is larger than the padded input (with "ceil": by a
            stride or more); says what fits.
    """
    if rounding not in get_args(Rounding):
        raise InputError(f"rounding must be one of {', '.join(get_args(Rounding))}, got {rounding!r}")
    dimensions = len(spatial)
    spatial = as_ints(tuple(spatial), dimensions, "spatial", minimum=0)
    window = as_ints(window, dimensions, "window")
    strides = as_ints(strides, dimensions, "strides")
    dilation = as_ints(dilation, dimensions, "dilation")
    pairs = resolve_padding(padding, spatial, window, strides, dilation)
    spans = tuple(
        size + low + high - effective_window(filter_size, holes)
        for size, (low, high), filter_size, holes in zip(spatial, pairs, window, dilation, strict=True)
    )
    fits = all(span % stride == 0 for span, stride in zip(spans, strides, strict=True))
    exact, rounded = rounding == "exact" and padding != "SAME", rounding == "ceil" and padding != "SAME"
    # 'SAME' says the output size by itself, so there is nothing left to round.
    more = tuple(-span % stride if rounded else 0 for span, stride in zip(spans, strides, strict=True))
    if min((span + zeros for span, zeros in zip(spans, more, strict=True)), default=0) < 0 or (exact and not fits):
        raise InputError(_misfit(spatial, window, strides, pairs, dilation))
    pairs = tuple((low, high + zeros) for (low, high), zeros in zip(pairs, more, strict=True))
    spans = tuple(span + zeros for span, zeros in zip(spans, more, strict=True))
    return Placement(tuple(span // stride + 1 for span, stride in zip(spans, strides, strict=True)), pairs)


def output_shape(
    spatial: Sequence[int],
    window: Ints,
    *,
    strides: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    rounding: Rounding = "exact",
) -> tuple[int, ...]:
    """Outputs along each dimension; raises as `place_windows`."""
    return place_windows(spatial, window, strides=strides, padding=padding, dilation=dilation, rounding=rounding).output


def output_size(
    size: int,
    window: int,
    stride: int = 1,
    padding: int | str | Pair = 0,
    rounding: Rounding = "exact",
    dilation: int = 1,
) -> int:
    """Outputs along one dimension: (N - F + 2P)/S + 1; raises as `place_windows`."""
    entries = padding if isinstance(padding, str) else (_as_pair(padding, padding),)
    return output_shape((size,), window, strides=stride, padding=entries, dilation=dilation, rounding=rounding)[0]


def transposed_output_size(
    size: int, window: int, stride: int = 1, padding: int | Pair = 0, dilation: int = 1, remainder: int = 0
) -> int:
    """The smallest input from which a convolution makes `size` outputs, plus `remainder` (0 to stride - 1) pixels.

    The pixels that "floor" leaves out cannot be known from the output, hence `remainder`.
    """
    low, high = _as_pair(padding, padding)
    if not 0 <= remainder < stride:
        raise InputError(f"remainder must be from 0 to stride - 1 ({stride - 1}), got {remainder}")
    result = (size - 1) * stride + effective_window(window, dilation) - low - high + remainder
    if result < 1:
        raise InputError(f"padding must leave at least one pixel of the transposed output, got {padding!r}")
    return result


def fitting_paddings(size: int, window: int, stride: int = 1, dilation: int = 1) -> FittingPaddings:
    """The zero paddings with which a filter fits.

    `symmetric` has every P below the filter's size (so that no window sees padding alone), none where the stride is
    even and N - F odd; `smallest` is the least total, its odd zero at the high end, and always exists.
    """
    filter_size = effective_window(window, dilation)
    shortest = max(0, -(-(filter_size - size) // 2))
    symmetric = tuple(
        zeros for zeros in range(shortest, shortest + filter_size) if (size - filter_size + 2 * zeros) % stride == 0
    )
    total = filter_size - size if size < filter_size else (filter_size - size) % stride
    return FittingPaddings(symmetric, (total // 2, total - total // 2))


def compose(
    field: ReceptiveField, window: int, stride: int = 1, padding: int | Pair = 0, dilation: int = 1
) -> ReceptiveField:
    """The field of a unit one layer further on, along one dimension; start from `ReceptiveField()`, a pixel."""
    low, _ = _as_pair(padding, padding)
    reach = effective_window(window, dilation) - 1
    return ReceptiveField(
        size=field.size + reach * field.jump,
        jump=field.jump * stride,
        start=field.start + (reach / 2 - low) * field.jump,
    )


def weight_count(
    window: Sequence[int], in_channels: int, out_channels: int, *, groups: int = 1, bias: bool = True
) -> int:
    """Weights of a convolution: (F·F·D₁)·K + K, the K biases included unless `bias` is False."""
    if in_channels % groups or out_channels % groups:
        raise InputError(f"groups must divide the channels ({in_channels} in, {out_channels} out), got {groups}")
    return math.prod(window) * (in_channels // groups) * out_channels + (out_channels if bias else 0)


def multiply_adds(
    output: Sequence[int], window: Sequence[int], in_channels: int, out_channels: int, *, groups: int = 1
) -> int:
    """Multiplications (each with its addition) of a convolution of one image; zeros of the padding count as pixels."""
    return math.prod(output) * weight_count(window, in_channels, out_channels, groups=groups, bias=False)


def flops(output: Sequence[int], window: Sequence[int], in_channels: int, out_channels: int, *, groups: int = 1) -> int:
    """Floating-point operations of a convolution of one image: two for each multiply-add, biases not counted."""
    return 2 * multiply_adds(output, window, in_channels, out_channels, groups=groups)


def activation_bytes(shape: Sequence[int], bytes_per_value: int = 4) -> int:
    """Memory of one activation array, in bytes; 4 for each value is float32."""
    return math.prod(shape) * bytes_per_value


def _is_int(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _as_pair(entry: Any, padding: Any) -> Pair:
    """`entry` of `padding` (which the error shows) as (low, high)."""
    pair = (entry, entry) if _is_int(entry) else entry
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(_is_int, pair)):
        raise InputError(f"padding must be made of integers or pairs (low, high) of them, got {padding!r}")
    if min(pair) < 0:
        raise InputError(f"padding must be at least 0, got {padding!r}")
    return int(pair[0]), int(pair[1])


def _same_padding(size: int, window: int, stride: int, dilation: int) -> Pair:
    output = -(-size // stride)
    total = max(0, (output - 1) * stride + effective_window(window, dilation) - size)
    return total // 2, total - total // 2


def _misfit(
    spatial: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    pairs: Sequence[Pair],
    dilation: Sequence[int],
) -> str:
    """The lecture's sentence, with the sum of the first dimension that fails, and what would fit."""
    filters = tuple(effective_window(filter_size, holes) for filter_size, holes in zip(window, dilation, strict=True))
    spans = tuple(size - f + low + high for size, f, (low, high) in zip(spatial, filters, pairs, strict=True))
    failing = next(i for i, span in enumerate(spans) if span < 0 or span % strides[i])
    low, high = pairs[failing]
    zeros = f"2·{low}" if low == high else f"{low} + {high}"
    quotient = spans[failing] / strides[failing] + 1
    dilated = "" if filters == tuple(window) else f" (dilated to {_by(filters)})"
    return (
        f"{_filter(window)}{dilated} with stride {_stride(strides)} does not fit {_by(spatial)} "
        f"with padding {_paddings(pairs)}: "
        f"({spatial[failing]} - {filters[failing]} + {zeros})/{strides[failing]} + 1 = {quotient:.3g}; "
        f"padding {_fitting(spatial, window, strides, dilation)} would fit"
    )


def _fitting(spatial: Sequence[int], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> str:
    options = [fitting_paddings(*sizes) for sizes in zip(spatial, window, strides, dilation, strict=True)]
    shared = set.intersection(*(set(option.symmetric) for option in options))
    return str(min(shared)) if shared else str(tuple(option.smallest for option in options))


def _by(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def _stride(strides: Sequence[int]) -> str:
    return str(strides[0]) if len(set(strides)) == 1 else _by(strides)


def _filter(window: Sequence[int]) -> str:
    if len(window) == 1:
        return f"a filter of {window[0]}"
    return f"{'an' if str(window[0])[0] == '8' or window[0] in (11, 18) else 'a'} {_by(window)} filter"


def _paddings(pairs: Sequence[Pair]) -> str:
    if len(set(pairs)) == 1 and pairs[0][0] == pairs[0][1]:
        return str(pairs[0][0])
    return str(tuple(pairs))
