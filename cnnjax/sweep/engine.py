"""Members trained together: `jax.vmap` of the one train chunk over `Hyperparams` and state, in the one loop.

How the members run inside the program is the batching rule's business: on a CPU one after another, each a whole chunk
of steps with its data in the cache; elsewhere as a batch. Over several devices the members are divided; on a CPU each
core can be one.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnnjax import ops
from cnnjax.config import Config, Hyperparams
from cnnjax.data.dataset import Dataset
from cnnjax.data.scale import scale_of
from cnnjax.environment import usable_cores
from cnnjax.errors import InputError
from cnnjax.sweep.space import Member
from cnnjax.train.feed import Feeds, Portion, Resident, in_its_own_order
from cnnjax.train.memory import memory_left
from cnnjax.train.optimizers import scaled_at_first
from cnnjax.train.run import build
from cnnjax.train.step import initial_state, make_evaluate, make_order, make_preprocess, make_train_chunk
from cnnjax.train.training import Programs, Training

CANDIDATES = (1, 4, 16, 64, 256, 1024)
TOGETHER = 16  # members at a time on a CPU, at most
FEWEST = 4  # members at a time on a CPU, where stopping early leaves fewer
TIMED_SECONDS = 0.3
MOST_PROGRAM_SECONDS = 60.0  # a chunk size whose program takes longer to compile is not tried with more members


class Group(NamedTuple):
    """Members that one program trains, a chunk of them at a time."""

    config: Config  # of all, but for the hyperparameters
    members: list[Member]
    axes: Hyperparams  # 0 for what differs between the members, None for what they share


def group_of(members: Sequence[Member]) -> Group:
    """What differs gets an axis. A shared seed makes the members share batches, augmentation and dropout masks."""
    every = [member.config.hyper for member in members]
    axes = {
        field.name: 0 if len({getattr(hyper, field.name) for hyper in every}) > 1 else None
        for field in dataclasses.fields(Hyperparams)
    }
    if not any(axis == 0 for axis in axes.values()):
        axes["learning_rate"] = 0  # vmap needs one
    return Group(members[0].config, list(members), Hyperparams(**axes))  # pyright: ignore[reportArgumentType]


def stacked(group: Group, members: Sequence[Member]) -> Hyperparams:
    """The members' hyperparameters: arrays with a leading member axis where they differ in the group."""

    def of(field: str) -> Any:
        if getattr(group.axes, field) is None:
            return jnp.asarray(getattr(members[0].config.hyper, field))
        return jnp.asarray(np.array([getattr(member.config.hyper, field) for member in members]))

    return Hyperparams(**{field.name: of(field.name) for field in dataclasses.fields(Hyperparams)})


def a_device_for_each_core(members: int) -> None:
    """Makes each core of a CPU a device, at most one for a member; where JAX is in use already, its devices stay.

    Two cores that train two small networks do more than two cores that share one.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):  # else the user has chosen
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", max(1, min(members, usable_cores())))


def programs(group: Group, dataset: Dataset, sequential: bool, devices: int = 1) -> Programs:
    """The compiled functions of a group, of one member as it runs alone or of any number under `jax.vmap`.

    Args:
        devices: by how many the number of members can be divided; no more than these are used.
    """
    config = group.config
    network = build(config, dataset)
    preprocess = make_preprocess(*scale_of(config.data, dataset))
    image_shape = dataset.train.images.shape[1:]

    def init(hyper):
        return initial_state(network, config.train, hyper, image_shape)

    order = make_order(config.train, len(dataset.train))
    if group.axes.seed is not None:
        order = jax.vmap(order, in_axes=(group.axes, None), out_axes=(0, None))
    chunk = make_train_chunk(network, config.train, preprocess, len(dataset.train))
    evaluate = make_evaluate(network, config.train, preprocess)
    mesh = member_mesh(1 if sequential else devices)
    spread = _alone if sequential else functools.partial(over_members, mesh=mesh)
    init = spread(init, (group.axes,))
    shared: Any = Portion(*[None] * 5)  # pyright: ignore[reportArgumentType]
    chunk = spread(chunk, (group.axes, 0, shared._replace(rows=group.axes.seed), None, None))
    evaluate = spread(evaluate, (group.axes, 0, shared, None, None))
    jitted_chunk = ops.jit(chunk, onednn=config.train.onednn, donate_argnums=1)
    everywhere = None if mesh.size == 1 else NamedSharding(mesh, P())
    place, order = functools.partial(jax.device_put, device=everywhere), ops.jit(order)

    @functools.cache
    def feeds() -> Feeds:
        size, validation = config.train.batch_size, None
        if dataset.validation is not None:
            validation = in_its_own_order(dataset.validation, size, place)
        train = Resident(dataset.train, size, order, place)
        return Feeds(train, in_its_own_order(dataset.test, size, place), validation)

    jitted = ops.jit(init, runs_once=True), jitted_chunk, ops.jit(evaluate)
    return Programs(network, preprocess, *jitted, feeds, place)


def _alone(function: Callable[..., Any], axes: tuple) -> Callable[..., Any]:
    """The same interface for a single member without `vmap`: its axis is taken off and put back."""

    def of_one(*args):
        own = jax.tree.map(
            lambda axis, part: part if axis is None else jax.tree.map(lambda leaf: leaf[0], part),
            axes,
            args,
            is_leaf=lambda axis: axis is None,
        )
        return jax.tree.map(lambda leaf: leaf[None], function(*own))

    return of_one


def member_mesh(members: int) -> Mesh:
    """The most devices among which so many members can be divided evenly."""
    used = next(count for count in range(min(members, jax.device_count()), 0, -1) if members % count == 0)
    return Mesh(np.array(jax.devices()[:used]), ("member",))


def over_members(function: Callable[..., Any], axes: tuple, mesh: Mesh) -> Callable[..., Any]:
    """`jax.vmap`, and each device its share of the members.

    Args:
        axes: of the arguments, as `jax.vmap` takes them.
    """
    mapped = jax.vmap(function, in_axes=axes)
    if mesh.size == 1:
        return mapped
    specs = jax.tree.map(lambda axis: P() if axis is None else P("member"), axes, is_leaf=lambda axis: axis is None)
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=P("member"))


class Plan(NamedTuple):
    """How many members of a group are trained at a time, and why; 0: one after another, each as a run alone."""

    size: int
    reasons: list[str]
    devices: int = 1  # the length of every chunk is a multiple of this


class _Candidate(NamedTuple):
    """A chunk size, and its programs."""

    size: int  # as a plan has it
    programs: Programs
    megabytes: float
    described: str  # what they need and took to compile
    compiled_in: float  # seconds
    timed: Callable[[], float]  # seconds a step and member


def plan(
    group: Group, dataset: Dataset, memory: int, say: Callable[[str], None], left: int | None = None
) -> tuple[Plan, Programs]:
    """The chunk size, by XLA's own analysis of the memory that is needed, and elsewhere than on a CPU a short timing.

    With it the programs for chunks of that size, already compiled.

    Args:
        memory: bytes that a program may take with its arguments and results.
        left: members that stopping early leaves. On a CPU no chunk is longer than that and `FEWEST`, so that a program
            compiled at the start serves to the end: there a program of more members is hardly faster.

    Raises:
        InputError: if not even one member fits.
    """
    on_cpu, most, reasons = jax.default_backend() == "cpu", len(group.members), []
    if on_cpu and left is not None and max(left, FEWEST) < most:
        most = max(left, FEWEST)
        reasons.append(f"at most {most} at a time, so that one program serves until stopping early leaves {left}")
    made = functools.partial(_candidate, group, dataset, jax.device_count())
    chosen = (_largest if on_cpu else _fastest)(made, most, memory / 2**20, reasons, say)
    if chosen is None:
        raise InputError(f"--memory-gb must be at least what one member needs: {reasons[-1]}")
    return Plan(chosen.size, reasons, jax.device_count()), chosen.programs


def _candidate(group: Group, dataset: Dataset, devices: int, size: int) -> _Candidate:
    alone = size == 1
    made = programs(group, dataset, alone, devices)
    size = chunk_length(len(group.members), size, devices)
    hyper = stacked(group, padded(group.members[:size], size))
    started = time.monotonic()
    state = made.init(hyper)
    portion, _ = made.feeds()[0].portion(hyper, 0)
    program = made.chunk.lower(hyper, state, portion, 0, 1).compile()
    seconds = time.monotonic() - started
    sharing = 1 if alone or jax.default_backend() != "cpu" else devices  # a memory
    others = [split.images.nbytes for split in (dataset.test, dataset.validation) if split is not None]
    megabytes = (_bytes(program) + sum(others)) * sharing / 2**20  # the training images are among the arguments
    timed = functools.partial(_timed, made, program, hyper, portion)
    made = made._replace(chunk=_for_length(size, program, made.chunk))
    described = f"{megabytes:,.0f} MB, compiled in {seconds:.1f} s"
    return _Candidate(0 if alone else size, made, megabytes, described, seconds, timed)


def _too_large(candidate: _Candidate, memory: float) -> str:
    size = max(1, candidate.size)
    return f"{size} members need {candidate.megabytes:,.0f} MB, more than the {memory:,.0f} MB allowed"


def _largest(
    made: Callable[[int], _Candidate], most: int, memory: float, reasons: list[str], say: Callable[[str], None]
) -> _Candidate | None:
    """The most members that fit, up to `TOGETHER`: on a CPU more are no faster, and each size tried is compiled."""
    size = min(most, TOGETHER)
    while size:
        candidate = made(size)
        if candidate.megabytes <= memory:
            reasons.append(f"{max(1, candidate.size)} at a time: {candidate.described}")
            say(reasons[-1])
            return candidate
        reasons.append(_too_large(candidate, memory))
        size //= 2
    return None


def _fastest(
    made: Callable[[int], _Candidate], most: int, memory: float, reasons: list[str], say: Callable[[str], None]
) -> _Candidate | None:
    """That of `CANDIDATES` which is fastest in a short timing, of those that fit."""
    best, least = None, np.inf  # seconds a step and member
    for size in [size for size in CANDIDATES if size < most] + [most]:
        candidate = made(size)
        if candidate.megabytes > memory:
            reasons.append(_too_large(candidate, memory))
            break
        seconds, turn = candidate.timed(), ""
        if best is not None and seconds > least:  # once more, in turn: others may use the machine too
            least, seconds = min(least, best.timed()), min(seconds, candidate.timed())
            turn = f" (in turn with {1e3 * least:.2f})"
        time_of_one = f"{1e3 * seconds:.2f} ms a step and member{turn}"
        reasons.append(f"{max(1, candidate.size)} at a time: {time_of_one}, {candidate.described}")
        say(reasons[-1])
        if seconds < least:
            best, least = candidate, seconds
        elif seconds > 1.05 * least or candidate.compiled_in > MOST_PROGRAM_SECONDS:
            break
    return best


def _for_length(size: int, program: Any, anew: Callable[..., Any]) -> Callable[..., Any]:
    """The compiled program, which takes `size` members; where halving leaves fewer, one that is compiled for them."""
    return lambda hyper, state, *rest: (program if len(state.step) == size else anew)(hyper, state, *rest)


def _bytes(program: Any) -> int:
    analysis = program.memory_analysis()
    return int(analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes)


def _timed(made: Programs, program: Any, hyper: Any, portion: Portion) -> float:
    """Seconds a step and member, the best of three short stretches."""
    state = made.init(hyper)
    steps, most = 1, portion.masks.shape[0]
    best = np.inf
    for _ in range(3):
        started = time.monotonic()
        state = jax.block_until_ready(program(hyper, state, portion, 0, steps))
        seconds = (time.monotonic() - started) / steps
        best = min(best, seconds)
        steps = max(1, min(most, round(TIMED_SECONDS / seconds)))
    return best / len(state.step)


def memory_at_hand() -> int:
    """Half of the memory that is left, in bytes; where the system does not say, half of all that there is."""
    left = memory_left()
    return max(0, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if left is None else left) // 2


def rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def chunk_length(count: int, size: int, devices: int) -> int:
    """The length of chunks of about `size` members: nearly even, a multiple of the devices; 1 for a size of 0 or 1."""
    even = -(-count // -(-count // max(size, 1)))
    return 1 if size <= 1 else rounded_up(even, devices)


def padded(members: Sequence[Member], size: int) -> list[Member]:
    """The members, the last one repeated up to `size`, so that all chunks of a group have one shape."""
    return [*members, *[members[-1]] * (size - len(members))]


def chunks(members: Sequence[Member], size: int) -> list[list[Member]]:
    """The members in chunks of nearly the same length, at most `size` (0: one each)."""
    number = -(-len(members) // max(size, 1))
    bounds = [len(members) * index // max(number, 1) for index in range(number + 1)]
    return [list(members[start:stop]) for start, stop in itertools.pairwise(bounds)]


class MembersTraining(Training):
    """A chunk of members, trained as one: the state's leaves and the lists in metrics.jsonl have a member axis.

    A member whose loss or gradient is not finite stands still from that step on; the others go on.
    """

    hyper: Any
    kept_epochs: tuple[int, ...]
    start: tuple[int, Any] | None = None  # an epoch and the state at its end, where another chunk's members go on
    seconds: float = 0.0  # that earlier processes have trained the chunk
    since: float  # when this one began

    def _check_memory(self) -> None:
        pass  # the plan has looked at it

    def _begin(self) -> None:
        if self.start is None:
            return super()._begin()
        epoch, self.state = self.start
        self.step, self.lines = epoch * self.steps_per_epoch, []

    def _texts(self) -> dict[str, str]:
        """With how long the chunk has been trained."""
        return super()._texts() | {"seconds.json": f"{self.seconds + time.monotonic() - self.since}\n"}

    def _tell_of_scaling(self) -> None:
        params, count = jax.device_get(self._state.params), len(self._state.step)
        told = [
            scaled_at_first(jax.tree.map(lambda leaf, place=place: leaf[place], params), float(radius))
            for place, radius in enumerate(np.broadcast_to(self.hyper.filter_rms, count))
        ]
        if said := [text for text in told if text]:
            self.say(f"{len(said)} of {count} members trained together: {said[0]}")

    def _answer_unsound(self, count: np.ndarray | np.integer) -> None:
        pass  # the state says which member stands still and since when

    def _writes_metrics_of(self, epoch: int) -> bool:
        """The epoch at which the members came here has its line where they came from."""
        return super()._writes_metrics_of(epoch) and (self.start is None or epoch > self.start[0])


def seconds_of(checkpoint: Path) -> float:
    """How long a chunk had been trained when the checkpoint was saved."""
    try:
        return float(json.loads((checkpoint / "seconds.json").read_text()))
    except (OSError, TypeError, ValueError, RecursionError):
        raise InputError(f"{checkpoint / 'seconds.json'} must hold a number, as a sweep writes it") from None
