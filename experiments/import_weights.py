"""A file of weights, `.safetensors` or `.npz` under PyTorch's names, made a run that every study takes by `--run`.

    python -m experiments.import_weights --model.name resnet18 --weights resnet18.safetensors --workdir runs/resnet18

The run has one kept epoch, 0, which is the weights as they are: nothing is trained. Its config says what the weights
expect (size, crop, interpolation, mean and deviation of each channel): what is known of the network or stands in the
file, where no option says otherwise; and the names of the classes, from `--classes FILE` (a name a line, or a JSON
list) or the file. Where these are not the classes of the data, the labels of the data say nothing of the outputs.

Without an option of the data they are the ten photographs that come with the packages, in patches of the size wanted.
`python -m experiments.train --train.start FILE` is how a training begins with such a file.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cnnjax import cli, models
from cnnjax.cli import Arguments, Progress
from cnnjax.config import Config, DataConfig, PhotosConfig, TrainConfig, check_class_names, from_json
from cnnjax.data import Dataset, load, objects
from cnnjax.data.files import read_regular
from cnnjax.errors import InputError
from cnnjax.models import foreign, weights
from cnnjax.train import run, weight_files
from cnnjax.train.step import TrainState, initial_state
from cnnjax.train.weight_files import WeightFile

# What a file and a known network say of the images that the weights expect.
METADATA = "cnnjax"  # the name under which it stands in a file
EXPECTED = ("image_size", "channels", "shorter_side", "interpolation", "unit", "mean", "deviation")


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the weights are, and what their classes are called."""

    weights: Path | None = dataclasses.field(default=None, metadata={"help": "the file, .safetensors or .npz"})
    classes: Path | None = dataclasses.field(
        default=None, metadata={"help": "names of the classes in the order of the outputs: a line each, or a JSON list"}
    )


def main(arguments: Arguments, progress: Progress) -> None:
    options = arguments.options
    if options.weights is None:
        raise InputError("--weights must be given: a file that ends in .safetensors or .npz")
    trained = sorted(name for name in arguments.given if name.startswith("--train."))
    if trained:
        raise InputError(
            f"{trained[0]} must not be given: nothing is trained; experiments.train --train.start does that"
        )
    if foreign.is_code(arguments.config.model.name):
        rule = "one of networks that are known here; your own and its weights go to a study, by --network and --weights"
        raise InputError(f"--model.name must be {rule}, got {arguments.config.model.name}")
    file = weight_files.read(options.weights, "--weights")
    names = None if options.classes is None else class_names(options.classes)
    config = with_patches(as_expected(arguments.config, arguments.given, file, progress), arguments.given)
    start = TrainConfig(epochs=0, keep_epochs=(), start=str(file.path.absolute()))
    config = run.identified(dataclasses.replace(config, train=start))
    dataset = load(config.data, progress)
    config = with_classes(config, dataset, file, names, progress)
    state = initial(config, dataset, progress)
    run.export(arguments.workdir, config, dataset, {0: state}, [{"epoch": 0}], progress.say)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    progress.say(f"{config.model.name} with {count:,} weights: epoch 0 of the run in {arguments.workdir}")


def as_expected(config: Config, given: frozenset[str], file: WeightFile, progress: Progress) -> Config:
    """The config with what the file and the network say of what the weights expect, where no option says otherwise.

    Filters are not renormalized unless that is asked for: the weights of others are not bounded so.
    """
    told = told_by(file)
    if told is not None and not any(name.startswith("--model.") for name in given):
        config = dataclasses.replace(config, model=dataclasses.replace(told.model, classes=None))
    known = expected_of(config.model.name) if told is None else told.data
    plain = DataConfig()
    changes = {
        name: value
        for name in EXPECTED
        if (value := getattr(known, name)) != getattr(plain, name)
        and f"--data.{name.replace('_', '-')}" not in given
        and getattr(config.data, name) == getattr(plain, name)
    }
    size = changes.get("image_size", config.data.image_size)
    if size != known.image_size:
        changes.pop("shorter_side", None)  # of another size than the one that was asked for
    if changes:
        progress.say(
            "expected by the weights: " + ", ".join(f"{name} {_brief(value)}" for name, value in changes.items())
        )
    if "--hyper.filter-rms" not in given:
        config = dataclasses.replace(config, hyper=dataclasses.replace(config.hyper, filter_rms=float("inf")))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def expected_of(name: str) -> DataConfig:
    """What published weights of a known network expect; of another network nothing is known."""
    expects = models.EXPECTS.get(name)
    if expects is None:
        return DataConfig()
    return DataConfig(
        image_size=expects.size,
        channels=3,
        shorter_side=expects.shorter_side,
        interpolation=expects.interpolation,
        mean=expects.mean,
        deviation=expects.deviation,
    )


def told_by(file: WeightFile) -> Config | None:
    """The network, the images and the classes that a file of `export_weights` is of; None where it is none."""
    if METADATA not in file.metadata:
        return None
    try:
        tree = json.loads(file.metadata[METADATA])
        return from_json({"model": tree["model"], "data": tree["data"], "train": {"epochs": 0, "start": "the file"}})
    except (InputError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file.called}: what it says of itself cannot be read: {error!r:.300}") from None


def with_patches(config: Config, given: frozenset[str]) -> Config:
    """Where no images are named, and the embedded objects are too small, patches of the embedded photographs."""
    size = config.data.shorter_side or config.data.image_size or 0
    if config.data.name != "objects" or size <= objects.SIDE or any(n.startswith("--data.") for n in given):
        return config
    photos = PhotosConfig(patch_size=size, tile=size, shorter_side=3 * size, train_patches=100, test_patches=50)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, name="photos", photos=photos))


def class_names(path: Path) -> tuple[str, ...]:
    """The names in a file, a line each or a JSON list."""
    try:
        text = read_regular(path, most=1 << 24).decode()
        names = (
            json.loads(text) if text.lstrip().startswith(("[", "{")) else [line.strip() for line in text.splitlines()]
        )
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--classes must be a file of names, got {str(path)!r}: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"--classes must hold a name a line or a JSON list of names, and {path} does not")
    check_class_names("--classes", tuple(names))
    return tuple(names)


def with_classes(
    config: Config, dataset: Dataset, file: WeightFile, names: tuple[str, ...] | None, progress: Progress
) -> Config:
    """The config with the classes of the weights, where these are not those of the data; and with a batch that fits."""
    train = dataclasses.replace(config.train, batch_size=min(config.train.batch_size, len(dataset.train)))
    config = dataclasses.replace(config, train=train)
    model = dataclasses.replace(config.model, classes=None)
    count = weights.classes_of(file.arrays, weights.layout(model, dataset.image_shape, dataset.num_classes))
    if count is None:
        return config  # of another network, which is refused where its arrays are read
    told = told_by(file)
    if names is None and told is not None:
        names = told.model.classes
    if names is not None and len(names) != count:
        raise InputError(
            f"--classes must have a name for each of the {count} outputs of {file.called}, got {len(names)}"
        )
    if names is None and count == dataset.num_classes:
        progress.say(f"the {count} outputs are taken for the classes of {dataset.name}, in their order")
        names = dataset.class_names
    if names != dataset.class_names:
        names = names or tuple(str(number) for number in range(count))
        model = dataclasses.replace(model, classes=names)
        progress.say(f"the {count} outputs are not the {dataset.num_classes} classes of {dataset.name}")
    return dataclasses.replace(config, model=model)


def initial(config: Config, dataset: Dataset, progress: Progress) -> TrainState:
    """The state before the first step, with the weights of the file."""
    network = run.build(config, dataset)
    begin = functools.partial(initial_state, network, config.train, config.hyper, dataset.image_shape)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(begin))
    start = run.Start(config, network, dataset, progress.say, "--weights")
    return start(empty._replace(rate_scale=jnp.float32(1)))


def _brief(value: Any) -> str:
    return " ".join(f"{number:.6g}" for number in value) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    cli.run(main, Options())
