"""The edge of training: a run folder that the same command fills, goes on with, or finds finished."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import cnnjax
from cnnjax import models
from cnnjax.atomic import write_text
from cnnjax.config import Config, differences, from_json, to_json
from cnnjax.data.dataset import Dataset, fingerprint, mean_image
from cnnjax.errors import InputError
from cnnjax.settings import pinned
from cnnjax.train.checkpoints import KINDS, Checkpoints, Damaged, numbers, read_epoch, verify
from cnnjax.train.lock import locked
from cnnjax.train.step import TrainState, initial_state, make_preprocess
from cnnjax.train.training import Progress, Training, compiled

_logger = logging.getLogger(__name__)


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


@pinned()
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
        programs = compiled(config, network, preprocess, dataset)
        texts = {"config.json": (workdir / "config.json").read_text()}
        training = Training(config, programs, dataset, workdir, checkpoints, report, say, texts)
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


def check(workdir: Path, config: Config) -> None:
    """Refuses a folder that cannot be the run folder of `config`; writes nothing.

    Raises:
        InputError: it is no folder, has other files, or holds a run of another config (naming the fields).
    """
    try:
        if (workdir / "config.json").exists() or (workdir / "checkpoints").is_dir():
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
    if (workdir / "config.json").exists() or (workdir / "checkpoints").is_dir():
        check_record(_record(workdir), workdir, dataset)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(workdir))
            check(workdir, config)
            path = workdir / "config.json"
            if not (workdir / "checkpoints").is_dir() and not path.exists():
                write_text(path, sealed(new_record(config, dataset)))
            elif read_sealed(path) is None:
                record = _record(workdir)
                if path.exists():
                    path.rename(free_name(path.with_name("config.json.damaged")))
                write_text(path, sealed(record))
                say(f"{path} was not as it was written; made anew from a checkpoint's copy")
            stack = stack.pop_all()
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be written, got {workdir}: {error}") from None
    with stack:
        yield


def new_record(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Everything that is needed to repeat the run."""
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
    check_record(_record(workdir), workdir, dataset)


def check_record(record: dict[str, Any], workdir: Path, dataset: Dataset) -> None:
    """Raises InputError if the record is of other data."""
    ours, theirs = fingerprint(dataset), record["data"]["sha256"]
    if theirs != ours:
        raise InputError(f"{workdir} holds a run on other data (sha256 {ours[:12]} here, {theirs[:12]} there)")


@pinned()
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
    if not path.exists():
        raise InputError(f"{path.parent} must be a run's folder, and {path} does not exist")
    record = read_sealed(path)
    if record is None:
        raise InputError(f"{path} is not a run's config.json as it was written, by cnnjax 0.2 or later")
    return _config_of(record, path)


def _config_of(record: dict[str, Any], path: Path) -> Config:
    try:
        return from_json(record["config"])
    except InputError as error:
        raise InputError(f"{path} is of another version of cnnjax: {error}") from None


def _record(workdir: Path) -> dict[str, Any]:
    """What config.json says, or where it is damaged, what the copy in a sound checkpoint says."""
    path = workdir / "config.json"
    record = read_sealed(path)
    folders = (workdir / "checkpoints" / kind / str(number) for kind in KINDS for number in numbers(workdir, kind))
    while record is None and (folder := next(folders, None)):
        with contextlib.suppress(Damaged):
            verify(folder)
            record = read_sealed(folder / "config.json")
    if record is None:
        raise InputError(f"{path} is not a run's config.json as it was written, and no checkpoint has a copy")
    return record


def sealed(record: dict[str, Any]) -> str:
    """As JSON, with the SHA-256 of the rest."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return json.dumps(rest | {"sha256": _seal(rest)}, indent=1) + "\n"


def _seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The record that `sealed` made a text of; None if there is none, or it is not as it was written."""
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


def free_name(path: Path) -> Path:
    """The first of PATH-1, PATH-2, ... that is not taken."""
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


@pinned()
def export(
    workdir: Path,
    config: Config,
    dataset: Dataset,
    states: Mapping[int, Any],
    metrics: Sequence[Any],
    say: Callable[[str], None] = _logger.warning,
) -> None:
    """Makes `workdir` the folder of a finished run that was trained elsewhere.

    Args:
        states: the state at the end of each kept epoch.
        metrics: a line an epoch.
        say: told in one line what was found damaged there.

    Raises:
        InputError: as `run`.
    """
    with claimed(workdir, config, dataset, say), Checkpoints(workdir, say) as checkpoints:
        config_text = (workdir / "config.json").read_text()
        for epoch, state in states.items():
            lines = "".join(json.dumps(line) + "\n" for line in metrics if line["epoch"] <= epoch)
            if epoch not in checkpoints.epochs():
                checkpoints.save_epoch(epoch, state, {"metrics.jsonl": lines, "config.json": config_text})
        write_text(workdir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
