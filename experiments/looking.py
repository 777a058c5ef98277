"""A trained run, opened to be looked into: what every study of a finished network shares."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax import models
from cnnjax.atomic import replacing, write_text
from cnnjax.cli import Progress
from cnnjax.config import Config
from cnnjax.data import Dataset, Split, batches, load, mean_image
from cnnjax.errors import InputError
from cnnjax.figures import files
from cnnjax.train import run
from cnnjax.train.step import Preprocess, make_preprocess
from cnnjax.visualize.activations import Activations, tile_activations
from cnnjax.visualize.evolution import GROUP, FeatureMaps, Strongest, make_look, strongest_activations


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Which network; a study's own options are added by a subclass."""

    run: Path = Path("runs/photos")  # the folder of a trained run
    epoch: int | None = None  # one of the epochs that the run has kept; none: its last


class Trained(NamedTuple):
    """A network with the weights of one epoch, and the data that it was trained on."""

    config: Config
    dataset: Dataset
    network: models.ConvNet
    variables: dict[str, Any]  # of `network.apply`
    preprocess: Preprocess  # uint8 images to the network's input
    layers: dict[str, models.Layer]  # by name, in network order, the logits last
    epoch: int
    folder: Path  # the run's

    @property
    def figures(self) -> Path:
        """Where the study's figures go."""
        return self.folder / "figures" / f"epoch-{self.epoch}"

    def layer(self, name: str, option: str = "--layer") -> models.Layer:
        """The row of the table of layers. Raises InputError listing the layers that exist."""
        if name not in self.layers:
            raise InputError(f"{option} must be one of {', '.join(self.layers)}, got {name!r}")
        return self.layers[name]

    def feature_maps(self, images: Any) -> dict[str, jax.Array]:
        """The activations of every layer for images as the network takes them, the logits under their layer's name."""
        logits, maps = self.network.apply(self.variables, images)
        return {**maps, list(self.layers)[-1]: logits}  # pyright: ignore[reportReturnType]


def open_run(options: RunOptions, progress: Progress) -> Trained:
    """Loads the run and its data; writes nothing.

    Raises:
        InputError: no run folder, no checkpoints, an epoch that was not kept, or data that are no longer the same.
    """
    config = run.read_config(options.run / "config.json")
    kept = run.kept_epochs(options.run)
    epoch = kept[-1] if options.epoch is None and kept else options.epoch
    if epoch not in kept:
        listed = ", ".join(str(number) for number in kept) or "none"
        raise InputError(f"--epoch must be one that {options.run} has kept ({listed}), got {epoch}")
    dataset = load(config.data, progress)
    run.check_data(options.run, dataset)
    network = run.build(config, dataset)
    state = run.load_epoch(options.run, config, network, dataset, epoch)
    preprocess = make_preprocess(jnp.asarray(mean_image(dataset.train)), config.data.unit)
    return opened(run.Run(config, network, preprocess, {epoch: state}, []), dataset, options.run)


def opened(finished: run.Run, dataset: Dataset, folder: Path) -> Trained:
    """The last kept epoch of a run that is in memory."""
    epoch = max(finished.states)
    state, network = finished.states[epoch], run.build(finished.config, dataset)
    layers = {row.name: row for row in models.layers(network, dataset.image_shape)}
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return Trained(finished.config, dataset, network, variables, finished.preprocess, layers, epoch, folder)


def strongest_of(
    trained: Trained, layers: Sequence[str], split: Split, count: int, progress: Progress
) -> dict[str, Strongest]:
    """The strongest activations of every map of the layers over all images of the split, in one pass."""
    look = make_look(maps_of(trained, layers), trained.preprocess, count)
    groups = range(0, len(split), GROUP)
    told = (batch for batch, _ in zip(batches(split, GROUP), progress.over("looking", groups), strict=True))
    return strongest_activations(look, trained.variables, told)


def tiles_of(
    trained: Trained, layer: str, strongest: Strongest, maps: Sequence[int] | np.ndarray, split: Split
) -> Activations:
    """The projections of these activations of the chosen maps, and the patches of the images of the split."""
    return tile_activations(
        maps_of(trained, (layer,)), layer, trained.variables, strongest, maps, split.images, trained.preprocess,
        trained.layers[layer].field,
    )  # fmt: skip


def maps_of(trained: Trained, layers: Sequence[str]) -> FeatureMaps:
    def feature_maps(variables, images):
        of_all = trained._replace(variables=variables).feature_maps(images)
        return {layer: of_all[layer] for layer in layers}

    return feature_maps


class Parts:
    """The results of a study's parts, written as they are made, so that a stopped study goes on where it was.

    They are in RUN/parts/STUDY. Parts of other weights, data or settings are deleted when the study begins.
    """

    def __init__(self, trained: Trained, study: str, settings: Mapping[str, Any]):
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(trained.variables):
            digest.update(np.asarray(leaf).tobytes())
        data = json.loads((trained.folder / "config.json").read_text())["data"]["sha256"]
        self._folder = trained.folder / "parts" / study
        identity = json.dumps({"weights": digest.hexdigest(), "data": data, "settings": repr(dict(settings))})
        path = self._folder / "identity.json"
        if not path.exists() or path.read_text() != identity:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            write_text(path, identity)

    def get(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """The arrays of this part: read if they are there and whole, else computed and kept."""
        path, seal = self._folder / f"{name}.npz", self._folder / f"{name}.sha256"
        # Reading alone would not notice every flipped bit.
        if not (path.is_file() and seal.is_file() and seal.read_bytes() == _digest(path)):
            seal.unlink(missing_ok=True)
            files.save_arrays(path, **compute())
            with replacing(seal) as file:
                file.write(_digest(path))
        with np.load(path, allow_pickle=False) as kept:
            return {key: kept[key] for key in kept.files}


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).hexdigest().encode()
