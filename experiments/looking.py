"""A trained run, opened to be looked into: what every study of a finished network shares."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import cnnjax
from cnnjax import models
from cnnjax.atomic import replacing, write_text
from cnnjax.cli import Progress
from cnnjax.config import Config, DataConfig, to_json
from cnnjax.data import Dataset, Split, batches, fingerprint, load, scale_of
from cnnjax.errors import InputError
from cnnjax.figures import files
from cnnjax.figures.settings import check as check_matplotlib
from cnnjax.train import run
from cnnjax.train.lock import locked
from cnnjax.train.step import Preprocess, make_preprocess
from cnnjax.visualize.activations import Activations, tile_activations
from cnnjax.visualize.evolution import GROUP, FeatureMaps, Strongest, make_look, strongest_activations


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the images of a run are now; none: where they were. They are the same if their SHA-256 is."""

    folder: str | None = None  # a folder a class, as data.folder of the run
    npz: str | None = None  # a file with x_train, y_train, x_test, y_test
    data_dir: str | None = None  # where prepared sets and decoded caches are kept
    manual_dir: str | None = None  # published files at hand

    def of(self, config: DataConfig) -> DataConfig:
        """The config with the images at this place."""
        given: dict[str, Any] = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if given.keys() & {"folder", "npz"}:
            given = {"folder": None, "npz": None} | given
        return dataclasses.replace(config, **given)


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Which network."""

    run: Path = Path("runs/photos")  # the folder of a trained run
    epoch: int | None = None  # one of the epochs that the run has kept; none: its last


@dataclasses.dataclass(frozen=True)
class RunOptions(NetworkOptions):
    """Which network; a study's own options are added by a subclass."""

    data: Place = Place()  # where the run's images are now


class Trained(NamedTuple):
    """A network with the weights of one epoch, and the data that it was trained on."""

    config: Config
    dataset: Dataset
    network: Any  # its `apply(variables, images) -> (logits, feature_maps)`
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

    @property
    def logits(self) -> str:
        """The name of the last layer."""
        return list(self.layers)[-1]

    @property
    def shown(self) -> tuple[str, ...]:
        """The layers that a study shows where none are named."""
        return tuple(row.name for row in models.looked_into(list(self.layers.values())))

    def feature_maps(self, images: Any) -> dict[str, jax.Array]:
        """The activations of every layer for images as the network takes them, the logits under their layer's name."""
        logits, maps = self.network.apply(self.variables, images)
        return {**maps, self.logits: logits}  # pyright: ignore[reportReturnType]


def open_run(options: RunOptions, progress: Progress) -> Trained:
    """Loads the run and its data; writes nothing.

    Raises:
        InputError: no run folder, no checkpoints, an epoch that was not kept, or data that are not there any more or no
            longer the same.
    """
    return open_network(options, options.data, "--data", progress)


def open_network(options: NetworkOptions, place: Place, option: str, progress: Progress) -> Trained:
    """As `open_run`, with the images at `place`, of which `option` tells."""
    check_matplotlib()
    config = run.read_config(options.run / "config.json")
    kept = run.kept_epochs(options.run)
    epoch = kept[-1] if options.epoch is None and kept else options.epoch
    if epoch not in kept:
        listed = ", ".join(str(number) for number in kept) or "none"
        raise InputError(f"--epoch must be one that {options.run} has kept ({listed}), got {epoch}")
    try:
        dataset = load(place.of(config.data), progress)
    except InputError as error:
        raise InputError(f"{error} ({option}.npz and {option}.folder say where the run's images are now)") from None
    run.check_data(options.run, dataset)
    network = run.build(config, dataset)
    state = run.load_epoch(options.run, config, network, dataset, epoch)
    preprocess = make_preprocess(*scale_of(config.data, dataset))
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
        trained.layers[layer].fields,
    )  # fmt: skip


def maps_of(trained: Trained, layers: Sequence[str]) -> FeatureMaps:
    def feature_maps(variables, images):
        of_all = trained._replace(variables=variables).feature_maps(images)
        return {layer: of_all[layer] for layer in layers}

    return feature_maps


def require_at_most(options: Any, **most: int) -> None:
    """Raises InputError naming the first option above its bound, which no machine would ever finish or hold."""
    for name, bound in most.items():
        if getattr(options, name) > bound:
            raise InputError(f"--{name.replace('_', '-')} must be at most {bound}, got {getattr(options, name)}")


class Parts:
    """The results of a study's parts, written as they are made, so that a stopped study goes on where it was.

    They are in RUN/parts/STUDY/epoch-N/IDENTITY: each combination of all that decides a result has a folder of its own,
    so that none is ever taken for another's. Nothing there is needed once the figure is drawn.
    """

    def __init__(self, folder: Path, identity: str, say: Callable[[str], None]):
        """`say` is told of parts that are damaged."""
        self._folder, self._identity, self._say = folder, identity, say

    def get(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """The arrays of this part: read if they are there and whole, else computed and kept."""
        path, seal = self._folder / f"{name}.npz", self._folder / f"{name}.sha256"
        if seal.is_file():  # written last
            # Reading alone would not notice every flipped bit.
            if path.is_file() and seal.read_bytes() == self._seal(path):
                with np.load(path, allow_pickle=False) as kept:
                    return dict(kept)
            self._say(f"{path} was not as it was written; made anew")
            seal.unlink()
        files.save_arrays(path, **(arrays := {key: np.asarray(value) for key, value in compute().items()}))
        with replacing(seal) as file:
            file.write(self._seal(path))
        return arrays

    def _seal(self, path: Path) -> bytes:
        return hashlib.sha256(self._identity.encode() + path.read_bytes()).hexdigest().encode()


@contextlib.contextmanager
def studying(trained: Trained, study: str, settings: Mapping[str, Any], progress: Progress) -> Iterator[Parts]:
    """Hands out the parts of the study, and makes the folder of its figures; no other process draws them meanwhile.

    Args:
        settings: all that decides the parts beside the network's weights and the run's data.

    Raises:
        InputError: another process is at the same study of the same epoch, or a folder of the run is a link.
    """
    files.make_folder(trained.folder, *trained.figures.relative_to(trained.folder).parts)
    at_work = files.make_folder(trained.folder, "parts", study, f"epoch-{trained.epoch}")
    with locked(at_work):
        identity = identity_of(trained, settings)
        record = at_work / "identity.json"  # for people: which folder is whose that began last
        write_text(record, json.dumps({"epoch": trained.epoch, "identity": identity}) + "\n")
        record.replace(at_work.parent / record.name)
        yield Parts(files.make_folder(at_work, identity[:32]), identity, progress.say)


# JAX's settings that change numbers.
_SETTINGS = (
    "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)  # fmt: skip


def identity_of(trained: Trained, settings: Mapping[str, Any]) -> str:
    """SHA-256, as hexadecimal text, over all that decides what a study finds.

    That is the weights, the data, the network, the settings, this package's code, the versions of those it computes
    with, and how JAX is set.
    """
    packages = ("jax", "jaxlib", "flax", "numpy", "scipy", "scikit-learn", "scikit-image")
    everything = {
        "epoch": trained.epoch,
        "weights": trained.variables,
        "data": fingerprint(trained.dataset),
        "network": (to_json(trained.config)["model"], *scale_of(trained.config.data, trained.dataset)),
        "settings": settings,
        "code": _code(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "jax": {name: str(getattr(jax.config, name)) for name in _SETTINGS},
        "xla": os.environ.get("XLA_FLAGS", ""),
        "device": jax.devices()[0].device_kind,
    }
    return hashlib.sha256(json.dumps(_plain(everything), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """As what JSON can hold; an array by its type, its shape and the SHA-256 of its bytes."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.ascontiguousarray(value)
        return [array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{type(value)} has no text that holds all of it")


@functools.cache
def _code() -> str:
    """SHA-256 over the code of this package, but for that which only draws."""
    digest = hashlib.sha256(cnnjax.__version__.encode())
    for package in (Path(cnnjax.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            if path.parent != package / "figures":
                digest.update(f"{path.relative_to(package)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()
