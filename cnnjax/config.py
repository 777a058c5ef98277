"""Everything that a run can be told, as frozen dataclasses that are checked when they are built.

`Hyperparams` holds the numbers that change no shape: the train step takes them as an argument, so one compilation
serves every value and `jax.vmap` can run over them. Everything else here is static.
"""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

import jax

from cnnjax.errors import InputError

PAPER_EPOCHS = (1, 2, 5, 10, 20, 30, 40, 64)  # the columns of Zeiler & Fergus 2014, figure 4
MOST_SEED = 2**31 - 1

Precision = Literal["float32", "bfloat16"]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    wrong = InputError(f"{path or 'config'} must be {_hint_text(hint)}, got {json.dumps(value)}")
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise wrong
        hints = typing.get_type_hints(hint)
        prefix = f"{path}." if path else ""
        for name in value:
            if name not in hints:
                shown = name if name.isprintable() else repr(name)
                raise InputError(f"{prefix}{shown} is not a field of the config; known here: {', '.join(hints)}")
        return hint(**{name: _from_json(hints[name], entry, prefix + name) for name, entry in value.items()})  # pyright: ignore[reportCallIssue]
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (rest,) = (argument for argument in arguments if argument is not type(None))
        return _from_json(rest, value, path)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise wrong
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise wrong
        return tuple(_from_json(arguments[0], entry, path) for entry in value)
    if hint is float and value in ("inf", "-inf", "nan"):
        return float(value)
    accepted = (int, float) if hint is float else hint
    if isinstance(value, bool) != (hint is bool) or not isinstance(value, accepted):
        raise wrong
    try:
        return float(value) if hint is float else value
    except OverflowError:
        raise wrong from None


def _hint_text(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(hint))
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _check_types(settings: Any, prefix: str) -> None:
    """Raises InputError naming the first field whose value is not of its declared type."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        if not dataclasses.is_dataclass(hints[field.name]):
            value = getattr(settings, field.name)
            try:
                _from_json(hints[field.name], _plain(value), f"{prefix}.{field.name}")
            except TypeError:
                raise InputError(
                    f"{prefix}.{field.name} must be {_hint_text(hints[field.name])}, got {value!r}"
                ) from None


def _require(rule: bool, name: str, text: str, value: Any) -> None:
    if not rule:
        raise InputError(f"{name} must be {text}, got {value!r}")


def check_seed(name: str, seed: int) -> None:
    """Raises InputError where two seeds would be one: the generator on the device takes those from 0 to 2^31 - 1."""
    _require(0 <= seed <= MOST_SEED, name, f"between 0 and {MOST_SEED}", seed)


def check_class_names(name: str, classes: tuple[str, ...] | None) -> None:
    """Raises InputError for fewer than two names, or one that could act on a terminal, a figure or a file name."""
    if classes is None:
        return
    _require(2 <= len(classes) <= 65536, name, "between 2 and 65536 names", len(classes))
    for label in classes:
        if not label.isprintable() or not 1 <= len(label) <= 255:
            raise InputError(f"{name} must be names of 1 to 255 printable characters, got {ascii(label)[:300]}")


@dataclasses.dataclass(frozen=True)
class PhotosConfig:
    """How the embedded photographs are cut into patches. Sizes in pixels."""

    patch_size: int = 32  # side of the square patches
    train_patches: int = 4000
    test_patches: int = 1000
    shorter_side: int = 400  # every photograph is scaled to this first
    tile: int = 96  # whole tiles go to the training or to the test split, so that no pixel is shared

    def __post_init__(self):
        _check_types(self, "data.photos")
        for name, most in (
            ("patch_size", 4096),
            ("train_patches", 10**6),
            ("test_patches", 10**6),
            ("shorter_side", 10**4),
            ("tile", 4096),
        ):
            value = getattr(self, name)
            _require(1 <= value <= most, f"data.photos.{name}", f"between 1 and {most}", value)
        _require(
            self.patch_size <= self.tile, "data.photos.patch_size", f"at most the tile ({self.tile})", self.patch_size
        )
        # 5 tiles are the least from which every fifth can be given to the test.
        _require(
            self.tile * 3 <= self.shorter_side,
            "data.photos.tile",
            f"at most a third of shorter_side ({self.shorter_side})",
            self.tile,
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and what is done to them before the network sees them."""

    name: str = "photos"  # objects, photos, digits or a set of TensorFlow Datasets; unused with folder, npz, packed
    folder: str | None = None  # class-per-folder images; train/ and test/ inside, or a seeded split
    npz: str | None = None  # a file with x_train, y_train, x_test, y_test
    packed: str | None = None  # a folder that experiments.pack has filled, of any size
    data_dir: str = "~/tensorflow_datasets"  # where prepared sets and decoded caches are kept
    manual_dir: str | None = None  # published files at hand: used instead of a download
    image_size: int | None = None  # side in pixels; images of mixed sizes need it: centre square cut and scaled
    shorter_side: int | None = None  # scaled to this first, then the centre of image_size is cut, as torchvision does
    interpolation: Literal["lanczos", "bilinear", "bicubic"] = "lanczos"  # of every scaling; torchvision: bilinear
    train_crop: Literal["centre", "random", "resized"] = "centre"  # of a training image; resized: Szegedy 2015
    channels: Literal[1, 3] | None = None  # grey or RGB; None: as the images are, mixed modes refused
    test_fraction: float = 0.2  # of each class, where a folder has no test/ of its own
    validation_fraction: float = 0.0  # of the training images, taken out for validation, each class in proportion
    split_seed: int = 0  # of a split that is made here, and of which images are for validation
    unit: float = 64.0  # grey levels that count as 1 at the network's input; the paper uses 1
    mean: tuple[float, ...] | None = None  # grey levels, one a channel, that are subtracted; None: the mean image
    deviation: tuple[float, ...] | None = None  # grey levels that count as 1, one a channel; None: unit
    photos: PhotosConfig = PhotosConfig()

    def __post_init__(self):
        _check_types(self, "data")
        for name in ("name", "folder", "npz", "packed", "data_dir", "manual_dir"):
            _require(getattr(self, name) != "", f"data.{name}", "a name that is not empty", "")
        given = {name: getattr(self, name) for name in ("folder", "npz", "packed") if getattr(self, name) is not None}
        if len(given) > 1:
            names, values = (
                " and ".join(texts) for texts in ((f"data.{name}" for name in given), map(repr, given.values()))
            )
            raise InputError(f"{names} exclude each other, got {values}")
        size = self.image_size
        _require(size is None or 1 <= size <= 4096, "data.image_size", "between 1 and 4096", size)
        shorter = self.shorter_side
        _require(shorter is None or 1 <= shorter <= 4096, "data.shorter_side", "between 1 and 4096", shorter)
        if shorter is not None and (size is None or size > shorter):
            rule = "must be given with data.image_size, and not be less"
            raise InputError(f"data.shorter_side {rule}, got {shorter} for {size}")
        if self.train_crop != "centre":
            rule = "centre with data.folder or data.npz"
            _require(self.folder is None and self.npz is None, "data.train_crop", rule, self.train_crop)
            _require(size is not None, "data.image_size", f"given for data.train_crop {self.train_crop}", size)
            _require(
                shorter is not None or self.train_crop != "random",
                "data.shorter_side",
                "given for data.train_crop random",
                shorter,
            )
        _require(0 < self.test_fraction < 1, "data.test_fraction", "between 0 and 1", self.test_fraction)
        fraction = self.validation_fraction
        _require(0 <= fraction < 1, "data.validation_fraction", "at least 0 and below 1", fraction)
        _require(self.unit > 0 and math.isfinite(self.unit), "data.unit", "a finite number > 0", self.unit)
        for name, least in (("mean", -math.inf), ("deviation", 0.0)):
            value = getattr(self, name)
            fits = value is None or (
                len(value) in (1, 3) and all(least < entry and math.isfinite(entry) for entry in value)
            )
            rule = "1 or 3 finite numbers" + (" > 0" if name == "deviation" else "")
            _require(fits, f"data.{name}", rule, value)
        check_seed("data.split_seed", self.split_seed)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which network. A field that is None takes the network's own value; a tuple has one entry a layer."""

    name: str = "zfnet_small"  # mlp, lenet, zfnet, zfnet_small, a known network, or FILE.py:NAME, your own
    code_sha256: str | None = None  # of that file; None: as it is found
    classes: tuple[str, ...] | None = None  # what the outputs are called; None: the classes of the data
    width: float | None = None  # of a known network: all its widths times this
    widths: tuple[int, ...] | None = None  # filters of each convolution
    filters: tuple[int, ...] | None = None  # side of the square filter of each convolution
    strides: tuple[int, ...] | None = None  # pixels that each filter moves by
    paddings: tuple[int, ...] | None = None  # zeros on each side
    pools: tuple[int, ...] | None = None  # stride of the max pool behind each convolution; 1: no pool
    dense: tuple[int, ...] | None = None  # units of each hidden dense layer
    norm: Literal["none", "lrn", "batch"] | None = None  # behind each convolution's pool; lrn: as Krizhevsky 2012
    rounding: Literal["exact", "floor", "ceil"] | None = None  # of (N - F + 2P)/S; exact: refused if fractional
    init: Literal["small_first", "he", "paper"] | None = None  # paper: N(0, 0.01^2); small_first: that, then He

    def __post_init__(self):
        _check_types(self, "model")
        _require(self.width is None or 0 < self.width <= 64, "model.width", "above 0 and at most 64", self.width)
        check_class_names("model.classes", self.classes)
        for name, least in (("widths", 1), ("filters", 1), ("strides", 1), ("paddings", 0), ("pools", 1), ("dense", 1)):
            value = getattr(self, name)
            _require(
                value is None or all(least <= entry <= 65536 for entry in value),
                f"model.{name}",
                f"numbers from {least} to 65536",
                value,
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The course of a training: what is not a number of the update itself."""

    epochs: int = 64  # times that every training image is seen; 0 with start: its weights as they are
    batch_size: int = 128  # images a step
    keep_epochs: tuple[int, ...] = PAPER_EPOCHS  # checkpoints kept for ever; the last epoch always is
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"  # squared_error: the lecture's total error
    optimizer: Literal["sgd", "adamw"] = "sgd"  # sgd: with momentum
    schedule: Literal["constant", "cosine", "steps"] = "cosine"  # steps: a tenth after 1/2 and after 3/4
    start: str | None = None  # a file of weights to begin with, .safetensors or .npz; None: random ones
    start_sha256: str | None = None  # of that file; None: as it is found
    freeze: tuple[str, ...] = ()  # layers that stay as they begin: their names, or what these begin with before a dot
    warmup_epochs: float = 0.0  # the rate rises linearly from 0
    precision: Precision = "float32"  # in which the network computes; bfloat16: faster on a GPU or TPU, half the memory
    accumulate: int = 1  # parts of a step's batch, one after another: less memory; each is normalized by itself
    rematerialize: int = 1  # segments of the network of which one at a time keeps its activations: less memory, slower
    save_every_seconds: float = 30.0  # the newest state, for resuming
    onednn: bool = False  # convolutions by oneDNN, on a CPU where XLA has it: faster steps, compiled at every start
    on_nan: Literal["stop", "skip", "rewind"] = "stop"  # a loss or gradient that is not finite; rewind: half the rate

    def __post_init__(self):
        _check_types(self, "train")
        least = 1 if self.start is None else 0
        _require(least <= self.epochs <= 10**5, "train.epochs", f"between {least} and 100000", self.epochs)
        _require(1 <= self.batch_size <= 65536, "train.batch_size", "between 1 and 65536", self.batch_size)
        parts = self.accumulate
        rule = f"a divisor of train.batch_size ({self.batch_size})"
        _require(parts >= 1 and self.batch_size % parts == 0, "train.accumulate", rule, parts)
        _require(1 <= self.rematerialize <= 1000, "train.rematerialize", "between 1 and 1000", self.rematerialize)
        _require(
            all(epoch >= 1 for epoch in self.keep_epochs), "train.keep_epochs", "epochs of at least 1", self.keep_epochs
        )
        _require(
            0 <= self.warmup_epochs <= self.epochs,
            "train.warmup_epochs",
            f"between 0 and train.epochs ({self.epochs})",
            self.warmup_epochs,
        )
        _require(self.start != "", "train.start", "a name that is not empty", self.start)
        digest = self.start_sha256
        fits = digest is None or (self.start is not None and re.fullmatch("[0-9a-f]{64}", digest) is not None)
        _require(fits, "train.start_sha256", "the 64 hexadecimal digits of the train.start that is given", digest)
        _require(all(self.freeze), "train.freeze", "names of layers", self.freeze)
        _require(self.save_every_seconds > 0, "train.save_every_seconds", "> 0", self.save_every_seconds)

    @property
    def kept_epochs(self) -> tuple[int, ...]:
        """The epochs whose checkpoints are kept: 0 (initial weights), those asked for that are reached, the last."""
        return tuple(sorted({0, self.epochs} | {epoch for epoch in self.keep_epochs if epoch <= self.epochs}))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyperparams:
    """The numbers of a training that change no shape: a pytree, traced by the train step.

    They are checked by `Config` and not here, because under `jax.vmap` a field holds a traced array.
    """

    learning_rate: float = 0.02  # at its highest, before the schedule lowers it
    momentum: float = 0.9  # of sgd; the first-moment decay of adamw
    weight_decay: float = 5e-4  # of kernels, not of biases
    dropout_rate: float = 0.5  # share of a hidden dense layer's units that is dropped
    label_smoothing: float = 0.0  # share of the target that is spread over all classes
    initial_scale: float = 1.0  # the initial weights are multiplied by this
    filter_rms: float = 0.1  # largest RMS of a convolution's filter (the paper's 10^-1); inf: no limit
    batch_norm_momentum: float = 0.9  # share of its running statistics that a step keeps; after 44 steps 99 % is new
    flip: float = 0.5  # probability of a left-right flip
    shift: float = 0.0  # largest shift, pixels in each direction; the border is repeated
    contrast: float = 0.0  # x * U(1 - contrast, 1 + contrast)
    saturation: float = 0.0  # distance of each channel from grey, times U(1 - saturation, 1 + saturation)
    brightness: float = 0.0  # one offset for all channels, U(-b, b), units of the network's input
    tint: float = 0.0  # one offset a channel, U(-t, t), units of the network's input
    seed: int = 0  # of initial weights, order, augmentation and dropout

    def check(self) -> None:
        """Raises InputError naming the first field that is not a number or out of range."""
        _check_types(self, "hyper")
        for field in dataclasses.fields(self):
            value, (low, high) = getattr(self, field.name), _RANGES[field.name]
            finite = math.isfinite(value) or (field.name == "filter_rms" and value == math.inf)
            _require(
                finite and low <= value <= high, f"hyper.{field.name}", f"between {low:.10g} and {high:.10g}", value
            )
        _require(self.filter_rms > 0, "hyper.filter_rms", "> 0", self.filter_rms)
        for name in ("dropout_rate", "batch_norm_momentum"):
            _require(getattr(self, name) < 1, f"hyper.{name}", "less than 1", getattr(self, name))


_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0, 1e3),
    "momentum": (0, 1),
    "weight_decay": (0, 1),
    "dropout_rate": (0, 1),
    "label_smoothing": (0, 1),
    "initial_scale": (0, 1e3),
    "filter_rms": (0, math.inf),
    "batch_norm_momentum": (0, 1),
    "flip": (0, 1),
    "shift": (0, 1e3),
    "contrast": (0, 1),
    "saturation": (0, 1),
    "brightness": (0, 1e3),
    "tint": (0, 1e3),
    "seed": (0, MOST_SEED),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    hyper: Hyperparams = Hyperparams()

    def __post_init__(self):
        self.hyper.check()
        if self.model.classes is not None and self.train.epochs > 0:
            rule = "must be None for a training, which takes the classes of its data"
            raise InputError(
                f"model.classes {rule}, got {len(self.model.classes)} with train.epochs {self.train.epochs}"
            )


def to_json(config: Config) -> dict[str, Any]:
    """The config as what JSON can hold: tuples become lists, an infinite number the text "inf"."""

    return _plain(config)


def from_json(tree: Any) -> Config:
    """The inverse of `to_json`; a missing field takes its default.

    Raises:
        InputError: for an unknown field or a value of another type, by its dotted name.
    """
    return _from_json(Config, tree, "")


# Settings that change where things are kept or how often, and no result. Which images a run is of, its record says by
# their SHA-256; which weights it begins with, train.start_sha256.
WITHOUT_EFFECT = (
    "data.folder", "data.npz", "data.packed", "data.data_dir", "data.manual_dir", "train.save_every_seconds",
    "train.start",
)  # fmt: skip


def differences(ours: Config, theirs: Config) -> list[str]:
    """One text a field that differs and matters: "train.epochs: 8 here, 64 there"; in the order of the fields."""
    return [f"{name}: {here} here, {there} there" for name, (here, there) in varying([ours, theirs]).items()]


def varying(configs: Sequence[Config]) -> dict[str, list[str]]:
    """The fields that differ between any of the configs and matter, by dotted name; the value of each as text."""
    every = [_flat(to_json(config)) for config in configs]
    return {
        name: [_brief(one[name]) for one in every]
        for name in every[0]
        if any(one[name] != every[0][name] for one in every) and name not in WITHOUT_EFFECT
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted name."""
    return {
        path: leaf
        for name, value in tree.items()
        for path, leaf in (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        ).items()
    }


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
