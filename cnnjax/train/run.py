"""The edge of training: a run folder that the same command fills, goes on with, or finds finished."""

import contextlib
import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cnnjax import atomic, models, processes
from cnnjax.atomic import check_tree, read_text, sealed, write_text
from cnnjax.config import Config, differences, from_json, to_json
from cnnjax.data.dataset import Dataset, fingerprint
from cnnjax.data.scale import scale_of
from cnnjax.environment import changes, environment
from cnnjax.errors import InputError
from cnnjax.models import foreign, weights
from cnnjax.models.building import dotted, is_of
from cnnjax.settings import pinned
from cnnjax.train import interruption, placement, weight_files
from cnnjax.train.checkpoints import KINDS, Checkpoints, Damaged, Kept, Misfit, numbers, read_epoch, verify
from cnnjax.train.events import Events
from cnnjax.train.feed import choose
from cnnjax.train.lock import locked
from cnnjax.train.log import Log
from cnnjax.train.memory import Memory
from cnnjax.train.rematerialization import computes_again
from cnnjax.train.shared import SharedCheckpoints
from cnnjax.train.step import Network, TrainState, initial_state, make_preprocess
from cnnjax.train.throughput import PEAKS, Meter, Work
from cnnjax.train.training import Progress, Training, compiled, metrics_line

_logger = logging.getLogger(__name__)


class Run(NamedTuple):
    """What a finished run hands to those who look into it."""

    config: Config
    network: Network
    preprocess: Callable
    states: dict[int, TrainState]  # by kept epoch; of several processes the first alone has them
    metrics: list[dict[str, float]]  # a line an epoch, epoch 0 included


def build(config: Config, dataset: Dataset) -> models.ConvNet | models.KnownNetwork | foreign.Foreign:
    """The network of the config for the images of the data set, checked to fit, with its frozen layers."""
    if config.train.batch_size > len(dataset.train):
        rule = f"at most the number of training images ({len(dataset.train)})"
        raise InputError(f"train.batch_size must be {rule}, got {config.train.batch_size}")
    if config.data.validation_fraction and dataset.validation is None:
        rule = "must be 0 for a data set that was made without it (cnnjax.data.load takes it)"
        raise InputError(f"data.validation_fraction {rule}, got {config.data.validation_fraction}")
    segments = config.train.rematerialize
    if segments > 1 and not computes_again():
        rule = "must be 1 with this jaxlib on a CPU, whose compiler keeps the activations of all segments"
        raise InputError(f"train.rematerialize {rule}, got {segments}")
    network = models.build(config.model, dataset.image_shape, dataset.num_classes)
    parts, last = config.train.accumulate, len(dataset.train) % config.train.batch_size
    if isinstance(network, foreign.Foreign) and last % parts:
        rule = f"must divide the {last} images of an epoch's last batch too for a network of one's own"
        raise InputError(f"train.accumulate {rule}, got {parts}")
    frozen = config.train.freeze
    if not frozen:
        return network
    params = weights.like(network, dataset.image_shape)["params"]
    paths = [dotted(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    layers = sorted({path.rpartition(".")[0] or path for path in paths})
    for name in frozen:
        if not any(is_of(layer, (name,)) for layer in layers):
            raise InputError(f"train.freeze must be of {', '.join(layers)}, or what these begin with, got {name!r}")
    if all(is_of(layer, frozen) for layer in layers):
        raise InputError(f"train.freeze must leave a layer to train, got {', '.join(frozen)}")
    return network.clone(frozen=frozen)


@pinned()
def run(
    config: Config,
    dataset: Dataset,
    workdir: Path,
    progress: Progress | None = None,
    say: Callable[[str], None] = _logger.warning,
    devices: int | None = None,
    streamed: bool | None = None,
    tell_memory: Callable[[Memory], None] = lambda takes: None,
    *,
    operations: float | None = None,
    peak_teraflops: float | None = None,
    tensorboard: bool = False,
) -> Run:
    """Trains to the end of the last epoch, from wherever the run folder stands; a finished run is only loaded.

    Kept epochs that are missing or damaged are made again, from the newest sound checkpoint before them. How fast each
    epoch was trained stands in throughput.jsonl.

    Args:
        progress: told how many of all steps are done.
        say: told in one line what was found damaged, left out or gone back to.
        devices: that share each batch; None: as many of all as divide it.
        streamed: images are brought to the devices as they are needed; None: as `feed.choose` finds.
        tell_memory: told before the first step what the training takes on each device.
        operations: of a training step, an image, of which throughput.jsonl tells the share of the devices' peak; None:
            it does not.
        peak_teraflops: of a device, 10^12 operations a second; None: its maker's number, where it is known here.
        tensorboard: write events for TensorBoard too, which takes the extra `tensorboard`.

    Raises:
        InputError: if `workdir` holds a run of another config or is in use (nothing has been written then), if the
            training diverges, or if a checkpoint cannot be saved.
    """
    report = progress or (lambda description, done, total: None)
    config = identified(config)
    processes.check_alike(
        {
            "config": json.dumps(to_json(config), sort_keys=True),
            "data": fingerprint(dataset),
            "versions": json.dumps(environment()["versions"], sort_keys=True),
        }
    )
    processes.by_first(lambda: check(workdir, config))
    network = build(config, dataset)
    mesh = placement.mesh_for(config.train.batch_size, devices, config.train.accumulate)
    start = None if config.train.start is None else Start(config, network, dataset, say)
    if start is not None and not processes.by_first(lambda: 0 in kept_epochs(workdir)):
        start.read()  # what is wrong with the file is said before anything is written
    streamed = choose(dataset).streamed if streamed is None else streamed
    preprocess = make_preprocess(*scale_of(config.data, dataset))
    programs = compiled(config, network, preprocess, dataset, mesh, streamed)
    is_new = not _is_begun(workdir)
    with contextlib.ExitStack() as held:
        own: Checkpoints | None = None

        def begin() -> str:
            nonlocal own
            held.enter_context(claimed(workdir, config, dataset, say))
            own = held.enter_context(Checkpoints(workdir, say, of_run(config, dataset)))
            if set(config.train.kept_epochs) - set(own.epochs()):
                _record_environment(workdir, say)
            return read_text(workdir / "config.json")

        texts = {"config.json": processes.by_first(begin)}
        checkpoints = SharedCheckpoints(own)
        events = Events(workdir / "tensorboard") if tensorboard and processes.is_first() else None
        meter = Meter(len(dataset.train), config.train.batch_size)
        log = held.enter_context(Log(workdir, meter, _work(mesh, operations, peak_teraflops), events, say))
        training = Training(
            config, programs, dataset, workdir, checkpoints, report, say, texts, start, tell_memory, log
        )
        try:
            # What turns out to be damaged when it is read is made anew.
            kept = _trained(training, checkpoints) or _trained(training, checkpoints)
        except InputError:
            if is_new and processes.is_first() and not any(numbers(workdir, kind) for kind in KINDS):
                _forget(workdir)  # or a command with what was asked for would be refused
            raise
        if kept is None:
            raise InputError(f"--workdir must keep what is written there, and {workdir} does not")
        checkpoints.drop_latest()
        text = kept[config.train.epochs].texts["metrics.jsonl"]
        if processes.is_first() and _text_or_none(workdir / "metrics.jsonl") != text:
            write_text(workdir / "metrics.jsonl", text)
        metrics = [json.loads(line) for line in text.splitlines()]
        log.end(metrics)
    states = {epoch: checkpoint.state for epoch, checkpoint in kept.items()}
    return Run(config, network, preprocess, states, metrics)


def _work(mesh: Mesh, operations: float | None, peak_teraflops: float | None) -> Work | None:
    """Of a training on these devices; None where its work or their peak is not known."""
    peak = PEAKS.get(mesh.devices.flat[0].device_kind) if peak_teraflops is None else peak_teraflops
    return None if operations is None or peak is None else Work(operations, peak * mesh.size)


def _trained(training: Training, checkpoints: SharedCheckpoints) -> dict[int, Kept] | None:
    """Trains the kept epochs that are missing and reads all; None if one of them cannot be read.

    Several processes end for a signal where they agree on it, and nowhere else.
    """
    epochs = training.config.train.kept_epochs
    with interruption.deferred() if jax.process_count() > 1 else contextlib.nullcontext(interruption.Asked()) as asked:
        for epoch in epochs:
            if epoch not in checkpoints.epochs():
                training.go_to(epoch, asked)
        kept = checkpoints.load_all(epochs, training.like)
        if stop := training.agreed(asked):
            raise stop
    return kept


def identified(config: Config) -> Config:
    """The config with the SHA-256 of its network's code and of the file that its training starts from, if any.

    By these a training that goes on knows them again.

    Raises:
        InputError: there is no such file, or it is not the one that the config says.
    """
    if foreign.is_code(config.model.name):
        found = foreign.code_sha256(config.model.name)
        if config.model.code_sha256 not in (None, found):
            rule = f"must have the SHA-256 {config.model.code_sha256}, got {found}"
            raise InputError(f"model.name {config.model.name} {rule}")
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, code_sha256=found))
    train = config.train
    if train.start is None:
        return config
    found = weight_files.sha256(train.start, "train.start")
    if train.start_sha256 not in (None, found):
        raise InputError(f"train.start {train.start} must have the SHA-256 {train.start_sha256}, got {found}")
    return dataclasses.replace(config, train=dataclasses.replace(train, start_sha256=found))


class Start:
    """The weights that a training begins with, from a file; called with the random initial state, it puts them there.

    A last layer for other classes stays random, which is said.
    """

    def __init__(
        self,
        config: Config,
        network: Network,
        dataset: Dataset,
        say: Callable[[str], None],
        option: str = "train.start",
    ):
        """`option`, in errors, is what named the file."""
        self._option = option
        self._config, self._network, self._dataset, self._say = config, network, dataset, say
        self._variables: dict[str, Any] | None = None

    def read(self) -> None:
        """Raises InputError where the file is not one of the network's weights; reads it but once for one call."""
        config, shape = self._config, self._dataset.image_shape
        file = weight_files.read(config.train.start or "", self._option)
        if isinstance(self._network, foreign.Foreign):
            self._variables = foreign.variables_from(self._network, file.arrays, shape, self._option)
            return
        like = weights.like(self._network, shape)
        classes = self._dataset.num_classes if config.model.classes is None else len(config.model.classes)
        known = weights.layout(config.model, shape, classes)
        theirs = weights.classes_of(file.arrays, known)
        head: frozenset[str] = frozenset()
        if theirs is not None and theirs != classes:
            head, like = known.head, weights.without(like, known.head)
            layers = ", ".join(sorted({name.rpartition(".")[0] for name in head}))
            self._say(
                f"{file.called}: {layers} is for {theirs} classes and left out; for {classes} it begins at random"
            )
        flattened = weights.flattened_maps(self._network, shape)
        self._variables = weights.variables_of(
            file.arrays, like, flattened, left_out=head, called=file.called, say=self._say
        )

    def __call__(self, state: TrainState) -> TrainState:
        if self._variables is None:
            self.read()
        found, self._variables = self._variables or {}, None  # the steps give the state's arrays away
        params, batch_stats = state.params | found["params"], state.batch_stats | found.get("batch_stats", {})
        return state._replace(params=params, batch_stats=batch_stats)


def of_run(config: Config, dataset: Dataset) -> Misfit:
    """For `Checkpoints`: takes those of this run only, and each only under its own epoch or step."""
    data = fingerprint(dataset)
    steps_per_epoch = -(-len(dataset.train) // config.train.batch_size)

    def misfit(kind: str, number: int, kept: Kept) -> str | None:
        record = unsealed(kept.texts.get("config.json", ""))
        if record is None:
            return "has no copy of the run's config.json"
        try:
            fields = differences(config, _config_of(record, "its config.json"))
        except InputError as error:
            return f"is of another run ({error})"
        if record["data"]["sha256"] != data:
            fields.append("other data")
        if fields:
            return f"is of another run ({'; '.join(fields)})"
        step = number * steps_per_epoch if kind == "epochs" else number
        try:
            lines = [json.loads(line) for line in kept.texts["metrics.jsonl"].splitlines()]
            epochs = [line["epoch"] for line in lines]
        except (ValueError, KeyError, TypeError, RecursionError):
            epochs = []
        if len(epochs) != step // steps_per_epoch + 1 or epochs != list(range(len(epochs))):
            return "has metrics that are not those of its epochs"
        if kept.state is not None:
            if int(kept.state.step) != step:
                return f"holds the state of step {int(kept.state.step)}"
            # At the end of an epoch the state still has the sums that the means of its line are made of.
            ours = json.loads(metrics_line(0, kept.state.metrics, kept.state.metrics))
            known = {name: value for name, value in lines[-1].items() if name.startswith("train_")}
            if step % steps_per_epoch == 0 and any(ours.get(name) != value for name, value in known.items()):
                return "has metrics that are not those of its state"
        return None

    return misfit


def check(workdir: Path, config: Config) -> None:
    """Refuses a folder that cannot be the run folder of `config`; writes nothing.

    Raises:
        InputError: it is no folder, has other files, holds a run of another config (naming the fields), or has links
            or other things in it that are neither files nor folders.
    """
    config = identified(config)
    try:
        if _is_begun(workdir):
            check_tree(workdir)
            fields = differences(config, _config_of(_record(workdir, config), workdir / "config.json"))
            if fields:
                raise InputError(f"--workdir {workdir} holds a run of another config ({'; '.join(fields)})")
        elif workdir.exists() and {path.name for path in workdir.iterdir()} - {"lock", "config.json.tmp"}:
            raise InputError(f"--workdir must be new, empty or a run's, and {workdir} has files and no config.json")
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be read and written, got {workdir}: {error}") from None


def _forget(workdir: Path) -> None:
    """Leaves nothing of a run that has not made its first checkpoint."""
    for name in ("config.json", "metrics.jsonl"):
        (workdir / name).unlink(missing_ok=True)
    shutil.rmtree(workdir / "tensorboard", ignore_errors=True)  # where it was asked for
    shutil.rmtree(workdir / "checkpoints")


def _is_begun(workdir: Path) -> bool:
    """Whether a run has been begun there, sound or not."""
    return (workdir / "config.json").exists() or (workdir / "checkpoints").is_dir()


@contextlib.contextmanager
def claimed(workdir: Path, config: Config, dataset: Dataset, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of `workdir`, which is made the run folder of `config`, or is checked to be it already.

    Raises:
        InputError: as `check`; if another process is at work there; if the run that is there was trained on other data.
    """
    check(workdir, config)
    if _is_begun(workdir):
        check_record(_record(workdir, config), workdir, dataset)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(workdir))
            check(workdir, config)
            path = workdir / "config.json"
            if not (workdir / "checkpoints").is_dir() and not path.exists():
                write_text(path, sealed(new_record(config, dataset)))
            elif read_sealed(path) is None:
                record = _record(workdir, config)
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
    return {"config": to_json(config), **environment(), "data": {"name": dataset.name, "sha256": fingerprint(dataset)}}


def _record_environment(workdir: Path, say: Callable[[str], None]) -> None:
    """Says in one line what is other than when the run was last trained, and adds it to the record, as `resumed_in`."""
    path = workdir / "config.json"
    record = read_sealed(path)
    assert record is not None  # as `claimed` leaves it
    resumed_in = record.get("resumed_in")
    resumed_in = resumed_in if isinstance(resumed_in, list) else []
    here = environment()
    found = changes(here, resumed_in[-1] if resumed_in else record)
    if found:
        say(f"{workdir} goes on otherwise than before, so it may end with other bits ({'; '.join(found)})")
        write_text(path, sealed(record | {"resumed_in": [*resumed_in, here]}))


def check_data(workdir: Path, dataset: Dataset) -> None:
    """Raises InputError if the run in `workdir` was trained on other data."""
    check_record(_record(workdir), workdir, dataset)


def check_record(record: dict[str, Any], workdir: Path, dataset: Dataset) -> None:
    """Raises InputError if the record is of other data."""
    ours, theirs = fingerprint(dataset), record["data"]["sha256"]
    if theirs != ours:
        raise InputError(f"{workdir} holds a run on other data (sha256 {ours[:12]} here, {theirs[:12]} there)")


@pinned()
def load_epoch(workdir: Path, config: Config, network: Network, dataset: Dataset, epoch: int) -> TrainState:
    """The state of the run at the end of a kept epoch; writes nothing.

    Raises:
        InputError: as `read_epoch`.
    """
    hyper = jax.tree.map(jnp.asarray, config.hyper)
    image_shape = dataset.train.images.shape[1:]
    like = jax.eval_shape(lambda hyper: initial_state(network, config.train, hyper, image_shape), hyper)
    return read_epoch(workdir, epoch, like, of_run(config, dataset))


def kept_epochs(workdir: Path) -> list[int]:
    """The epochs whose checkpoints the run has kept, in order."""
    return numbers(workdir, "epochs")


def read_config(path: Path) -> Config:
    """The config of a run, from its config.json.

    Raises:
        InputError: there is none, it is not as it was written, or its folder has links or other things in it that are
            neither files nor folders.
    """
    if not path.exists():
        raise InputError(f"{path.parent} must be a run's folder, and {path} does not exist")
    check_tree(path.parent)
    record = read_sealed(path)
    if record is None:
        raise InputError(f"{path} is not a run's config.json as it was written, by cnnjax 0.2 or later")
    return _config_of(record, path)


def _config_of(record: dict[str, Any], path: Path | str) -> Config:
    try:
        return from_json(record["config"])
    except InputError as error:
        raise InputError(f"{path} is of another version of cnnjax: {error}") from None
    except RecursionError:
        raise InputError(f"{path} is no run's: its config is nested too deep") from None


def _record(workdir: Path, config: Config | None = None) -> dict[str, Any]:
    """What config.json says, or where it is damaged, what the copy in a sound checkpoint says: one of `config`, if any.

    Raises:
        InputError: neither is as it was written.
    """
    path = workdir / "config.json"
    if (record := read_sealed(path)) is not None:
        return record
    records = []
    for kind in KINDS:
        for number in numbers(workdir, kind):
            with contextlib.suppress(Damaged):
                _, texts = verify(workdir / "checkpoints" / kind / str(number))
                records.append(unsealed(texts.get("config.json", "")))
    records = [record for record in records if record is not None]
    if not records:
        raise InputError(f"{path} is not a run's config.json as it was written, and no checkpoint has a copy")
    # A checkpoint of another run may have been put there.
    ours = (record for record in reversed(records) if config and not differences(config, _config_of(record, path)))
    return next(ours, records[-1])


def unsealed(text: str) -> dict[str, Any] | None:
    """The record of a run that `sealed` made this text of; None if it did not."""
    record = atomic.unsealed(text)
    try:
        _ = record and record["config"]
        whole = record and re.fullmatch("[0-9a-f]{64}", record["data"]["sha256"])
    except (KeyError, TypeError):
        return None
    return record if whole else None


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The record in the file, as `unsealed`; None if there is none, or it is not as it was written."""
    return unsealed(_text_or_none(path) or "")


def _text_or_none(path: Path) -> str | None:
    try:
        return read_text(path)
    except (OSError, ValueError):
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
        lines = read_text(path).split("\n")
        metrics = [json.loads(line) for line in lines[:-1]]  # behind the last newline stands a torn line or nothing
        _ = [line["epoch"] for line in metrics]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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
    misfit = of_run(config, dataset)
    with claimed(workdir, config, dataset, say), Checkpoints(workdir, say, misfit) as checkpoints:
        config_text = read_text(workdir / "config.json")
        for epoch, state in states.items():
            lines = "".join(json.dumps(line) + "\n" for line in metrics if line["epoch"] <= epoch)
            if epoch not in checkpoints.epochs():
                checkpoints.save_epoch(epoch, state, {"metrics.jsonl": lines, "config.json": config_text})
        write_text(workdir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
