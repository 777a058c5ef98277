"""The edge of training: a run folder that the same command fills, goes on with, or finds finished."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import cnnjax
from cnnjax import models, ops
from cnnjax.atomic import append_text, write_text
from cnnjax.config import Config, differences, from_json, to_json
from cnnjax.data.dataset import Dataset, fingerprint, mean_image
from cnnjax.errors import InputError
from cnnjax.train import interruption
from cnnjax.train.checkpoints import KINDS, Checkpoints, Damaged, Kept, numbers, read_epoch, verify
from cnnjax.train.lock import locked
from cnnjax.train.optimizers import learning_rate
from cnnjax.train.step import (
    Metrics,
    Preprocess,
    TrainState,
    first_unsound,
    initial_state,
    make_evaluate,
    make_preprocess,
    make_train_chunk,
)

_logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]  # description, done, total
CHUNK_SECONDS = 0.5  # a chunk of steps is about this long, so that the progress bar moves
MOST_REWINDS = 10  # a learning rate that has been halved this often is not halved again


class Run(NamedTuple):
    """What a finished run hands to those who look into it."""

    config: Config
    network: nn.Module
    preprocess: Callable
    states: dict[int, TrainState]  # by kept epoch
    metrics: list[dict[str, float]]  # a line an epoch, epoch 0 included


def build(config: Config, dataset: Dataset) -> models.ConvNet:
    """The network of the config for the images of the data set, checked to fit."""
    if config.train.batch_size > len(dataset.train):
        rule = f"at most the number of training images ({len(dataset.train)})"
        raise InputError(f"train.batch_size must be {rule}, got {config.train.batch_size}")
    return models.build(config.model, dataset.image_shape, dataset.num_classes)


def run(
    config: Config,
    dataset: Dataset,
    workdir: Path,
    progress: Progress | None = None,
    say: Callable[[str], None] = _logger.warning,
) -> Run:
    """Trains to the end of the last epoch, from wherever the run folder stands; a finished run is only loaded.

    Kept epochs that are missing or damaged are made again, from the newest sound checkpoint before them.

    Args:
        progress: told how many of all steps are done.
        say: told in one line what was found damaged, left out or gone back to.

    Raises:
        InputError: if `workdir` holds a run of another config or is in use (nothing has been written then), if the
            training diverges, or if a checkpoint cannot be saved.
    """
    report = progress or (lambda description, done, total: None)
    check(workdir, config)
    network = build(config, dataset)
    preprocess = make_preprocess(jnp.asarray(mean_image(dataset.train)), config.data.unit)
    with claimed(workdir, config, dataset, say), Checkpoints(workdir, say) as checkpoints:
        training = Training(config, network, preprocess, dataset, workdir, checkpoints, report, say)
        for epoch in config.train.kept_epochs:
            if epoch not in checkpoints.epochs():
                training.go_to(epoch)
        kept = {epoch: checkpoints.load("epochs", epoch, training.like) for epoch in config.train.kept_epochs}
        checkpoints.drop_latest()
        metrics = kept[config.train.epochs].texts["metrics.jsonl"]
        if _text_or_none(workdir / "metrics.jsonl") != metrics:
            write_text(workdir / "metrics.jsonl", metrics)
    states = {epoch: checkpoint.state for epoch, checkpoint in kept.items()}
    return Run(config, network, preprocess, states, [json.loads(line) for line in metrics.splitlines()])


class Training:
    """The loop: chunks of steps, and at the end of an epoch its line of metrics and its checkpoint."""

    def __init__(
        self,
        config: Config,
        network: nn.Module,
        preprocess: Preprocess,
        dataset: Dataset,
        workdir: Path,
        checkpoints: Checkpoints,
        report: Progress,
        say: Callable[[str], None],
    ):
        self.config, self.network, self.preprocess, self.dataset = config, network, preprocess, dataset
        self.workdir, self.checkpoints, self.report, self.say = workdir, checkpoints, report, say
        self.steps_per_epoch = -(-len(dataset.train) // config.train.batch_size)
        self.hyper = jax.tree.map(jnp.asarray, config.hyper)
        image_shape = dataset.train.images.shape[1:]
        self.init = ops.jit(lambda hyper: initial_state(network, config.train, hyper, image_shape))
        self.like = jax.eval_shape(self.init, self.hyper)
        train_chunk = make_train_chunk(network, config.train, preprocess, len(dataset.train))
        self.chunk = ops.jit(train_chunk, donate_argnums=1)
        self.evaluate = ops.jit(make_evaluate(network, config.train, preprocess, len(dataset.test)))
        self.config_text = (workdir / "config.json").read_text()
        self.state: TrainState | None = None
        self.lines: list[str] = []  # of metrics.jsonl, for the epochs that `state` has finished
        self.length = 1  # steps in a chunk

    def go_to(self, epoch: int) -> None:
        """Trains to the end of `epoch`, from the state at hand or the newest sound checkpoint before it."""
        target = epoch * self.steps_per_epoch
        at_hand = -1 if self.state is None else int(self.state.step)
        kept = self.checkpoints.steps(self.steps_per_epoch)
        newest = max((step for step in kept if step <= target), default=-1)
        if newest > at_hand:
            self._take(self.checkpoints.load(*kept[newest], self.like))
        elif self.state is None:
            self.state, self.lines = self.init(self.hyper), []
        self._write_metrics()
        train_arrays = jax.device_put((self.dataset.train.images, self.dataset.train.labels))
        test_arrays = jax.device_put((self.dataset.test.images, self.dataset.test.labels))
        with interruption.deferred() as asked:
            self._end_epoch(test_arrays)
            saved_at = time.monotonic()
            while int(self._state.step) < target:
                self._advance(train_arrays)
                self._end_epoch(test_arrays)
                if asked.exception or time.monotonic() - saved_at > self.config.train.save_every_seconds:
                    self.checkpoints.save_latest(self._state, self._texts())
                    saved_at = time.monotonic()
                if asked.exception:
                    break
        if asked.exception:
            self.checkpoints.wait()
            raise asked.exception

    @property
    def _state(self) -> TrainState:
        assert self.state is not None
        return self.state

    def _take(self, kept: Kept) -> None:
        self.state, self.lines = kept.state, kept.texts["metrics.jsonl"].splitlines(keepends=True)

    def _texts(self) -> dict[str, str]:
        return {"metrics.jsonl": "".join(self.lines), "config.json": self.config_text}

    def _advance(self, train_arrays: tuple) -> None:
        """One chunk of steps, at most to the end of the epoch."""
        step, total = int(self._state.step), self.config.train.epochs * self.steps_per_epoch
        epoch = step // self.steps_per_epoch
        stop = min(step + self.length, (epoch + 1) * self.steps_per_epoch)
        unsound = int(self._state.unsound)
        started = time.monotonic()
        self.state = self.chunk(self.hyper, self._state, *train_arrays, epoch, step, stop)
        if int(self._state.unsound) > unsound:
            self._answer_unsound(int(self._state.unsound) - unsound)
        seconds = time.monotonic() - started
        self.length = max(1, min(2 * self.length, round((stop - step) * CHUNK_SECONDS / max(seconds, 1e-6))))
        self.report("training", int(self._state.step), total)

    def _answer_unsound(self, count: int) -> None:
        """What `on_nan` says, now that the loss or a gradient was not finite."""
        state, config = self._state, self.config.train
        if config.on_nan == "skip":
            epoch = (int(state.step) - 1) // self.steps_per_epoch + 1
            self.say(f"epoch {epoch}: {count} steps left out, their loss or gradient is not finite")
            return
        step, epoch = int(state.step), int(state.step) // self.steps_per_epoch + 1
        arrays = self.dataset.train.images, self.dataset.train.labels
        where = first_unsound(self.network, config, self.preprocess, self.hyper, state, *arrays) or "the loss"
        position = step % self.steps_per_epoch + 1
        scale = float(state.rate_scale)
        rate = float(learning_rate(config, self.hyper.learning_rate, state.step, self.steps_per_epoch)) * scale
        found = f"epoch {epoch}, step {position} of {self.steps_per_epoch}: NaN or infinity, first in {where}"
        kept = max(epoch for epoch in self.checkpoints.epochs() if epoch * self.steps_per_epoch <= step)
        if config.on_nan == "stop" or scale <= 2.0**-MOST_REWINDS:
            rewound = f", {MOST_REWINDS} times halved" if config.on_nan == "rewind" else ""
            raise InputError(
                f"hyper.learning_rate {self.config.hyper.learning_rate:g} (here {rate:.3g}{rewound}) must be one with "
                f"which the training stays finite: {found}; the last sound checkpoint is that of epoch {kept}"
            )
        self.say(f"{found}, learning rate {rate:.3g}; going back to epoch {kept} with half the learning rate")
        self._take(self.checkpoints.load("epochs", kept, self.like))
        self.state = self._state._replace(rate_scale=state.rate_scale / 2)
        self.checkpoints.save_latest(self.state, self._texts(), instead_of_later=True)
        self._write_metrics()

    def _end_epoch(self, test_arrays: tuple) -> None:
        """At the end of an epoch: its line of metrics, and its checkpoint if it is to be kept; else nothing."""
        state = self._state
        epoch, position = divmod(int(state.step), self.steps_per_epoch)
        if position:
            return
        if len(self.lines) == epoch:
            line = metrics_line(epoch, state.metrics, self.evaluate(self.hyper, state, *test_arrays))
            self.lines.append(line)
            append_text(self.workdir / "metrics.jsonl", line)
        if epoch in self.config.train.kept_epochs and epoch not in self.checkpoints.epochs():
            self.checkpoints.save_epoch(epoch, state, self._texts())

    def _write_metrics(self) -> None:
        write_text(self.workdir / "metrics.jsonl", "".join(self.lines))


def metrics_line(epoch: int, train: Metrics, test: Metrics) -> str:
    """A line of metrics.jsonl: means over the epoch's training batches (none for epoch 0) and over the test split."""
    line: dict[str, Any] = {"epoch": epoch}
    for split, sums in (("train", train), ("test", test)):
        count = float(sums.count)
        if count:
            line[f"{split}_loss"] = float(sums.loss) / count
            line[f"{split}_error"] = float(sums.errors) / count
            line[f"{split}_error_top5"] = float(sums.errors_top5) / count
    return json.dumps(line) + "\n"


def check(workdir: Path, config: Config) -> None:
    """Refuses a folder that cannot be the run folder of `config`; writes nothing.

    Raises:
        InputError: it is no folder, has other files, or holds a run of another config (naming the fields).
    """
    try:
        if (workdir / "config.json").exists():
            fields = differences(config, _config_of(_record(workdir), workdir / "config.json"))
            if fields:
                raise InputError(f"--workdir {workdir} holds a run of another config ({'; '.join(fields)})")
        elif workdir.exists() and {path.name for path in workdir.iterdir()} - {"lock", "config.json.tmp"}:
            raise InputError(f"--workdir must be new, empty or a run's, and {workdir} has files and no config.json")
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be read and written, got {workdir}: {error}") from None


@contextlib.contextmanager
def claimed(workdir: Path, config: Config, dataset: Dataset, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of `workdir`, which is made the run folder of `config`, or is checked to be it already.

    Raises:
        InputError: as `check`; if another process is at work there; if the run that is there was trained on other data.
    """
    check(workdir, config)
    if (workdir / "config.json").exists():
        _check_data(_record(workdir), workdir, dataset)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(workdir))
            check(workdir, config)
            path = workdir / "config.json"
            if not path.exists():
                write_text(path, _sealed(_new_record(config, dataset)))
            elif _record_or_none(path) is None:
                path.rename(_free_name(path.with_name("config.json.damaged")))
                write_text(path, _sealed(_record(workdir)))
                say(f"{path} was not as it was written; moved aside and made anew from a checkpoint's copy")
            stack = stack.pop_all()
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be written, got {workdir}: {error}") from None
    with stack:
        yield


def _new_record(config: Config, dataset: Dataset) -> dict[str, Any]:
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    return {
        "config": to_json(config),
        "versions": {"cnnjax": cnnjax.__version__} | {name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "data": {"name": dataset.name, "sha256": fingerprint(dataset)},
    }


def check_data(workdir: Path, dataset: Dataset) -> None:
    """Raises InputError if the run in `workdir` was trained on other data."""
    _check_data(_record(workdir), workdir, dataset)


def _check_data(record: dict[str, Any], workdir: Path, dataset: Dataset) -> None:
    ours, theirs = fingerprint(dataset), record["data"]["sha256"]
    if theirs != ours:
        raise InputError(f"{workdir} holds a run on other data (sha256 {ours[:12]} here, {theirs[:12]} there)")


def load_epoch(workdir: Path, config: Config, network: nn.Module, dataset: Dataset, epoch: int) -> TrainState:
    """The state of the run at the end of a kept epoch; writes nothing."""
    hyper = jax.tree.map(jnp.asarray, config.hyper)
    image_shape = dataset.train.images.shape[1:]
    like = jax.eval_shape(lambda hyper: initial_state(network, config.train, hyper, image_shape), hyper)
    return read_epoch(workdir, epoch, like)


def kept_epochs(workdir: Path) -> list[int]:
    """The epochs whose checkpoints the run has kept, in order."""
    return numbers(workdir, "epochs")


def read_config(path: Path) -> Config:
    """The config of a run, from its config.json.

    Raises:
        InputError: there is none, or it is not as it was written.
    """
    record = _record_or_none(path)
    if record is None:
        raise InputError(f"{path} is not a run's config.json as it was written")
    return _config_of(record, path)


def _config_of(record: dict[str, Any], path: Path) -> Config:
    try:
        return from_json(record["config"])
    except InputError as error:
        raise InputError(f"{path} is of another version of cnnjax: {error}") from None


def _record(workdir: Path) -> dict[str, Any]:
    """What config.json says, or where it is damaged, what the copy in a sound checkpoint says."""
    path = workdir / "config.json"
    record = _record_or_none(path)
    folders = (workdir / "checkpoints" / kind / str(number) for kind in KINDS for number in numbers(workdir, kind))
    while record is None and (folder := next(folders, None)):
        with contextlib.suppress(Damaged):
            verify(folder)
            record = _record_or_none(folder / "config.json")
    if record is None:
        raise InputError(f"{path} is not a run's config.json as it was written, and no checkpoint has a copy")
    return record


def _sealed(record: dict[str, Any]) -> str:
    """As JSON, with the SHA-256 of the rest."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return json.dumps(rest | {"sha256": _seal(rest)}, indent=1) + "\n"


def _seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _record_or_none(path: Path) -> dict[str, Any] | None:
    text = _text_or_none(path)
    try:
        record = json.loads(text or "")
        rest = {name: value for name, value in record.items() if name != "sha256"}
        return record if record["sha256"] == _seal(rest) and record["data"]["sha256"] and record["config"] else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _text_or_none(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _free_name(path: Path) -> Path:
    return next(free for count in range(1, 10**6) if not (free := path.with_name(f"{path.name}-{count}")).exists())


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, one an epoch, of a run that may be going on; a torn last line is left out."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        lines = path.read_text().split("\n")
        metrics = [json.loads(line) for line in lines[:-1]]  # behind the last newline stands a torn line or nothing
        _ = [line["epoch"] for line in metrics]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path} must hold a JSON object with "epoch" on each line: {error!r}') from None
    return metrics
