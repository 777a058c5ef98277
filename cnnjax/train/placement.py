"""Where a training runs: one mesh over the devices of all processes, and what is where on it.

The axis `data` divides the images of a batch, the axis `member` the members of a sweep. State and hyperparameters are
everywhere. Programs are compiled for the mesh by `jit` alone, which adds the sums over devices.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnnjax.errors import InputError

DATA, MEMBER = "data", "member"


def make_mesh(data: int = 1, member: int = 1) -> Mesh:
    """The first `data` · `member` devices."""
    devices = np.array(jax.devices()[: data * member]).reshape(data, member)
    return Mesh(devices, (DATA, MEMBER), axis_types=(AxisType.Auto, AxisType.Auto))


def mesh_for(batch_size: int, devices: int | None = None, parts: int = 1) -> Mesh:
    """Over as many devices as are asked for; None: over the most of all that divide the batch.

    Args:
        parts: of the batch, each of which the devices share.

    Raises:
        InputError: there are fewer, or they do not divide the batch; it names the nearest sizes that they do.
    """
    count = jax.device_count()
    if devices is None and jax.process_count() == 1:
        return make_mesh(max(number for number in range(1, count + 1) if batch_size % (parts * number) == 0))
    devices = count if devices is None else devices
    if not 1 <= devices <= count:
        raise InputError(f"--devices must be between 1 and the {count} that JAX has here, got {devices}")
    if jax.process_count() > 1 and devices != count:
        raise InputError(f"--devices must be all {count} of the {jax.process_count()} processes, got {devices}")
    images = parts * devices  # of a step at the least
    if batch_size % images:
        below, above = batch_size // images * images, -(-batch_size // images) * images
        nearest = " or ".join(str(size) for size in (below, above) if size)
        times = f" times train.accumulate ({parts})" if parts > 1 else ""
        raise InputError(
            f"train.batch_size must be a multiple of the {devices} devices{times}, as {nearest} is, got {batch_size}"
        )
    return make_mesh(devices)


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """The arrays, which every process has whole, on every device."""
    sharding = NamedSharding(mesh, P())
    if not mesh.is_multi_process:
        return jax.device_put(tree, sharding)

    def of(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(of, tree)


def columns_of_process(mesh: Mesh, batch_size: int) -> slice:
    """The images of a batch that this process's devices see."""
    places = [place for place, device in enumerate(mesh.devices[:, 0]) if device.process_index == jax.process_index()]
    share = batch_size // len(mesh.devices)
    return slice(places[0] * share, (places[-1] + 1) * share)
