"""A trained run, opened to be looked into: what every study of a finished network shares."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int, Int32

import cnnjax
from cnnjax import models, ops
from cnnjax.atomic import replacing, write_text
from cnnjax.cli import Progress
from cnnjax.config import Config, DataConfig, ModelConfig, to_json
from cnnjax.data import Dataset, Split, batches, checked_dataset, fingerprint, load, scale_of
from cnnjax.data.files import printable
from cnnjax.data.splits import of_all_classes, random_state
from cnnjax.errors import InputError
from cnnjax.figures import files
from cnnjax.figures.projections import Made
from cnnjax.figures.settings import check as check_matplotlib
from cnnjax.models import foreign
from cnnjax.train import run, weight_files
from cnnjax.train.lock import locked
from cnnjax.train.step import Preprocess, make_preprocess
from cnnjax.visualize.activations import Activations
from cnnjax.visualize.deconvnet import Rule
from cnnjax.visualize.evolution import (
    LEAST_CONTRAST,
    FeatureMaps,
    Projector,
    Strongest,
    alike_through_others,
    group_size,
    make_look,
    make_projector,
    strongest_activations,
    unbounded,
)
from experiments import pictures

ON = "on-"  # begins the names of folders with figures of pictures that a user has named


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

    def described(self) -> dict[str, Any]:
        """What a run knows by itself."""
        places = {field.name for field in dataclasses.fields(Place)}
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return {name: value for name, value in given.items() if name not in places}


@dataclasses.dataclass(frozen=True)
class Images(Place):
    """Where the images of a run are now; or with --network, which they are, and what that network takes."""

    name: str | None = None  # with --network: objects, photos, digits, or any name in TensorFlow Datasets
    image_size: int | None = None  # with --network: side in pixels; shorter side scaled, centre cut
    channels: Literal[1, 3] | None = None  # with --network: grey or RGB; none: as the images are
    shorter_side: int | None = None  # with --network: scaled to this first; none: image_size
    interpolation: str | None = None  # with --network: of the scaling
    mean: tuple[float, ...] | None = None  # with --network: grey levels a channel; none: the mean training image
    deviation: tuple[float, ...] | None = None  # with --network: grey levels that count as 1, a channel; none: 64


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Which network: that of a run, or one of your own."""

    run: Path = Path("runs/objects")  # the folder of a trained run
    epoch: int | None = None  # one of the epochs that the run has kept; none: its last
    network: str | None = None  # FILE.py:NAME, code that is run: your own network instead
    weights: Path | None = None  # of --network, .safetensors or .npz: arrays by their paths in it
    workdir: Path | None = None  # for figures of --network; none: runs/NAME


@dataclasses.dataclass(frozen=True)
class RunOptions(NetworkOptions):
    """Which network; a study's own options are added by a subclass."""

    data: Images = Images()  # where the run's images are now


@dataclasses.dataclass(frozen=True)
class PictureOptions(RunOptions):
    """Which network and which images, for a study that looks at test images."""

    on: Path | None = None  # a folder or .zip archive of pictures to look at instead of the run's test images


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
    code: str = ""  # SHA-256 of the file that the network is written in, if it is somebody's own
    is_own: bool = False  # of no run: its folder is made
    pictures: tuple[str, ...] = ()  # names of the test images where a user has named them, beside the run's own
    place: str = ""  # the folder in that of the figures where what is drawn of these goes
    order: Int[np.ndarray, " images"] | None = None  # `examples`, where they are known
    trained_on: Dataset | None = None  # the run's own data, where a user has named other test images

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the network's outputs are called."""
        if self.config.model.classes is not None:
            return self.config.model.classes
        (count,) = self.layers[self.logits].output_shape
        names = self.dataset.class_names
        return names if count == len(names) else tuple(f"class {number}" for number in range(count))

    def targets(self, split: Split) -> np.ndarray:
        """The class of each image, among the network's.

        Its label, where the classes of the data are the network's; else what the network itself says of it, because
        the labels say nothing of its outputs.
        """
        if self.class_names == self.dataset.class_names:
            return split.labels
        return self.answers(split)

    @property
    def target(self) -> str:
        """What `targets` are, in words."""
        knows = self.class_names == self.dataset.class_names and not self.pictures
        return "true class" if knows else "network's answer"

    def called(self, index: int, label: int) -> str:
        """What a test image is called in a figure: its class and its number, or its file."""
        return f"{self.class_names[label]} ({self.pictures[index] if self.pictures else index})"

    def probabilities(self, split: Split) -> Float32[np.ndarray, "images classes"]:
        """Of each class, by the softmax of the logits."""
        of = ops.jit(
            lambda variables, images: jax.nn.softmax(self.network.apply(variables, self.preprocess(images))[0])
        )
        found = [np.asarray(of(self.variables, batch.images)) for batch in batches(split, self.group)]
        return np.concatenate(found)[: len(split)]

    def answers(self, split: Split) -> Int32[np.ndarray, " images"]:
        """The class that the network finds most probable for each image."""
        logits = ops.jit(lambda variables, images: self.network.apply(variables, self.preprocess(images))[0])
        answers = [np.argmax(logits(self.variables, batch.images), axis=1) for batch in batches(split, self.group)]
        return np.concatenate(answers)[: len(split)].astype(np.int32)

    @property
    def group(self) -> int:
        """Images at a time, so that their feature maps fit."""
        return group_size(self.layers.values())

    @property
    def figures(self) -> Path:
        """Where the study's figures go."""
        return self.folder / "figures" / f"epoch-{self.epoch}" / self.place

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
    trained = on_all_devices(_open_run(options, progress))
    on = options.on if isinstance(options, PictureOptions) else None
    return trained if on is None else with_pictures(trained, [str(on)], "--on", progress)


def on_all_devices(trained: Trained) -> Trained:
    """The same, with whose `preprocess` the images of a program are divided among the devices of this process.

    They are where the devices divide their number; else each device does all of the work.
    """
    devices = jax.local_devices()
    if len(devices) == 1:
        return trained
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    by_image, preprocess = jax.NamedSharding(mesh, jax.P("data")), trained.preprocess

    def divided(images: Any) -> jax.Array:
        inputs = preprocess(images)
        return inputs if len(inputs) % len(devices) else jax.lax.with_sharding_constraint(inputs, by_image)

    variables = jax.device_put(trained.variables, jax.NamedSharding(mesh, jax.P()))
    return trained._replace(preprocess=divided, variables=variables)


def with_pictures(trained: Trained, given: Sequence[str], option: str, progress: Progress) -> Trained:
    """The same network, whose test images are these pictures; as their classes count the network's own answers.

    Args:
        given: files, folders or archives, as `experiments.pictures.find` takes them.
        option: that named them, for errors.
    """
    found = pictures.find(given, option)
    pixels = pictures.decoded(trained.config.data, trained.dataset.image_shape, found, option, progress)
    split = Split(pixels, np.zeros(len(pixels), np.int32))
    if trained.class_names == trained.dataset.class_names:
        split = Split(pixels, trained.answers(split))
    return trained._replace(
        dataset=dataclasses.replace(trained.dataset, test=split),
        pictures=tuple(printable(picture.name) for picture in found),
        place=place_of(given),
        order=None,
        trained_on=trained.trained_on or trained.dataset,
    )


def place_of(given: Sequence[str]) -> str:
    """The folder, in that of a run's figures, of what is drawn of pictures that a user has named."""
    stem = Path(given[0]).stem if len(given) == 1 else "pictures"
    return ON + re.sub(r"[^A-Za-z0-9_-]+", "-", stem)[:60]


def looked_at(trained: Trained, images: Sequence[int | str], progress: Progress) -> tuple[Trained, tuple[int, ...]]:
    """The network and the numbers of the test images that `--images` names: numbers, or files of pictures.

    Raises:
        InputError: a number that no test image has, both numbers and files, or a file that is no picture.
    """
    named = [image for image in images if isinstance(image, str)]
    if named and len(named) < len(images):
        raise InputError(
            f"--images must be numbers of test images or files, not both, got {' '.join(map(str, images))}"
        )
    if named:
        trained = with_pictures(trained, named, "--images", progress)
        return trained, tuple(range(len(trained.dataset.test)))
    numbers, last = tuple(image for image in images if isinstance(image, int)), len(trained.dataset.test) - 1
    for number in numbers:
        if not 0 <= number <= last:
            raise InputError(f"--images must be files, or numbers of test images from 0 to {last}, got {number}")
    return trained, numbers


MOST_EXAMPLES = 1000  # test images that examples are chosen from
SURE, BEYOND_DOUBT = 0.9, 0.999  # probabilities of an example's class; beyond doubt, covering a part changes nothing


def examples(trained: Trained, seed: int = 0) -> Int[np.ndarray, " images"]:
    """Test images in the order in which the figures take them, so that the same ones stand in all of them.

    First those that are rightly classified with confidence, but not so surely that nothing in them matters (a
    probability from SURE to BEYOND_DOUBT; of a class without such the half that is nearest), and are not blank; then
    the other right ones that are not blank, then the rest; in each of the three the classes take turns. The order of
    classes, and of images in a class, is a seeded choice.
    """
    if trained.order is not None and seed == 0:
        return trained.order
    test, random = trained.dataset.test, random_state(seed, 0)
    rows = of_all_classes(test.labels, MOST_EXAMPLES)
    images, labels = np.asarray(test.images[rows]), trained.targets(test)[rows]
    probabilities = trained.probabilities(Split(images, labels))
    confidence = probabilities[np.arange(len(rows)), labels]
    good = (np.argmax(probabilities, axis=1) == labels) & (
        images.mean(axis=-1, dtype=np.float32).std(axis=(1, 2)) >= LEAST_CONTRAST
    )
    place = np.empty(len(rows), np.int64)
    place[random.permutation(len(rows))] = np.arange(len(rows))
    level = np.where(good, 1, 2)
    for label in np.unique(labels[good]):
        of_class = np.flatnonzero(good & (labels == label))
        sure = confidence[of_class]
        away = np.maximum(SURE - sure, 0) + np.maximum(sure - BEYOND_DOUBT, 0)
        level[of_class[away <= (0 if (away == 0).any() else np.median(away))]] = 0
    class_order = random.permutation(len(trained.class_names))
    turn = np.empty(len(rows), np.int64)
    for one in {*zip(level.tolist(), labels.tolist(), strict=True)}:
        of_both = np.flatnonzero((level == one[0]) & (labels == one[1]))
        turn[of_both[np.argsort(place[of_both])]] = np.arange(len(of_both))
    return rows[np.lexsort((class_order[labels], turn, level))]


def example_images(trained: Trained, count: int, progress: Progress, seed: int = 0) -> tuple[int, ...]:
    """The first `count` of `examples`; it is said which."""
    chosen = tuple(examples(trained, seed)[:count].tolist())
    listed = ", ".join(trained.pictures[number] if trained.pictures else str(number) for number in chosen)
    progress.say(f"images {listed}: a seeded choice of different classes, of those that are rightly classified")
    return chosen


def _open_run(options: RunOptions, progress: Progress) -> Trained:
    if options.network is not None and not is_of_code(options.run):
        return open_own(options, progress)
    described = [f"--data.{name.replace('_', '-')}" for name in options.data.described()]
    for name, given in (("--weights", options.weights), ("--workdir", options.workdir)):
        described += [name] if given is not None else []
    if described:
        raise InputError(f"{described[0]} goes with --network, and a run knows it by itself")
    return open_network(options, options.data, "--data", progress)


def is_of_code(folder: Path) -> bool:
    """Whether a run of somebody's own network is there."""
    path = folder / "config.json"
    return path.exists() and foreign.is_code(run.read_config(path).model.name)


def allowed(config: Config, options: NetworkOptions) -> Config:
    """Runs the code of a run's network, if `--network` names the file that it was trained with."""
    name = config.model.name
    if options.network is None:
        raise InputError(f"--network must name the code that {options.run} was trained with to have it run ({name})")
    if options.weights is not None:
        raise InputError(f"--weights must not be given for a run, whose weights it has kept, got {options.weights}")
    _, _, within = options.network.rpartition(":")
    found = foreign.code_sha256(options.network) if foreign.is_code(options.network) else ""
    if found != config.model.code_sha256 or within != name.rpartition(":")[2]:
        raise InputError(f"--network must be {name} as it was when {options.run} was trained, got {options.network}")
    foreign.allow(options.network, name, "--network")
    return config


def open_own(options: RunOptions, progress: Progress) -> Trained:
    """Somebody's own network with the weights of a file, over the images that the options name; writes nothing."""
    check_matplotlib()
    if options.epoch is not None:
        raise InputError(f"--epoch goes with --run, got {options.epoch} with --network")
    network, code = foreign.from_file(options.network or "")
    file = None if options.weights is None else weight_files.read(options.weights, "--weights")
    data = dataclasses.replace(options.data.of(DataConfig()), **options.data.described())
    dataset = load(data, progress)
    with foreign.readable(network):
        variables = foreign.variables_from(network, file and file.arrays, dataset.image_shape)
        trained = of_network(network, variables, dataset, data=data, folder=options.workdir, code=code)
    if trained.class_names == dataset.class_names:
        progress.say(f"the outputs of {network.name} are taken for the classes of {dataset.name}, in order")
    return trained


def of_network(
    network: Any,
    variables: Any | None,
    images: np.ndarray | Dataset,
    *,
    data: DataConfig | None = None,
    folder: Path | None = None,
    code: str = "",
) -> Trained:
    """What every study takes, of a network that was trained elsewhere.

    Args:
        network: one with `apply(variables, images) -> (logits, feature_maps)`, or anything that
            `cnnjax.models.foreign.wrapped` takes.
        variables: its own; of a Linen module {"params": …, "batch_stats": …}; None: those that an NNX or Equinox module
            holds.
        images: uint8 [n, height, width, channels], or a data set.
        data: its `mean` and `deviation` in grey levels make of images what the network takes.
        folder: where figures go; none: runs/NAME.

    Raises:
        InputError: images or outputs that do not fit; a network whose answer depends on the images beside an image.
    """
    if not isinstance(network, foreign.Foreign | models.ConvNet | models.KnownNetwork):
        network = foreign.wrapped(network, getattr(network, "__name__", type(network).__name__).strip("<>"))
    name = network.name if isinstance(network, foreign.Foreign) else type(network).__name__
    if not isinstance(images, Dataset):
        split = (images, np.zeros(len(images), np.int32))
        images = checked_dataset("images", ("images", "others"), train=split, test=split)
    config = Config(data or DataConfig(), ModelConfig(name))
    variables = network.own(images.image_shape) if variables is None else variables
    assert variables is not None
    if isinstance(network, foreign.Foreign):
        foreign.check_large_enough(network, variables, images.image_shape)
    layers = {row.name: row for row in models.layers_of(network, variables, images.image_shape)}
    preprocess = make_preprocess(*scale_of(config.data, images))
    foreign.check_images_apart(network, variables, preprocess(images.train.images[:2]), name)
    folder = folder or Path("runs") / name.rpartition(":")[2]
    return Trained(config, images, network, variables, preprocess, layers, 0, folder, code, is_own=True)


def open_network(options: NetworkOptions, place: Place, option: str, progress: Progress) -> Trained:
    """As `open_run`, with the images at `place`, of which `option` tells."""
    check_matplotlib()
    config = run.read_config(options.run / "config.json")
    if foreign.is_code(config.model.name):
        config = allowed(config, options)
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


def at_epoch(trained: Trained, epoch: int) -> Trained:
    """The same run at another epoch that it has kept. Raises InputError where that cannot be read."""
    dataset = trained.trained_on or trained.dataset
    state = run.load_epoch(trained.folder, trained.config, run.build(trained.config, dataset), dataset, epoch)
    return trained._replace(variables={"params": state.params, "batch_stats": state.batch_stats}, epoch=epoch)


def opened(finished: run.Run, dataset: Dataset, folder: Path) -> Trained:
    """The last kept epoch of a run that is in memory."""
    epoch = max(finished.states)
    state, network = finished.states[epoch], run.build(finished.config, dataset)
    layers = {row.name: row for row in models.layers(network, dataset.image_shape)}
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return Trained(finished.config, dataset, network, variables, finished.preprocess, layers, epoch, folder)


def look_of(trained: Trained, layers: Sequence[str], count: int) -> Callable[..., dict[str, Strongest]]:
    """What looks for the strongest activations of every map of the layers, compiled once for all epochs."""
    return make_look(maps_of(trained, layers), trained.preprocess, count)


def strongest_of(
    trained: Trained, look: Callable[..., dict[str, Strongest]], split: Split, progress: Progress
) -> dict[str, Strongest]:
    """What `look` finds in all images of the split, in one pass."""
    groups = range(0, len(split), trained.group)
    told = (batch for batch, _ in zip(batches(split, trained.group), progress.over("looking", groups), strict=True))
    return strongest_activations(look, trained.variables, told, group=trained.group)


def projector_of(trained: Trained, layer: str, rule: Rule = "deconvnet") -> Projector:
    """What projects units of the layer, compiled once for all epochs."""
    return make_projector(maps_of(trained, (layer,)), layer, trained.preprocess, rule=rule)


def made_of(
    trained: Trained, layer: str, projector: Projector, seen: Activations, split: Split, rule: Rule, chosen: str
) -> Made:
    """How these projections were made, in words; how alike they are through other images is of the strongest ones."""
    strongest = seen.image[:, 0], seen.unit[:, 0], seen.maps
    alike = alike_through_others(projector, trained.variables, split.images, *strongest, group=trained.group)
    return Made.of(rule, alike, trained.layers[layer].fields, chosen)


def maps_of(trained: Trained, layers: Sequence[str]) -> FeatureMaps:
    """(variables, images) -> activations of these layers, before the bound of a ReLU that has one."""

    def feature_maps(variables, images):
        of_all = trained._replace(variables=variables).feature_maps(images)
        return {layer: of_all[layer] for layer in layers}

    return unbounded(feature_maps, trained.layers.values())


# Of a study's tiles: a number of a channel is a float of the projection and one of the patch, and drawn as two doubles.
MOST_TILE_BYTES, _BYTES = 2**30, 24


def require_tiles(option: str, maps: int, tiles: int, row: models.Layer, image_shape: tuple[int, ...]) -> None:
    """Raises InputError where the tiles of so many maps of a layer take more than MOST_TILE_BYTES, with the most maps.

    Args:
        tiles: of each map; each is as large as what a unit sees, the whole image at the most.
    """
    sides = [min(field.size, side) for field, side in zip(row.fields or (), image_shape, strict=False)]
    height, width = sides or image_shape[:2]
    most = MOST_TILE_BYTES // (_BYTES * height * width * 3 * tiles)
    if maps > most:
        each = f"{tiles:,} tiles of {height}×{width} px a map"
        raise InputError(f"{option} must be at most {most:,} maps of {row.name}, with {each}, got {maps:,}")


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
    if trained.is_own:
        trained.folder.mkdir(parents=True, exist_ok=True)
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
        "network": (trained.code, to_json(trained.config)["model"], *scale_of(trained.config.data, trained.dataset)),
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
        return [array.dtype.str, np.shape(value), hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()]
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
            if path.parent not in (package / "figures", package / "report"):
                digest.update(f"{path.relative_to(package)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()
