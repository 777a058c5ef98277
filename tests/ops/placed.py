"""What `test_placement.py` looks at, on eight simulated devices: `python -m tests.ops.placed '[NAME, ...]'`."""

import functools
import json
import math
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cnnjax import ops
from cnnjax.ops import bias, convolution_forms

DEVICES = 8
BATCH = 16


class Case(NamedTuple):
    function: Callable[..., Any]
    data: tuple[tuple[int, ...], ...]  # shapes of what has a batch
    weights: tuple[tuple[int, ...], ...] = ()  # and of what has none; out channels last
    adds_up: bool = False  # over the batch, so that in `shard_map` a device's result is that of its own images


def _scanned(scan: Callable[..., Any], window: int) -> Callable[..., Any]:
    def scanned(x, kernel, bias, second, second_bias):
        return scan([ops.DenseLayer(kernel, bias), ops.DenseLayer(second, second_bias)], x, window)

    return scanned


def _switches(x):
    pooled = ops.max_pool_with_switches(x, 3, strides=2)
    both = [ops.unpool(*pooled, x.shape[1:-1], overlap=overlap) for overlap in ("sum", "overwrite")]
    return (*pooled, *both)


def _transposed(x, kernel):
    outputs = jnp.sin(ops.conv(x, kernel))
    (gradient,) = jax.linear_transpose(lambda kernel: ops.conv(x, kernel), kernel)(outputs)
    return outputs * jnp.mean(gradient**2)


def _by_member(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of kernels that are members, on the same images; the members' axis comes behind the batch."""
    return lambda x, kernels: jax.vmap(function, (None, 0), 1)(x, kernels)


def _members_in_turn(x, kernels):
    def loss(kernel, x):
        return jnp.sum(ops.max_pool(ops.conv(x, kernel), 2) ** 2)

    return jax.vmap(ops.members_in_turn(jax.grad(loss, argnums=1)), (0, None), 1)(kernels, x)


def _loss_of_network(x, kernel, scale, offset, dense, dense_bias):
    """With all that has weights; without a bias between convolution and normalization, for which nothing depends."""
    normed = ops.batch_norm(ops.conv(x, kernel, strides=2, padding=1), scale, offset)
    pooled = ops.max_pool(jax.nn.relu(normed.values), 3, strides=2, padding=1)
    units = ops.dropout(jax.random.key(0), ops.local_response_norm(pooled).mean((1, 2)), 0.4)
    logits = ops.dense(units, dense, dense_bias)
    return jnp.mean(jax.nn.logsumexp(logits, -1) - (logits * jnp.arange(6)).mean(-1))


IMAGES = (BATCH, 6, 6, 4)
CASES = {
    "conv": Case(lambda x, w: ops.conv(x, w, padding=1), (IMAGES,), ((3, 3, 4, 8),)),
    "conv, 1×1": Case(ops.conv, (IMAGES,), ((1, 1, 4, 8),)),
    "conv, strides": Case(lambda x, w: ops.conv(x, w, strides=2, padding=1), (IMAGES,), ((3, 3, 4, 8),)),
    "conv, dilation": Case(lambda x, w: ops.conv(x, w, padding=2, dilation=2), (IMAGES,), ((3, 3, 4, 8),)),
    "conv, groups": Case(lambda x, w: ops.conv(x, w, groups=2), (IMAGES,), ((3, 3, 2, 8),)),
    "conv, depthwise": Case(lambda x, w: ops.conv(x, w, groups=4), (IMAGES,), ((3, 3, 1, 8),)),
    "conv, 1-D": Case(lambda x, w: ops.conv(x, w, padding=1), ((BATCH, 6, 4),), ((3, 4, 8),)),
    "conv, 3-D": Case(lambda x, w: ops.conv(x, w, padding=1), ((BATCH, 3, 4, 4, 4),), ((2, 3, 3, 4, 8),)),
    "conv, members": Case(_by_member(ops.conv), (IMAGES,), ((2, 3, 3, 4, 8),)),
    "conv_transpose": Case(
        lambda x, w: ops.conv_transpose(x, w, (5, 5), strides=2, padding=1), ((BATCH, 3, 3, 8),), ((3, 3, 4, 8),)
    ),
    "linear_transpose": Case(_transposed, (IMAGES,), ((3, 3, 4, 8),)),
    "add_bias": Case(ops.add_bias, (IMAGES,), ((4,),)),
    "channel_sums": Case(ops.channel_sums, (IMAGES,), adds_up=True),
    "batch_norm": Case(ops.batch_norm, (IMAGES,), ((4,), (4,)), adds_up=True),
    "batch_norm, mask": Case(
        lambda x, scale, bias: ops.batch_norm(x, scale, bias, x.sum((1, 2, 3)) > -1),
        (IMAGES,),
        ((4,), (4,)),
        adds_up=True,
    ),
    "dense": Case(ops.dense, ((BATCH, 4),), ((4, 8), (8,))),
    "dropout": Case(lambda x: ops.dropout(jax.random.key(0), x, 0.5), ((BATCH, 8),), adds_up=True),
    "max_pool": Case(lambda x: ops.max_pool(x, 3, strides=2, padding=1), (IMAGES,)),
    "switches and unpool": Case(_switches, (IMAGES,)),
    "avg_pool": Case(lambda x: ops.avg_pool(x, 3, strides=2, padding=1), (IMAGES,)),
    "adaptive_avg_pool": Case(lambda x: ops.adaptive_avg_pool(x, 4), (IMAGES,)),
    "local_response_norm": Case(ops.local_response_norm, (IMAGES,)),
    "scan_mlp": Case(_scanned(ops.scan_mlp, 3), (IMAGES,), ((36, 8), (8,), (8, 6), (6,))),
    "scan_mlp_literally": Case(_scanned(ops.scan_mlp_literally, 5), (IMAGES,), ((100, 8), (8,), (8, 6), (6,))),
    "members_in_turn": Case(_members_in_turn, (IMAGES,), ((2, 3, 3, 4, 8),)),
    "a network": Case(_loss_of_network, (IMAGES,), ((3, 3, 4, 8), (8,), (8,), (8, 6), (6,)), adds_up=True),
}


def with_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """The results, and the gradients of half the sum of their squares; that there is a forward derivative."""

    def every(*operands):
        jax.eval_shape(lambda *operands: jax.jvp(function, operands, operands), *operands)
        results, pull = jax.vjp(function, *operands)
        tangents = jax.tree.map(
            lambda one: np.zeros(one.shape, jax.dtypes.float0) if one.dtype == int else one, results
        )
        return results, pull(tangents)

    return every


def operands_of(case: Case) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.normal(size=shape).astype(np.float32) for shape in case.data + case.weights]


def on_one(case: Case, by_device: bool) -> Any:
    """The wanted numbers; by device: of each device's images alone, side by side."""
    operands = operands_of(case)
    if not by_device:
        return with_gradients(case.function)(*operands)
    data = [x.reshape(DEVICES, -1, *x.shape[1:]) for x in operands[: len(case.data)]]
    axes = [0] * len(data) + [None] * len(case.weights)
    return with_gradients(jax.vmap(case.function, axes))(*data, *operands[len(data) :])


MESHES = {
    "auto": ((DEVICES,), ("data",), (AxisType.Auto,)),
    "shard_map": ((DEVICES,), ("data",), (AxisType.Auto,)),
    "explicit": ((DEVICES // 2, 2), ("data", "model"), (AxisType.Explicit,) * 2),
}


def on_eight(case: Case, setting: str) -> tuple[Callable[..., Any], list[Any]]:
    """The function for eight devices, and its operands, divided by images; on Explicit axes by channels too."""
    every = with_gradients(case.function)
    shape, names, types = MESHES[setting]
    mesh = jax.make_mesh(shape, names, axis_types=types)
    last = "model" if setting == "explicit" else None
    specs = [P("data", *[None] * (len(shape) - 2), last) for shape in case.data]
    specs += [P(*[None] * (len(shape) - 1), last) for shape in case.weights]
    operands = [
        jax.device_put(operand, NamedSharding(mesh, spec))
        for operand, spec in zip(operands_of(case), specs, strict=True)
    ]
    if setting != "shard_map":
        return every, operands

    def own(*operands):
        results, gradients = every(*operands)
        count = len(case.data)
        alone = jax.tree.map(lambda leaf: leaf[None], (results, gradients[:count]))
        return (alone[0], (*alone[1], *gradients[count:])) if case.adds_up else (results, gradients)

    return jax.shard_map(own, mesh=mesh, in_specs=tuple(specs), out_specs=(P("data"), tuple(specs))), operands


def run(programs: dict[str, tuple[Callable[..., Any], list[Any]]]) -> tuple[dict[str, Any], str]:
    """By name the results of a function and its operands, all in one program; of what cannot be traced, the error.

    And the program.
    """
    sound, faults = {}, {}
    for name, (function, operands) in programs.items():
        try:
            jax.eval_shape(function, *operands)
            sound[name] = operands
        except Exception:
            faults[name] = traceback.format_exc()
    together = ops.jit(lambda given: [programs[name][0](*given[name]) for name in sound], runs_once=True)
    compiled = together.lower(sound).compile()
    results = zip(sound, map(jax.tree.leaves, jax.device_get(compiled(sound))), strict=True)
    return faults | dict(results), compiled.as_text()


def distance(ours: list, wanted: list) -> float:
    """The largest of two lists of arrays, as a share of an array's largest number, or of 1."""
    numbers = [pair for pair in zip(ours, wanted, strict=True) if pair[1].dtype != jax.dtypes.float0]
    return max(float(np.abs(one - other).max() / max(1, np.abs(other).max())) for one, other in numbers)


def sent(program: str) -> list[tuple[str, int]]:
    """What devices send each other in a compiled program: the kind, and how many numbers its largest array has."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", program)
    shapes = [[shape.split(",") for shape in re.findall(r"\[([\d,]*)\]", arrays)] for arrays, _ in found]
    sizes = [max(math.prod(int(size) for size in shape if size) for shape in arrays) for arrays in shapes]
    return [(kind, size) for (_, kind), size in zip(found, sizes, strict=True)]


def main(names: list[str]) -> dict[str, Any]:
    """name -> setting -> the distance from one device, or why there is no result; and what is sent under `jit`."""
    # So that a batch this small goes through all forms piece by piece, and is added up by products.
    convolution_forms.BLOCK_BYTES, bias.SUMMED_AS_PRODUCT = 2**11, 2**8
    whole, _ = run({name: (functools.partial(on_one, CASES[name], False), []) for name in names})
    parts, _ = run({name: (functools.partial(on_one, CASES[name], True), []) for name in names if CASES[name].adds_up})
    found: dict[str, Any] = {name: {} for name in names}
    for setting in MESHES:
        results, program = run({name: on_eight(CASES[name], setting) for name in names})
        wanted = whole | parts if setting == "shard_map" else whole
        for name, ours in results.items():
            found[name][setting] = ours if isinstance(ours, str) else distance(ours, wanted[name])
        if setting == "auto":
            found["sent"] = sent(program)
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
