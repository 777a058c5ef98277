"""A data set and sweeps so small that they train in a moment."""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from cnnjax.config import Config, DataConfig, Hyperparams, ModelConfig, TrainConfig
from cnnjax.data.dataset import Dataset, checked_dataset
from cnnjax.sweep import engine
from cnnjax.sweep.space import Member, grid_and_draws

# Dropout, augmentation and batch statistics on; 32 images in batches of 12: the last one is masked.
CONFIG = Config(
    DataConfig(name="digits"),
    ModelConfig("lenet", widths=(2,), filters=(3,), paddings=(1,), dense=(6,), norm="batch", init="he"),
    TrainConfig(epochs=2, batch_size=12, keep_epochs=(1,), save_every_seconds=1e6),
    Hyperparams(learning_rate=0.05, dropout_rate=0.3, shift=1.0, contrast=0.2, brightness=0.1),
)

# From the command line, with --config digits: the network that compiles quickest.
MLP = (
    "--model.name",
    "mlp",
    "--model.dense",
    "4",
    *(f"--model.{name}=None" for name in ("widths", "filters", "paddings")),
)


def last_of_each(*words: str) -> list[str]:
    """A command line in which a later option takes the place of an earlier one of its name."""
    options: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name = word.partition("=")[0]
            options.pop(name, None)
            options[name] = [word]
        else:
            options[name].append(word)
    return [word for option in options.values() for word in option]


def dataset() -> Dataset:
    """Three classes, each noise around its own mean grey level."""
    generator = np.random.default_rng(0)

    def split(count):
        labels = generator.integers(0, 3, count)
        noise = generator.integers(0, 120, (count, 8, 8, 1))
        return (noise + 60 * labels[:, None, None, None]).astype(np.uint8), labels

    return checked_dataset("noise", ("a", "b", "c"), train=split(32), test=split(10))


def members(config: Config = CONFIG, **axes) -> list[Member]:
    """A grid; "model__filters" stands for the axis "model.filters"."""
    return grid_and_draws(config, {name.replace("__", "."): values for name, values in axes.items()}, 1, 0)


@contextlib.contextmanager
def programs_shared() -> Iterator[None]:
    """Sweeps that need the same programs share them, as those of one process would."""
    make, made = engine.programs, {}

    def programs(group, dataset, *how):
        key = (group.config.model, group.config.train, group.axes, dataset.name, *how)
        if key not in made:
            made[key] = make(group, dataset, *how)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "programs", programs)
        yield
