"""Does the network know that an eye is an eye? Figure 8 and table 1 of Zeiler & Fergus (2014).

The same part is covered in several images, and the signs of what changes in the features are compared between the
images: Delta is their Hamming distance, a share of the features, as a mean over pairs of images. For each part it is
set beside that of random boxes of the same size, and a permutation test says how often random boxes give one as small.

Parts are boxes in a CSV file, `--boxes FILE`, with the columns image,part,top,left,height,width: the image is an index
in the test split or an image file (its path from the CSV's folder), and pixels are those of the image as the network
takes it (a file is fitted as the data set's images are: scaled, and the centre square cut). A part called `object` is
not covered but says where that image's random boxes may lie. Without a file the same few places are covered in images
of the same class: that can be done for any run, but a place is a part only where the images are aligned.

Two things other than a part lower Delta: a place that is the same in every image (pairs of two classes, or an untrained
network, show how far), and boxes that change few features, unless `--zeros drop` leaves out what neither changes.
"""

import csv
import dataclasses
import io
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from cnnjax import cli, models
from cnnjax.atomic import write_text
from cnnjax.cli import Progress
from cnnjax.config import check_seed
from cnnjax.data.decoding import Encoded, decode_splits
from cnnjax.data.files import read_regular
from cnnjax.data.images import Fitting
from cnnjax.errors import InputError
from cnnjax.figures import correspondence as figure
from cnnjax.figures import files
from cnnjax.visualize.correspondence import Zeros, cover, delta, hamming, make_look, permutation_test, random_boxes
from experiments.invariance import fill
from experiments.looking import PictureOptions, Trained, examples, open_run, require_at_most, studying

COLUMNS = ("image", "part", "top", "left", "height", "width")
PLACES = {"centre": (1 / 2, 1 / 2), "top": (1 / 4, 1 / 2), "bottom": (3 / 4, 1 / 2)}
PLACES |= {"left": (1 / 2, 1 / 4), "right": (1 / 2, 3 / 4)}  # middles of the boxes, as shares of height and width
COMPARED = {
    "part": "Δ",
    "random": "random boxes",
    "part_between": "two classes: Δ",
    "random_between": "two classes: random boxes",
}
SHOWN_IMAGES, SHOWN_RANDOM = 5, 3
MOST_BOXES = 10_000  # of one part in all its images: each is compared with each, which takes 0.8 GB then


@dataclasses.dataclass(frozen=True)
class Options(PictureOptions):
    """Table 1; what the paper leaves open is named."""

    boxes: Path | None = None  # CSV with the columns image,part,top,left,height,width; none: fixed places
    images: int | None = None  # without boxes: test images of each class, a seeded choice; none: 5, or what all have
    classes: int = 10  # without boxes: how many classes (the first ones, of those with 2 test images and more)
    side: float = 0.25  # without boxes: side of a box, as a share of the image's
    layers: tuple[str, str] | None = None  # none: outputs of the last convolution and of the last dense layer
    random: int = 20  # random boxes for each part of each image
    zeros: Zeros = "symbol"  # unchanged features: a sign of their own, half, read as -1, or dropped where both are 0
    fill: Literal["mean", "grey", "zero"] = "mean"  # of a covered box: the mean image, level 128, or 0
    spread: Literal["pairs", "images"] = "pairs"  # ±: standard deviation over pairs, or over the images' means
    permutations: int = 9999  # of the test; all there are, where they are no more
    seed: int = 0  # of the random boxes and the permutations

    def __post_init__(self):
        least = {"images": 2, "classes": 1, "random": 1, "permutations": 1}
        for name, bound in least.items():
            if getattr(self, name) is not None and getattr(self, name) < bound:
                raise InputError(f"--{name} must be at least {bound}, got {getattr(self, name)}")
        require_at_most(self, permutations=10**6)
        check_seed("--seed", self.seed)
        if not 0 < self.side <= 0.5:  # the outer places reach to the border at 1/2
            raise InputError(f"--side must be above 0 and at most 0.5, got {self.side}")


class Regions(NamedTuple):
    """Images and where their parts are."""

    images: np.ndarray  # uint8 [images, height, width, channels]
    names: list[str]
    groups: np.ndarray  # pairs are formed within a group
    parts: dict[str, tuple[np.ndarray, np.ndarray]]  # for each part: which images have it, their boxes [n, 4]
    within: np.ndarray  # [images, 4]: where random boxes may lie
    note: str
    are_parts: bool = True  # no arbitrary places


def main(options: Options, progress: Progress, opened: Trained | None = None) -> list[Path]:
    """`opened` is the run at that epoch, where it is open already. Returns the pictures."""
    trained = opened or open_run(options, progress)
    layers = chosen_layers(trained, options)
    regions = boxes_of_file(trained, options.boxes) if options.boxes else boxes_of_places(trained, options)
    most = MOST_BOXES // max(len(which) for which, _ in regions.parts.values()) - 1
    if options.random > most:
        raise InputError(f"--random must be at most {most} for so many images of a part, got {options.random}")
    background = fill(trained, options.fill)
    assert background is not None  # only an edge has none

    def outputs(variables: Any, images: jax.Array):
        maps = trained._replace(variables=variables).feature_maps(trained.preprocess(images))
        return [maps[layer] for layer in layers]

    look = make_look(outputs, background, group=trained.group)
    elsewhere = dict.fromkeys(("run", "epoch", "data", "on", "boxes"))
    settings = dataclasses.asdict(options) | elsewhere | {"regions": _all_of(regions)}
    with studying(trained, "correspondence", settings, progress) as parts:
        found, drawn = {}, {}
        for number, (part, (which, boxes)) in progress.over("covering parts", list(enumerate(regions.parts.items()))):
            generator = np.random.default_rng((options.seed, number))
            random = random_boxes(generator, boxes, regions.within[which], options.random)
            every = np.concatenate([boxes[:, None], random], axis=1)
            drawn[part] = every

            def measured(which: np.ndarray = which, every: np.ndarray = every, generator: Any = generator):
                signs = [look(trained.variables, regions.images[i], of) for i, of in zip(which, every, strict=True)]
                of_layers = [np.stack(of_layer) for of_layer in zip(*signs, strict=True)]
                return measure(of_layers, regions.groups[which], options, generator)

            found[part] = parts.get(f"part-{number}", measured)
        table = {key: np.stack([found[part][key] for part in found]) for key in next(iter(found.values()))}
        shown, columns = pictures(regions, drawn, background)
        words = {"names": regions.names[: len(shown)], "columns": columns, "parts": list(found), "layers": layers}
        words |= {"note": regions.note, "are_parts": regions.are_parts}
        drawing = figure.draw(shown, table=table, **words)
        path = trained.figures / "correspondence.png"
        picture = files.save(path, drawing, shown=shown, **words, **table)
        lines, header = rows(table, list(found), layers, options.spread)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *lines])
        write_text(trained.figures / "correspondence.csv", text.getvalue())
        title = f"Δ ± standard deviation over {options.spread}; p: how often random boxes have as small a Δ"
        progress.say(cli.table(title, header, lines))
        progress.say(regions.note)
        progress.say(f"figures in {trained.figures}")
    return [picture]


def measure(
    signs: list[np.ndarray], groups: np.ndarray, options: Options, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Of one part at each layer Delta of the COMPARED, [layers, 3], p, and the test's band, low, middle and high.

    With `_between` over pairs of two groups; NaN where there is one.

    Args:
        signs: for each layer [images, boxes, features]; box 0 is the part, the others are random.
    """
    found: dict[str, list[Any]] = {name: [] for name in (*COMPARED, "p", "band", "p_between", "band_between")}
    several = len(np.unique(groups)) > 1
    for of_layer in signs:
        images, boxes, features = of_layer.shape
        distances = hamming(of_layer.reshape(-1, features), options.zeros).reshape(images, boxes, images, boxes)
        for ending, same in (("", True), ("_between", False)):
            by_box, tested = np.full((boxes, 3), np.nan), np.full(4, np.nan)
            if same or several:
                by_box[:] = [delta(distances[:, box, :, box], groups, same=same) for box in range(boxes)]
                tested = permutation_test(distances, groups, options.permutations, generator, same=same)
            found["part" + ending].append(by_box[0])
            found["random" + ending].append(by_box[1:].mean(axis=0))
            found["p" + ending].append(tested[0])
            found["band" + ending].append(tested[1:])
    return {name: np.array(of_layers) for name, of_layers in found.items()}


def rows(
    table: dict[str, np.ndarray], parts: list[str], layers: tuple[str, str], spread: str
) -> tuple[list[list[str]], list[str]]:
    """Table 1 as text, a row a layer and part and one for their mean; and its header."""
    compared = [name for name in COMPARED if np.isfinite(table[name]).any()]
    deviation = 1 if spread == "pairs" else 2
    lines = []
    for place, layer in enumerate(layers):
        for part, of_part in enumerate(parts):
            deltas = [table[name][part, place] for name in compared]
            texts = [f"{of[0]:.3f} ± {of[deviation]:.3f}" for of in deltas]
            lines.append([f"{layer}, {of_part}", *texts, f"{table['p'][part, place]:.4f}"])
        means = [f"{table[name][:, place, 0].mean():.3f}" for name in compared]
        lines.append([f"{layer}, mean", *means, ""])
    return lines, ["covered", *(COMPARED[name] for name in compared), "p"]


def pictures(regions: Regions, drawn: dict[str, np.ndarray], background: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The first images as they are, with each part covered, and with random boxes of the first part; NaN: no part."""
    count = int(np.sum(regions.groups == regions.groups[0]))
    images = regions.images[: min(count, SHOWN_IMAGES)].astype(np.float32)
    first = next(iter(drawn))
    random = range(1, 1 + min(SHOWN_RANDOM, drawn[first].shape[1] - 1))
    wanted = [(part, 0) for part in drawn] + [(first, number) for number in random]
    shown = np.full((len(images), 1 + len(wanted), *images.shape[1:]), np.nan, np.float32)
    shown[:, 0] = images
    for column, (part, number) in enumerate(wanted, 1):
        for row, which in enumerate(regions.parts[part][0]):
            if which < len(images):
                shown[which, column] = np.asarray(cover(images[which], drawn[part][row, number][None], background))[0]
    return shown, ["as it is", *drawn, *["random"] * len(random)]


def chosen_layers(trained: Trained, options: Options) -> tuple[str, str]:
    """By default the output of the last convolution (the paper's layer 5) and the last before the logits (its 7).

    Where these are one, because no dense layer is between, the first is the output of the stage before it.
    """
    if options.layers:
        first, second = (trained.layer(name, "--layers").name for name in options.layers)
        return first, second
    convolved = [row.name for row in trained.layers.values() if row.fields]
    if not convolved:
        raise InputError(
            f"--layers must be two of {', '.join(trained.layers)} for a network without convolutions, got none"
        )
    second = list(trained.layers)[-2]
    before = [row.name for row in models.stage_outputs(list(trained.layers.values())) if row.fields]
    return next((name for name in (convolved[-1], *reversed(before)) if name != second), second), second


def boxes_of_places(trained: Trained, options: Options) -> Regions:
    """The same places in test images of the first classes, in the order of `examples`."""
    split, names = trained.dataset.test, trained.dataset.class_names
    shape = split.images.shape[1:3]
    numbers = np.bincount(split.labels, minlength=len(names))
    classes = np.flatnonzero(numbers >= 2)[: options.classes]
    if not len(classes):
        raise InputError(f"--boxes must be given where no class has 2 test images, as in {trained.dataset.name}")
    images = min(5, int(numbers[classes].min())) if options.images is None else options.images
    for label in classes:
        if numbers[label] < images:
            raise InputError(
                f"--images must be at most {numbers[label]}, the test images of {names[label]!r}, got {images}"
            )
    order = examples(trained)
    order = np.concatenate([order, np.setdiff1d(np.arange(len(split)), order)])
    of_class = split.labels[order]
    chosen = np.concatenate([order[of_class == label][:images] for label in classes])
    sides = [max(1, round(options.side * length)) for length in shape]
    corners = {
        part: [round(middle * length - side / 2) for middle, length, side in zip(at, shape, sides, strict=True)]
        for part, at in PLACES.items()
    }
    boxes = {part: np.tile([*corner, *sides], (len(chosen), 1)) for part, corner in corners.items()}
    return Regions(
        split.images[chosen],
        [trained.called(index, int(split.labels[index])) for index in chosen],
        split.labels[chosen],
        {part: (np.arange(len(chosen)), of_part) for part, of_part in boxes.items()},
        np.tile([0, 0, *shape], (len(chosen), 1)),
        f"Boxes of {sides[0]}×{sides[1]} px at fixed places in {images} images of each of {len(classes)} "
        "classes. Nothing aligns these images, so a place need not be a part. In images of two classes a place has no "
        "part in common: where Δ is below that of random boxes there, it is the work of the place.",
        are_parts=False,
    )


def boxes_of_file(trained: Trained, path: Path) -> Regions:
    """The parts in a CSV file; all images are one group.

    Raises:
        InputError: naming the line that is wrong, or the part that fewer than two images have.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise InputError(f"--boxes must be a file, got {path}")
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())  # now: of an empty file they are looked for again
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--boxes must be a CSV file that can be read, got {path}: {error}") from None
    if set(COLUMNS) - set(columns):
        has = ",".join(columns) or "none"
        raise InputError(f"--boxes must have the columns {','.join(COLUMNS)}, and {path} has {has}")
    names = list(dict.fromkeys(line["image"] for line in lines))
    images = np.stack([_image(trained, path, name) for name in names]) if names else np.zeros((0, 1, 1, 1))
    within = np.tile([0, 0, *trained.dataset.image_shape[:2]], (len(names), 1))
    parts: dict[str, dict[int, np.ndarray]] = {}
    for number, line in enumerate(lines, 2):
        which, box = names.index(line["image"]), _box(line, trained.dataset.image_shape, f"{path} line {number}")
        if line["part"] == "object":
            within[which] = box
        elif which in parts.setdefault(line["part"], {}):
            raise InputError(f"--boxes must give each part of an image once, and {path} line {number} repeats one")
        else:
            parts[line["part"]][which] = box
    for part, of_part in parts.items():
        if len(of_part) < 2:
            raise InputError(f"--boxes must give each part in at least 2 images, and {path} gives {part!r} in 1")
        small = [names[which] for which, box in of_part.items() if (box[2:] > within[which, 2:]).any()]
        if small:
            raise InputError(f"--boxes must have no part larger than its object, and {part!r} of {small[0]} is")
    if not parts:
        raise InputError(f"--boxes must give a part in at least 2 images, and {path} gives none")
    arrays = {part: (np.array(list(of)), np.stack(list(of.values()))) for part, of in parts.items()}
    note = (
        f"Boxes of {path.name}: {len(names)} images, all pairs of those that have the part. Where a part stands at the "
        "same place in every image, the place alone lowers Δ: an untrained network, --epoch 0, says by how much."
    )
    return Regions(images, [Path(name).stem for name in names], np.zeros(len(names), int), arrays, within, note)


def _box(line: dict[str, str], shape: tuple[int, ...], where: str) -> np.ndarray:
    try:
        top, left, height, width = (int(line[name]) for name in COLUMNS[2:])
    except (TypeError, ValueError):
        raise InputError(f"--boxes must have whole numbers of pixels, and {where} has {list(line.values())}") from None
    inside = top >= 0 and left >= 0 and top + height <= shape[0] and left + width <= shape[1]
    if height < 1 or width < 1 or not inside:
        raise InputError(
            f"--boxes must lie inside the image of {shape[0]}×{shape[1]} px, and {where} has {list(line.values())}"
        )
    return np.array([top, left, height, width])


def _image(trained: Trained, path: Path, name: str) -> np.ndarray:
    """A test image by its index, or a file fitted as the data set's images are."""
    images = trained.dataset.test.images
    if name.isdecimal():
        if int(name) >= len(images):
            raise InputError(f"--boxes must name one of the {len(images)} test images, from 0, got {name}")
        return images[int(name)]
    height, width, channels = trained.dataset.image_shape
    data = trained.config.data
    whole = (height, data.shorter_side) if height == width else (None, None)
    fitting = Fitting(whole[0], channels, upright=True, shorter_side=whole[1], interpolation=data.interpolation)
    encoded = {"boxes": (1, [Encoded(name, partial(read_regular, path.parent / name))])}
    image = decode_splits(
        encoded, fitting, lambda _, shape: np.empty(shape, np.uint8), None, name=name, source="--boxes"
    )
    if image["boxes"].shape[1:] != images.shape[1:]:
        raise InputError(f"--boxes must name images of {height}×{width} px, got {name} of {image['boxes'].shape[1:3]}")
    return image["boxes"][0]


def _all_of(regions: Regions) -> list[Any]:
    """All that the results depend on, the order of the parts too."""
    return [regions.images, list(regions.parts.items()), regions.within, regions.groups]


if __name__ == "__main__":
    cli.run_options(main, Options())
