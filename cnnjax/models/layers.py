"""The table of a network's layers: sizes, receptive fields, weights and work, computed from the network itself."""

from collections.abc import Callable
from typing import NamedTuple

from cnnjax import geometry
from cnnjax.errors import InputError
from cnnjax.geometry import ReceptiveField
from cnnjax.models.convnet import ConvNet


class Layer(NamedTuple):
    """One row of the table; sizes in pixels, work for one image."""

    name: str  # as in feature_maps
    input_shape: tuple[int, ...]  # height, width, channels, or units alone
    output_shape: tuple[int, ...]
    window: int  # side of the filter or of the pooling window; 0 where there is none
    stride: int
    padding: tuple[int, int]  # zeros at the low and at the high end
    field: ReceptiveField | None  # None where a unit sees the whole image
    weights: int
    biases: int
    multiply_adds: int


def layers(network: ConvNet, image_shape: tuple[int, ...]) -> list[Layer]:
    """The layers in network order, the logits last.

    Raises:
        InputError: for a filter or a pool that does not fit, with the layer, the sizes and a padding that would fit.
    """
    rows: list[Layer] = []
    shape, field = tuple(image_shape), ReceptiveField()

    def slide(name: str, window: int, stride: int, padding: int, channels: int, weights: Callable[[int], int]) -> None:
        nonlocal shape, field
        try:
            placed = geometry.place_windows(
                shape[:2], window, strides=stride, padding=padding, rounding=network.rounding
            )
        except InputError as error:
            floor = "; or leave the last pixels out with model.rounding floor" if network.rounding == "exact" else ""
            raise InputError(f"{name}: {error}{floor}") from None
        field = geometry.compose(field, window, stride, placed.padding[0])
        output = (*placed.output, channels)
        count = weights(shape[2])
        work = count * output[0] * output[1]
        biases = channels if count else 0
        rows.append(Layer(name, shape, output, window, stride, placed.padding[0], field, count, biases, work))
        shape = output

    for number, layer in enumerate(network.convolutions, 1):
        side, width = layer.filter, layer.width
        slide(
            f"conv{number}",
            side,
            layer.stride,
            layer.padding,
            width,
            lambda depth: geometry.weight_count((side, side), depth, width, bias=False),  # noqa: B023 - called at once
        )
        if layer.pool is not None:
            pool = layer.pool
            slide(f"pool{number}", pool.window, pool.stride, pool.padding, width, lambda depth: 0)
        if layer.norm != "none":
            scales = width if layer.norm == "batch" else 0
            rows.append(Layer(f"norm{number}", shape, shape, 0, 1, (0, 0), field, scales, scales, 0))
    units = 1
    for size in shape:
        units *= size
    for number, width in enumerate((*network.dense, network.num_classes), len(network.convolutions) + 1):
        weights = units * width
        rows.append(Layer(f"fc{number}", (units,), (width,), 0, 1, (0, 0), None, weights, width, weights))
        units = width
    return rows
