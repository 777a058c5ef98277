"""The edge of training: a run folder that the same command fills, goes on with, or finds finished."""

import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import cnnjax
from cnnjax import models, ops
from cnnjax.config import Config, differences, from_json, to_json
from cnnjax.data.dataset import Dataset, fingerprint, mean_image
from cnnjax.errors import InputError
from cnnjax.train.checkpoints import Checkpoints
from cnnjax.train.step import Metrics, TrainState, initial_state, make_evaluate, make_preprocess, make_train_chunk

Progress = Callable[[str, int, int], None]  # description, done, total
CHUNK_SECONDS = 0.5  # a chunk of steps is about this long, so that the progress bar moves


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


def run(config: Config, dataset: Dataset, workdir: Path, progress: Progress | None = None) -> Run:
    """Trains to the end of the last epoch, from wherever the run folder stands; a finished run is only loaded.

    Raises:
        InputError: if `workdir` holds a run of another config; nothing has been written then.
    """
    report = progress or (lambda description, done, total: None)
    check(workdir, config)
    network = build(config, dataset)
    claim(workdir, config, dataset)
    preprocess = make_preprocess(jnp.asarray(mean_image(dataset.train)), config.data.unit)
    hyper = jax.tree.map(jnp.asarray, config.hyper)
    image_shape = dataset.train.images.shape[1:]
    init = ops.jit(lambda hyper: initial_state(network, config.train, hyper, image_shape))
    with Checkpoints(workdir) as checkpoints:
        state = checkpoints.load_newest(jax.eval_shape(init, hyper))
        if state is None:
            state = init(hyper)
        train(config, network, preprocess, dataset, state, workdir, checkpoints, report)
        like = jax.eval_shape(init, hyper)
        states = {epoch: checkpoints.load_epoch(epoch, like) for epoch in config.train.kept_epochs}
    return Run(config, network, preprocess, states, read_metrics(workdir))


def train(
    config: Config,
    network: nn.Module,
    preprocess: Callable,
    dataset: Dataset,
    state: TrainState,
    workdir: Path,
    checkpoints: Checkpoints,
    report: Progress,
) -> None:
    """The loop: chunks of steps, and at the end of an epoch its line of metrics and its checkpoint."""
    split, batch_size = dataset.train, config.train.batch_size
    steps_per_epoch = -(-len(split.labels) // batch_size)
    total = config.train.epochs * steps_per_epoch
    hyper = jax.tree.map(jnp.asarray, config.hyper)
    chunk = ops.jit(make_train_chunk(network, config.train, preprocess, len(split.labels)), donate_argnums=1)
    evaluate = ops.jit(make_evaluate(network, config.train, preprocess, len(dataset.test.labels)))
    step = int(state.step)
    written = keep_metrics_until(workdir, step // steps_per_epoch)
    if step == total and config.train.epochs in written and config.train.epochs in checkpoints.epochs():
        return
    train_arrays = jax.device_put((split.images, split.labels))
    test_arrays = jax.device_put((dataset.test.images, dataset.test.labels))

    def end_epoch(epoch: int) -> None:
        if epoch not in written:
            append_metrics(workdir, epoch, state.metrics, evaluate(hyper, state, *test_arrays))
            written.add(epoch)
        if epoch in config.train.kept_epochs and epoch not in checkpoints.epochs():
            checkpoints.save_epoch(epoch, state)

    if step % steps_per_epoch == 0:
        end_epoch(step // steps_per_epoch)
    saved_at, length = time.monotonic(), 1
    while step < total:
        epoch = step // steps_per_epoch
        stop = min(step + length, (epoch + 1) * steps_per_epoch)
        started = time.monotonic()
        state = chunk(hyper, state, *train_arrays, epoch, stop)
        if not math.isfinite(float(state.metrics.loss)):
            kept = checkpoints.epochs()[-1]
            raise InputError(
                f"hyper.learning_rate {config.hyper.learning_rate}: the loss is not finite between step {step} and "
                f"{stop} (epoch {epoch + 1}); the last sound checkpoint is that of epoch {kept}"
            )
        seconds = time.monotonic() - started
        length = max(1, min(2 * length, round((stop - step) * CHUNK_SECONDS / max(seconds, 1e-6))))
        step = stop
        report("training", step, total)
        if step % steps_per_epoch == 0:
            end_epoch(step // steps_per_epoch)
        if time.monotonic() - saved_at > config.train.save_every_seconds and step < total:
            checkpoints.save_latest(state)
            saved_at = time.monotonic()


def check(workdir: Path, config: Config) -> None:
    """Refuses a folder that cannot be the run folder of `config`; writes nothing.

    Raises:
        InputError: it is no folder, has other files, or holds a run of another config (naming the fields).
    """
    try:
        if (workdir / "config.json").exists():
            fields = differences(config, read_config(workdir / "config.json"))
            if fields:
                raise InputError(f"--workdir {workdir} holds a run of another config ({'; '.join(fields)})")
        elif workdir.exists() and any(workdir.iterdir()):
            raise InputError(f"--workdir must be new, empty or a run's, and {workdir} has files and no config.json")
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be read and written, got {workdir}: {error}") from None


def claim(workdir: Path, config: Config, dataset: Dataset) -> None:
    """Makes `workdir` the run folder of `config`, or checks that it already is, and of the same data.

    Raises:
        InputError: as `check`, and if the run that is there was trained on other data.
    """
    check(workdir, config)
    path = workdir / "config.json"
    if path.exists():
        check_data(workdir, dataset)
        return
    record = {
        "config": to_json(config),
        "versions": {"cnnjax": cnnjax.__version__}
        | {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")},
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "data": {"name": dataset.name, "sha256": fingerprint(dataset)},
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be written, got {workdir}: {error}") from None


def check_data(workdir: Path, dataset: Dataset) -> None:
    """Raises InputError if the run in `workdir` was trained on other data."""
    ours = fingerprint(dataset)
    theirs = json.loads((workdir / "config.json").read_text())["data"]["sha256"]
    if theirs != ours:
        raise InputError(f"{workdir} holds a run on other data (sha256 {ours[:12]} here, {theirs[:12]} there)")


def kept_epochs(workdir: Path) -> list[int]:
    """The epochs whose checkpoints the run has kept, in order."""
    folder = workdir / "checkpoints" / "epochs"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def load_epoch(workdir: Path, config: Config, network: nn.Module, dataset: Dataset, epoch: int) -> TrainState:
    """The state of the run at the end of a kept epoch."""
    hyper = jax.tree.map(jnp.asarray, config.hyper)
    image_shape = dataset.train.images.shape[1:]
    like = jax.eval_shape(lambda hyper: initial_state(network, config.train, hyper, image_shape), hyper)
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.load_epoch(epoch, like)


def read_config(path: Path) -> Config:
    """The config of a run, from its config.json."""
    try:
        record = json.loads(path.read_text())
        tree, _ = record["config"], record["data"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a run's config.json: {error!r}") from error
    return from_json(tree)


def write_text(path: Path, text: str) -> None:
    """Writes to a temporary name and renames, so that the file is never half there."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, one an epoch; a torn last line is left out."""
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


def keep_metrics_until(workdir: Path, epoch: int) -> set[int]:
    """Drops the lines of epochs that the state has not reached; returns the epochs that are left."""
    lines = [line for line in read_metrics(workdir) if line["epoch"] <= epoch]
    write_text(workdir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return {int(line["epoch"]) for line in lines}


def append_metrics(workdir: Path, epoch: int, train: Metrics, test: Metrics) -> None:
    """One line: means over the epoch's training batches (absent for epoch 0) and over the test split."""
    line: dict[str, Any] = {"epoch": epoch}
    for split, sums in (("train", train), ("test", test)):
        count = float(sums.count)
        if count:
            line[f"{split}_loss"] = float(sums.loss) / count
            line[f"{split}_error"] = float(sums.errors) / count
            line[f"{split}_error_top5"] = float(sums.errors_top5) / count
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
