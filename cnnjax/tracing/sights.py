"""What each value of a traced function sees of the image, equation by equation.

Along one dimension of the image, the element at `index` of an array sees `size` pixels, the middle one of them at
start + Σ jumps[axis]·index[axis]. Convolutions, pools, slices, padding, transposes, blocks, sums and concatenations all
keep that form; where paths differ, what is seen is all from the first to the last pixel of either. What has no such
form counts as seeing the whole image, which is None.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from cnnjax.geometry import effective_window


class Sight(NamedTuple):
    """What the elements of an array see along one dimension of the image, in pixels."""

    size: int
    start: float
    jumps: tuple[int, ...]  # one an axis of the array

    def without(self, axes: Sequence[int], shape: Sequence[int]) -> "Sight":
        """Of what is made from all elements along these axes."""
        size, start = self.size, self.start
        for axis in axes:
            size += abs(self.jumps[axis]) * (shape[axis] - 1)
            start += self.jumps[axis] * (shape[axis] - 1) / 2
        return Sight(size, start, tuple(jump for axis, jump in enumerate(self.jumps) if axis not in axes))

    def slid(self, axis: int, window: int, stride: int, low: int, dilation: int = 1) -> "Sight":
        """Of windows that slide along an axis."""
        jump, reach = self.jumps[axis], effective_window(window, dilation) - 1
        jumps = (*self.jumps[:axis], jump * stride, *self.jumps[axis + 1 :])
        return Sight(self.size + reach * abs(jump), self.start + (reach / 2 - low) * jump, jumps)


Sights = tuple[Sight | None, ...]  # one a dimension of the image


def of_images(axes: Sequence[int], dimensions: int) -> Sights:
    """Of the images themselves, whose pixels stand along `axes` of `dimensions`."""
    return tuple(Sight(1, 0.0, tuple(int(other == axis) for other in range(dimensions))) for axis in axes)


def union(first: Sight | None, *others: Sight | None) -> Sight | None:
    """All from the first to the last pixel that one of them sees."""
    for other in others:
        if first is None or other is None or first.jumps != other.jumps:
            return None
        low = min(sight.start - (sight.size - 1) / 2 for sight in (first, other))
        high = max(sight.start + (sight.size - 1) / 2 for sight in (first, other))
        first = Sight(round(high - low) + 1, (low + high) / 2, first.jumps)
    return first


def through(equation: Any, operands: Sequence[tuple[Sights | None, tuple[int, ...]]]) -> list[Sights]:
    """What the outputs of an equation see.

    Args:
        operands: what each operand sees, None for one that is no data, and its shape.
    """
    shapes = [variable.aval.shape for variable in equation.outvars]
    dimensions = len(next(sights for sights, _ in operands if sights is not None))
    rule = _RULES.get(equation.primitive.name, _elementwise)

    def one(dimension: int, output: int) -> Sight | None:
        held = [(sights and sights[dimension], shape, sights is not None) for sights, shape in operands]
        if any(data and sight is None for sight, _, data in held):
            return None
        return rule(equation.params, [(sight, shape) for sight, shape, _ in held], shapes[output])

    return [tuple(one(dimension, output) for dimension in range(dimensions)) for output in range(len(shapes))]


# --- rules: (parameters, [(sight or None for what is no data, shape)], output shape) -> sight ------------------------


def _elementwise(params, operands, shape):
    held = [(sight, of) for sight, of in operands if sight is not None]
    if any(of != shape for _, of in held):
        return None
    return union(*(sight for sight, _ in held))


def _whole(params, operands, shape):
    return None


def _single(rule):
    """A rule of one operand with data; others hold none."""

    def of_one(params, operands, shape):
        (sight, of), *more = operands
        if sight is None or any(other is not None for other, _ in more):
            return None
        return rule(params, sight, of, shape)

    return of_one


def _broadcast(params, sight, of, shape):
    jumps = [0] * len(shape)
    for axis, place in enumerate(params["broadcast_dimensions"]):
        jumps[place] = sight.jumps[axis] if of[axis] == shape[place] else 0
    return sight._replace(jumps=tuple(jumps))


def _reshape(params, sight, of, shape):
    """Axes stand for one another in groups of equal size; within a group they are split or merged."""
    if 0 in shape:
        return None
    jumps, begins = [], (0, 0)
    while begins[0] < len(of) or begins[1] < len(shape):
        ends = [min(begins[0] + 1, len(of)), min(begins[1] + 1, len(shape))]
        while (sizes := (math.prod(of[begins[0] : ends[0]]), math.prod(shape[begins[1] : ends[1]])))[0] != sizes[1]:
            ends[sizes[0] > sizes[1]] += 1
        old, new = slice(begins[0], ends[0]), slice(begins[1], ends[1])
        group = _regrouped(sight.jumps[old], of[old], shape[new])
        if group is None:
            return None
        jumps, begins = jumps + group, tuple(ends)
    return sight._replace(jumps=tuple(jumps))


def _regrouped(jumps, old, new):
    """The jumps of axes of sizes `new` that hold the elements of axes of sizes `old` in the same order."""
    held = [(jump, size) for jump, size in zip(jumps, old, strict=True) if size > 1]
    if all(jump == 0 for jump, _ in held):
        return [0] * len(new)
    for (outer, _), (inner, size) in itertools.pairwise(held):
        if outer != inner * size:
            if [size for _, size in held] == [size for size in new if size > 1]:
                given = iter(jump for jump, _ in held)
                return [next(given) if size > 1 else 0 for size in new]
            return None
    step, found = held[-1][0], []
    for size in reversed(new):
        found.append(step if size > 1 else 0)
        step *= size
    return found[::-1]


def _transpose(params, sight, of, shape):
    return sight._replace(jumps=tuple(sight.jumps[axis] for axis in params["permutation"]))


def _squeeze(params, sight, of, shape):
    return sight.without([axis % len(of) for axis in params["dimensions"]], of)


def _slice(params, sight, of, shape):
    strides = params["strides"] or (1,) * len(of)
    start = sight.start + sum(jump * at for jump, at in zip(sight.jumps, params["start_indices"], strict=True))
    return Sight(sight.size, start, tuple(jump * stride for jump, stride in zip(sight.jumps, strides, strict=True)))


def _pad(params, operands, shape):
    (sight, _), *_ = operands
    start = sight.start
    for jump, (low, _, interior) in zip(sight.jumps, params["padding_config"], strict=True):
        if jump and interior:
            return None
        start -= jump * low
    return sight._replace(start=start)


def _reverse(params, sight, of, shape):
    turned = [axis in params["dimensions"] for axis in range(len(of))]
    ends = sum(jump * (size - 1) for jump, size, turn in zip(sight.jumps, of, turned, strict=True) if turn)
    jumps = tuple(-jump if turn else jump for jump, turn in zip(sight.jumps, turned, strict=True))
    return Sight(sight.size, sight.start + ends, jumps)


def _reduce(params, sight, of, shape):
    return sight.without([int(axis) for axis in params["axes"]], of)


def _sum_channels(params, sight, of, shape):
    return sight.without(range(params["members"], len(of) - 1), of)


def _concatenate(params, operands, shape):
    axis, end, parts = params["dimension"], 0, []
    for sight, of in operands:
        if sight is not None:
            parts.append(sight._replace(start=sight.start - sight.jumps[axis] * end))
        end += of[axis]
    return union(*parts)


def _reduce_window(params, operands, shape):
    (sight, of), *_ = operands
    if max(params.get("base_dilation") or (1,)) > 1:
        return None
    dilation = params.get("window_dilation") or (1,) * len(of)
    for axis, (low, _) in enumerate(params["padding"]):
        sight = sight.slid(axis, params["window_dimensions"][axis], params["window_strides"][axis], low, dilation[axis])
    return sight


def _pool(params, operands, shape):
    (sight, _), *_ = operands
    windows = params["windows"]
    for axis, (window, stride, low) in enumerate(zip(windows.window, windows.strides, windows.low, strict=True), 1):
        sight = sight.slid(axis, window, stride, low)
    return sight


def _windowed_product(params, operands, shape):
    (sight, _), (kernel, _) = operands
    windows = params["windows"]
    if sight is None or kernel is not None or params["face"] != "output":
        return None
    return _slid(sight, range(1, 1 + len(windows.window)), *windows[1:5])


def _convolution(params, operands, shape):
    (sight, of), (kernel, filters) = operands
    numbers = params["dimension_numbers"]
    if sight is None or kernel is not None or max(params["lhs_dilation"]) > 1:
        return None
    window = [filters[axis] for axis in numbers.rhs_spec[2:]]
    ordered = sight._replace(jumps=tuple(sight.jumps[axis] for axis in numbers.lhs_spec))
    found = _slid(
        ordered, range(2, len(of)), window, params["window_strides"], params["padding"], params["rhs_dilation"]
    )
    jumps = [0] * len(shape)
    for axis, jump in zip(numbers.out_spec, found.jumps, strict=True):
        jumps[axis] = jump
    return found._replace(jumps=tuple(jumps))


def _slid(sight, axes, windows, strides, padding, dilation):
    for axis, window, stride, (low, _), holes in zip(axes, windows, strides, padding, dilation, strict=True):
        sight = sight.slid(axis, window, stride, low, holes)
    return sight


def _product(params, operands, shape):
    contracted, batch = params["dimension_numbers"]
    found = []
    for number, (sight, of) in enumerate(operands):
        if sight is None:
            continue
        free = [axis for axis in range(len(of)) if axis not in (*contracted[number], *batch[number])]
        before = 0 if number == 0 else len(operands[0][1]) - len(contracted[0]) - len(batch[0])
        kept = sight.without(contracted[number], of)
        left = [axis for axis in range(len(of)) if axis not in contracted[number]]
        jump_of = dict(zip(left, kept.jumps, strict=True))
        jumps = [jump_of[axis] for axis in batch[number]] + [0] * before + [jump_of[axis] for axis in free]
        found.append(kept._replace(jumps=tuple(jumps + [0] * (len(shape) - len(jumps)))))
    return union(*found)


def _select(params, operands, shape):
    held = [(sight, of) for sight, of in operands if sight is not None and math.prod(of) > 1]
    return _elementwise(params, held, shape)


_RULES: dict[str, Any] = {
    "broadcast_in_dim": _single(_broadcast),
    "reshape": _single(_reshape),
    "transpose": _single(_transpose),
    "squeeze": _single(_squeeze),
    "slice": _single(_slice),
    "pad": _pad,
    "rev": _single(_reverse),
    "concatenate": _concatenate,
    "reduce_window": _reduce_window,
    "reduce_window_max": _reduce_window,
    "reduce_window_min": _reduce_window,
    "reduce_window_sum": _reduce_window,
    "max_with_choice": _pool,
    "windowed_product": _windowed_product,
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "select_n": _select,
    "sum_channels": _single(_sum_channels),
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"),
        _single(_reduce),
    ),
    **dict.fromkeys(
        ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "fft", "top_k", "scan", "while", "cond",
         "gather", "dynamic_slice", "dynamic_update_slice", "scatter", "scatter_add", "select_in_windows",
         "place_in_windows"),
        _whole,
    ),
}  # fmt: skip
