"""The table of a network's layers: sizes, receptive fields, weights and work, traced from the network itself."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.tracing.table import Layer, parameters_of, table


def layers(network: Any, image_shape: tuple[int, ...]) -> list[Layer]:
    """The layers in network order, the logits last.

    Args:
        network: its `init(key, images)` and `apply(variables, images)` are traced, and nothing is computed.
        image_shape: height, width, channels.

    Raises:
        InputError: for images that do not fit, as the network's own layers say it.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return layers_of(network, jax.eval_shape(network.init, jax.random.key(0), images), image_shape)


def layers_of(network: Any, variables: Any, image_shape: tuple[int, ...]) -> list[Layer]:
    """As `layers`, of a network whose variables are there, or their shapes."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), variables)
    return table(network.apply, shapes, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))


def training_operations(rows: Sequence[Layer]) -> float:
    """Of a training step, an image: two a multiply-add, forward and twice that backward."""
    return 6.0 * sum(row.multiply_adds for row in rows)


def kernels_of(variables: Any, row: Layer) -> list[np.ndarray]:
    """The kernels that lead to this row, [*window, in channels, out channels]; of a sum or a concatenation, several."""
    parameters = parameters_of(variables)
    if row.kernel is not None:
        return [np.transpose(np.asarray(parameters[row.kernel]), row.kernel_axes)]
    held = [np.asarray(parameters[path]) for path in row.parameters]
    return [kernel for kernel in held if kernel.ndim > 2]


def first_convolution(rows: Sequence[Layer]) -> Layer | None:
    """The convolution whose filters look at the pixels; None where there is none."""
    return next((row for row in rows if row.kernel and len(row.kernel_axes) > 2), None)


FEW = 8  # convolutions that a figure each is not too much for


def stages(rows: Sequence[Layer]) -> list[list[Layer]]:
    """The rows but for the logits in groups: what has a kernel, or joins branches, and the pools and norms behind it.

    Those of a chain are the paper's layers.
    """
    groups: list[list[Layer]] = []
    for row in rows[:-1]:
        if row.kind not in ("pool", "norm") or row.kernel or not groups:
            groups.append([])
        groups[-1].append(row)
    return groups


def stage_outputs(rows: Sequence[Layer]) -> list[Layer]:
    """The last row of each stage; where stages are many, of those that `looked_into` shows, and the last of all."""
    groups = stages(rows)
    if len(groups) > FEW:
        shown = {row.name for row in looked_into(rows)}
        groups = [group for group in groups[:-1] if shown.intersection(row.name for row in group)] + groups[-1:]
    return [group[-1] for group in groups]


def looked_into(rows: Sequence[Layer]) -> list[Layer]:
    """The rows that a study shows where none are named: maps of units that each see a part of the image.

    All convolutions where they are few; else one of each size of map, and the last of all: the last that joins branches
    and is not negative (a concatenation, or a sum behind which is a ReLU), or else the last convolution or sum.
    """
    shown = [row for row in rows if len(row.output_shape) == 3]
    maps = [row for row in shown if row.kind in ("conv", "sum", "concatenation") or row.kernel]
    if len(maps) <= FEW and all(row.kind == "conv" or row.kernel for row in maps):
        return maps
    joins = [row for row in maps if row.kind == "concatenation" or (row.kind == "sum" and row.relu is not None)]
    of_each_size = {row.output_shape[:2]: row for row in (*maps, *joins)}
    return list({row.name: row for row in (*of_each_size.values(), *maps[-1:])}.values())
