"""The loop of a training: chunks of steps, and at the end of an epoch its metrics and its checkpoint."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnnjax import ops, processes
from cnnjax.atomic import append_text, write_text
from cnnjax.config import Config
from cnnjax.data.batches import in_order
from cnnjax.data.dataset import Dataset, Split
from cnnjax.errors import InputError
from cnnjax.train import interruption, placement
from cnnjax.train.checkpoints import Checkpoints, Kept
from cnnjax.train.feed import Feed, Feeds, Resident, Streamed, in_its_own_order, portion_like, portions
from cnnjax.train.log import Log
from cnnjax.train.memory import Memory, check_memory, largest_that_fits, memory_left, needed, on_a_device
from cnnjax.train.optimizers import learning_rate, scaled_at_first
from cnnjax.train.shared import SharedCheckpoints
from cnnjax.train.step import (
    Metrics,
    Network,
    Preprocess,
    TrainState,
    initial_state,
    make_batch_of,
    make_evaluate,
    make_first_unsound,
    make_order,
    make_train_chunk,
    zero_metrics,
)

Progress = Callable[[str, int, int], None]  # description, done, total
CHUNK_SECONDS = 0.5  # a chunk of steps is about this long, so that the progress bar moves
MOST_REWINDS = 10  # a learning rate that has been halved this often is not halved again


class Programs(NamedTuple):
    """A network, and the compiled functions that train it."""

    network: Network
    preprocess: Preprocess
    init: Callable[..., TrainState]  # (hyper)
    chunk: Callable[..., TrainState]  # (hyper, state, portion, start, stop); gives its state away
    evaluate: Callable[..., Metrics]  # (hyper, state, portion, start, stop)
    feeds: Callable[[], Feeds]  # one and the same at each call
    place: Callable[..., Any] = jax.device_put  # brings arrays to where the programs run, everywhere
    # (hyper, state, batch size) -> bytes that a step or a test batch of that size takes on a device
    needed_by: Callable[[Any, Any, int], float] | None = None
    least_batch: int = 1  # of which every batch is a multiple


def compiled(
    config: Config,
    network: Network,
    preprocess: Preprocess,
    dataset: Dataset,
    mesh: Mesh | None = None,
    streamed: bool = False,
) -> Programs:
    """The programs of one training, over the devices of the mesh; they are compiled when they are first called.

    Args:
        streamed: the images of the next steps are brought to the devices while others are seen; else all at once.
    """
    image_shape, num_images = dataset.train.images.shape[1:], len(dataset.train)
    if mesh is None:
        mesh = placement.make_mesh()
    anywhere: dict[str, Any] = {} if mesh.size == 1 else {"out_shardings": NamedSharding(mesh, P())}
    batch_of = make_batch_of(mesh, streamed)
    order = ops.jit(make_order(config.train, num_images), **anywhere)
    place = jax.device_put if mesh.size == 1 else functools.partial(placement.everywhere, mesh=mesh)

    @functools.cache
    def feeds() -> Feeds:
        size = config.train.batch_size

        def as_it_is(split: Split) -> Feed:
            if not streamed:
                return in_its_own_order(split, size, place)
            rows = in_order(len(split), size)
            return Streamed(split, size, lambda *_: rows, mesh)

        if streamed:
            train = Streamed(dataset.train, size, order, mesh, training=True)
        else:
            train = Resident(dataset.train, size, order, place)
        validation = None if dataset.validation is None else as_it_is(dataset.validation)
        return Feeds(train, as_it_is(dataset.test), validation)

    def needed_by(hyper: Any, state: TrainState, batch_size: int) -> float:
        train = dataclasses.replace(config.train, batch_size=batch_size)
        of_size = compiled(dataclasses.replace(config, train=train), network, preprocess, dataset, mesh, streamed)
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), (hyper, state)
        )
        seen = ((of_size.chunk, dataset.train), (of_size.evaluate, dataset.test))
        return max(needed(each, *like, portion_like(split, batch_size, streamed), 0, 1) for each, split in seen)

    return Programs(
        network,
        preprocess,
        ops.jit(lambda hyper: initial_state(network, config.train, hyper, image_shape), runs_once=True, **anywhere),
        ops.jit(
            make_train_chunk(network, config.train, preprocess, num_images, batch_of),
            onednn=config.train.onednn,
            donate_argnums=1,
            **anywhere,
        ),
        ops.jit(make_evaluate(network, config.train, preprocess, batch_of), **anywhere),
        feeds,
        place,
        needed_by,
        config.train.accumulate * mesh.shape[placement.DATA],
    )


class Training:
    """One training in a run folder, as far as it has come."""

    def __init__(
        self,
        config: Config,
        programs: Programs,
        dataset: Dataset,
        workdir: Path,
        checkpoints: Checkpoints | SharedCheckpoints,
        report: Progress,
        say: Callable[[str], None],
        texts: Mapping[str, str],
        start: Callable[[TrainState], TrainState] | None = None,
        tell_memory: Callable[[Memory], None] = lambda takes: None,
        log: Log | None = None,
    ):
        """`texts` are files of the run that are kept beside each state; `start` changes the random initial state."""
        self.tell_memory = tell_memory
        self.config, self.programs, self.dataset = config, programs, dataset
        self.workdir, self.checkpoints, self.report, self.say = workdir, checkpoints, report, say
        self.steps_per_epoch = -(-len(dataset.train) // config.train.batch_size)
        self.kept_epochs: tuple[int, ...] = config.train.kept_epochs
        self.hyper: Any = programs.place(jax.tree.map(jnp.asarray, config.hyper))
        self._first_unsound = make_first_unsound(programs.network, config.train, programs.preprocess)
        self.texts, self.start, self.log = dict(texts), start, log
        self.state: TrainState | None = None
        self.step = 0  # of the state
        self.lines: list[str] = []  # of metrics.jsonl, for the epochs that the state has finished
        self.length = 1  # steps in a chunk

    @property
    def like(self) -> TrainState:
        """Shapes and types of the state."""
        return jax.eval_shape(self.programs.init, self.hyper)

    def go_to(self, epoch: int, *before: interruption.Asked) -> None:
        """Trains to the end of `epoch`, from the state at hand or the newest sound checkpoint before it.

        `before` notes signals while they are put off outside of this; what it has heard ends this too.
        """
        target = epoch * self.steps_per_epoch
        if self.step > target:
            self.state = None
        least = -1 if self.state is None else self.step
        kept = self.checkpoints.steps(self.steps_per_epoch)
        if not self._take_newest({step: one for step, one in kept.items() if least < step <= target}) and least < 0:
            self._begin()
        self._write_metrics()
        if least < 0 and self.config.train.epochs:
            self._check_memory()
        stop: type[BaseException] | None = None
        with interruption.deferred() as asked:
            self._end_epoch()
            saved_at = time.monotonic()
            while self.step < target:
                self._advance()
                self._end_epoch()
                stop = self.agreed(asked, *before)
                if stop or time.monotonic() - saved_at > self.config.train.save_every_seconds:
                    self.checkpoints.save_latest(self.step, self._state, self._texts())
                    saved_at = time.monotonic()
                if stop:
                    break
        if stop is not None:
            self.checkpoints.wait()
            raise stop

    def agreed(self, *asked: interruption.Asked) -> type[BaseException] | None:
        """What any of the processes was asked to end with; from here on all do as many steps at a time as the first."""
        known = list(interruption.SIGNALS.values())
        mine = max(0 if one.exception is None else 1 + known.index(one.exception) for one in asked)
        everyone = processes.of_all(np.array([mine, self.length], np.int32))
        self.length = int(everyone[0, 1])
        code = int(everyone[:, 0].max())
        return known[code - 1] if code else None

    @property
    def _state(self) -> TrainState:
        assert self.state is not None
        return self.state

    def _check_memory(self) -> None:
        """Tells what the training takes, and raises InputError where memory is short.

        It is for a step, for a test batch, and for a copy of the state that is saved while they run.
        """
        programs = self.programs.chunk, self.programs.evaluate
        portions = [feed.portion(self.hyper, 0)[0] for feed in self.programs.feeds()[:2]]
        saved = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        takes = [
            needed(program, self.hyper, self.state, portion, 0, 1)
            for program, portion in zip(programs, portions, strict=True)
        ]
        state, images = on_a_device(self.state), on_a_device(portions[0])
        self.tell_memory(Memory(state, images, takes[0], saved, memory_left()))
        for what, bytes_needed in zip(("a step", "a test batch"), takes, strict=True):
            check_memory(
                f"train.batch_size: {what}", bytes_needed + saved, remedy=lambda left: self._fitting(left - saved)
            )

    def _fitting(self, left: int) -> str:
        """What would fit, found by compiling it."""
        assert self.programs.needed_by is not None
        config, needed_by = self.config.train, functools.partial(self.programs.needed_by, self.hyper, self.state)
        sizes = range(self.programs.least_batch, config.batch_size + 1, self.programs.least_batch)
        self.say("memory is short: looking for the largest batch that fits")
        size = largest_that_fits(needed_by, sizes, left)
        if size is None:
            return "no batch fits: a smaller network or image, or more memory"
        seen_at_once = size // config.accumulate
        divisors = (count for count in range(1, config.batch_size + 1) if config.batch_size % count == 0)
        parts = next(count for count in divisors if config.batch_size // count <= seen_at_once)
        return f"{size} is the largest batch that fits; or train.accumulate {parts}, for a batch in so many parts"

    def _begin(self) -> None:
        """The state before the first step."""
        check_memory("model: the initial state", needed(self.programs.init, self.hyper))
        self.state, self.step, self.lines = self.programs.init(self.hyper), 0, []
        if self.start is not None:
            self.state = self.programs.place(self.start(self.state))
        self._tell_of_scaling()
        self._go_on_from_here()

    def _tell_of_scaling(self) -> None:
        told = scaled_at_first(self._state.params, float(self.hyper.filter_rms), self.config.train.freeze)
        if told:
            self.say(told)

    def _take_newest(self, kept: Mapping[int, tuple[str, int]]) -> bool:
        """Goes on from the newest of these checkpoints, by step, that is sound; whether there is one."""
        for step in sorted(kept, reverse=True):
            if (found := self.checkpoints.load(*kept[step], self.like)) is not None:
                self._take(step, found)
                return True
        return False

    def _take(self, step: int, kept: Kept) -> None:
        self.state, self.step = self.programs.place(kept.state), step
        self.lines = kept.texts["metrics.jsonl"].splitlines(keepends=True)
        self._go_on_from_here()

    def _go_on_from_here(self) -> None:
        if self.log is not None:
            self.log.go_on_from(self.step, self.lines)

    def _texts(self) -> dict[str, str]:
        return {"metrics.jsonl": "".join(self.lines), **self.texts}

    def _advance(self) -> None:
        """One chunk of steps, at most to the end of the portion."""
        step, total = self.step, self.config.train.epochs * self.steps_per_epoch
        before = np.asarray(self._state.unsound)
        asked = time.monotonic()
        portion, end = self.programs.feeds().train.portion(self.hyper, step)
        jax.block_until_ready(portion)  # the chunk would wait for it, and what waits for images would look like work
        stop = min(step + self.length, end)
        started = time.monotonic()
        self.state = self.programs.chunk(self.hyper, self._state, portion, step, stop)
        more = np.asarray(self._state.unsound) - before  # here the chunk has ended
        seconds = time.monotonic() - started
        self.step = stop
        if self.log is not None:
            self.log.chunk(step, stop, started - asked, seconds)
        if more.any():
            self._answer_unsound(more)
        self.length = max(1, min(2 * self.length, round((stop - step) * CHUNK_SECONDS / max(seconds, 1e-6))))
        self.report("training", self.step, total)

    def _answer_unsound(self, count: np.ndarray | np.integer) -> None:
        """What `on_nan` says, now that the loss or a gradient was not finite in `count` more steps."""
        state, config = self._state, self.config.train
        if config.on_nan == "skip":
            epoch = (self.step - 1) // self.steps_per_epoch + 1
            self.say(f"epoch {epoch}: {count} steps left out, their loss or gradient is not finite")
            return
        step, epoch = int(state.step), int(state.step) // self.steps_per_epoch + 1
        arrays = self.dataset.train.images, self.dataset.train.labels
        where = self._first_unsound(self.hyper, state, *arrays) or "the loss"
        position = step % self.steps_per_epoch + 1
        scale = float(state.rate_scale)
        rate = float(learning_rate(config, self.hyper.learning_rate, state.step, self.steps_per_epoch)) * scale
        found = f"epoch {epoch}, step {position} of {self.steps_per_epoch}: NaN or infinity, first in {where}"
        kept = [epoch for epoch in self.checkpoints.epochs() if epoch * self.steps_per_epoch <= step]
        if config.on_nan == "stop" or scale <= 2.0**-MOST_REWINDS:
            rewound = f", {MOST_REWINDS} times halved" if config.on_nan == "rewind" else ""
            raise InputError(
                f"hyper.learning_rate {self.config.hyper.learning_rate:g} (here {rate:.3g}{rewound}) must be one with "
                f"which the training stays finite: {found}; the last sound checkpoint is that of epoch {max(kept)}"
            )
        if not self._take_newest({epoch * self.steps_per_epoch: ("epochs", epoch) for epoch in kept}):
            self._begin()
        epoch = self.step // self.steps_per_epoch
        self.say(f"{found}, learning rate {rate:.3g}; going back to epoch {epoch} with half the learning rate")
        self.state = self._state._replace(rate_scale=state.rate_scale / 2)
        self.checkpoints.save_latest(self.step, self.state, self._texts(), instead_of_later=True)
        self._write_metrics()

    def _end_epoch(self) -> None:
        """At the end of an epoch: its line of metrics, and its checkpoint if it is to be kept; else nothing."""
        state = self._state
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if position:
            return
        if self._writes_metrics_of(epoch):
            line = metrics_line(epoch, state.metrics, *map(self._seen, self.programs.feeds()[1:]))
            self.lines.append(line)
            if processes.is_first():
                append_text(self.workdir / "metrics.jsonl", line)
            if self.log is not None:
                self.log.epoch(line)
        if epoch in self.kept_epochs and epoch not in self.checkpoints.epochs():
            self.checkpoints.save_epoch(epoch, state, self._texts())

    def _seen(self, feed: Feed | None) -> Metrics:
        """Over the images of the feed as they are; nothing where there is none, or their labels are of other classes
        than the network's outputs."""
        if feed is None or self.config.model.classes is not None:
            return zero_metrics()
        return evaluated(self.programs.evaluate, feed, self.hyper, self._state)

    def _writes_metrics_of(self, epoch: int) -> bool:
        """Whether the line of this epoch, which has just ended, is still to be written."""
        return epoch not in {json.loads(line)["epoch"] for line in self.lines[-1:]}

    def _write_metrics(self) -> None:
        if processes.is_first():
            write_text(self.workdir / "metrics.jsonl", "".join(self.lines))


def evaluated(evaluate: Callable[..., Metrics], feed: Feed, hyper: Any, state: TrainState) -> Metrics:
    """Over all images of the feed."""
    sums = [evaluate(hyper, state, *part) for part in portions(feed, hyper, 0, feed.steps)]
    return functools.reduce(functools.partial(jax.tree.map, jnp.add), sums)


def metrics_line(epoch: int, train: Metrics, test: Metrics, validation: Metrics | None = None) -> str:
    """A line of metrics.jsonl: means over the epoch's training batches (none for epoch 0) and over the other splits.

    Where the metrics are those of several members, each mean is a list; null where a member has none, or where it is
    no number that JSON has.
    """
    line: dict[str, Any] = {"epoch": epoch}
    validation = zero_metrics() if validation is None else validation
    for split, sums in (("train", train), ("validation", validation), ("test", test)):
        count = np.asarray(sums.count, float)
        for name, total in (("loss", sums.loss), ("error", sums.errors), ("error_top5", sums.errors_top5)):
            if count.any():
                mean = np.asarray(total, float) / np.where(count > 0, count, np.nan)
                line[f"{split}_{name}"] = [_or_null(one) for one in mean] if count.ndim else _or_null(float(mean))
    return json.dumps(line) + "\n"


def _or_null(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
