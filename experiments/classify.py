"""What a network says of images: the five most probable classes of each, top-1 and top-5 error, and its confusions.

Images are files or folders, `--images PATH …`, or else the run's own test split. A folder holds images, or a folder a
class. Files are decoded and fitted as the run's own images are. With `--views ten` the probabilities are averaged over
the four corners and the centre of the image and their mirror images (Krizhevsky et al. 2012); for these an image is
scaled to `data.shorter_side`, or 256/224 of the network's input where there is none. The test split is kept as large as
the network's input; for ten views its images are enlarged to that.

Errors are measured where the true classes are known: of the test split, of folders that are named as the network's
classes, or from `--labels FILE.csv` with the columns image,label. There an image is called as it is found: by its name,
in a folder a class by CLASS/NAME. Labels are names of classes, all of them, or else numbers from 0.

The errors and the confusions of the images last classified whose classes are known stay in the figures' folder, from
where `experiments.challenge` takes them.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cnnjax import cli, ops
from cnnjax.atomic import write_text
from cnnjax.cli import Progress
from cnnjax.data.dataset import ImagesByIndex, array_sha256
from cnnjax.data.files import printable, read_regular
from cnnjax.data.images import Fitting, fit_arrays
from cnnjax.data.splits import of_all_classes
from cnnjax.errors import InputError
from cnnjax.figures import classify as figure
from cnnjax.figures import confusion as confusion_figure
from cnnjax.figures import files
from cnnjax.figures.texts import shortened
from cnnjax.visualize import classification
from experiments import pictures
from experiments.challenge import ERRORS
from experiments.looking import PictureOptions, Trained, open_run, studying

CHALLENGE = 5  # classes that an image may be given in the challenge
MOST_PAIRS = 25  # confusions in the figure
MOST_AT_ONCE, MOST_PIXELS = 256, 2**22  # images, and their pixels times channels, in a forward pass
MOST_BYTES = 2**26  # of the views of a part


@dataclasses.dataclass(frozen=True)
class Options(PictureOptions):
    """Which images, and how."""

    images: tuple[str, ...] = ()  # image files, or folders of them or of a folder a class; none: the test split
    views: Literal["centre", "ten"] = "centre"  # ten: corners and centre with their mirror images, averaged
    labels: Path | None = None  # CSV with the columns image,label
    top: int = 5  # so many of the most probable classes are listed
    shown: int = 12  # images in the figure, of as many classes as there can be; all are in the .csv

    def __post_init__(self):
        for name, most in (("top", 20), ("shown", 60)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"--{name} must be from 1 to {most}, got {getattr(self, name)}")
        if self.images and self.on is not None:
            raise InputError(f"--on must not be given with --images, got {self.on}")
        if self.labels is not None and not self.images:
            raise InputError(f"--labels must be of --images; those of the test split are known, got {self.labels}")


class Images(NamedTuple):
    """What is classified."""

    pixels: np.ndarray | ImagesByIndex  # uint8 [images, height, width, channels]
    side: int | None  # to which each is to be scaled first; none: it is
    names: list[str]
    labels: np.ndarray | None  # none: they are not known
    of: str


def main(options: Options, progress: Progress, opened: Trained | None = None) -> list[Path]:
    """`opened` is the run at that epoch, where it is open already. Returns the pictures."""
    trained = opened or open_run(options, progress)
    side = scaled_side(trained, options.views)
    images = given(trained, options, side, progress) if options.images else of_test_split(trained, side)
    names = trained.class_names
    sha256 = array_sha256(images.pixels)
    settings = {"images": sha256, "side": images.side, "labels": images.labels, "views": options.views}
    with studying(trained, "classify", settings | {"top": options.top}, progress) as parts:
        size = part_size(trained, options.views)
        say = make_say(trained, options, images)
        found = [
            parts.get(f"images-{start}-{start + size}", partial(say, slice(start, start + size)))
            for start in progress.over("classifying", range(0, len(images.names), size))
        ]
        table = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
        path = trained.figures / "classify.png"
        classes = np.arange(len(images.names)) if images.labels is None else images.labels
        rows = of_all_classes(classes, options.shown)
        shown = [answer(images, names, table, row) for row in rows]
        said = note(images, options, trained)
        labels = -1 if images.labels is None else images.labels
        arrays = {"image": images.names, "label": np.broadcast_to(labels, len(images.names)), "class_names": names}
        drawn = figure.draw(shown, said)
        arrays |= {"rows": rows, "note": said}
        pictures = [files.save(path, drawn, shown=np.stack([one.image for one in shown]), **arrays, **table)]
        write_text(path.with_suffix(".csv"), csv_text(images, names, table))
        progress.say(
            cli.table(said, ("image", "true", *map(str, range(1, 1 + len(shown[0].classes)))), map(cells, shown))
        )
        if len(shown) < len(images.names):
            progress.say(f"and {len(images.names) - len(shown):,} more in {path.with_suffix('.csv')}")
        if images.labels is not None:
            picture, found = save_errors(trained, options, images, table, sha256, said)
            pictures.append(picture)
            progress.say(found)
    progress.say(f"figures in {trained.figures}")
    return pictures


def scaled_side(trained: Trained, views: str) -> int | None:
    """Side to which an image is scaled before the ten views are cut; None for the network's own input.

    Raises:
        InputError: ten views of images that are no squares.
    """
    if views == "centre":
        return None
    height, width, _ = trained.dataset.image_shape
    if height != width:
        raise InputError(f"--views must be centre for images of {height}×{width} px, which are no squares, got {views}")
    own = trained.config.data.shorter_side
    return own if own and own > height else round(classification.ENLARGED * height)


def of_test_split(trained: Trained, side: int | None) -> Images:
    split = trained.dataset.test
    if trained.pictures:
        return Images(split.images, side, list(trained.pictures), None, f"the pictures of {trained.place}")
    names = [str(number) for number in range(len(split))]
    labels = split.labels if trained.class_names == trained.dataset.class_names else None
    return Images(split.images, side, names, labels, f"the test images of {trained.dataset.name}")


def given(trained: Trained, options: Options, side: int | None, progress: Progress) -> Images:
    """The images of `--images`, decoded, with their labels. Raises InputError naming what is wrong."""
    found = pictures.find(options.images, "--images")
    names = trained.class_names
    labels = labels_of_file(options.labels, found, names) if options.labels else labels_of_folders(found, names)
    if labels is None and any(one.folder for one in found):
        progress.say("no folder has the name of a class of the network: errors are not measured")
    pixels = pictures.decoded(trained.config.data, trained.dataset.image_shape, found, "--images", progress, side=side)
    of = shortened(", ".join(map(printable, options.images)), 80)
    return Images(pixels, None, [printable(one.name) for one in found], labels, of)


def labels_of_folders(found: Sequence[pictures.Picture], names: Sequence[str]) -> np.ndarray | None:
    """The class of each image by the folder that it is in; None if no folder is called as a class.

    Raises:
        InputError: only some are.
    """
    known = [one for one in found if one.folder in names]
    if not known:
        return None
    for one in found:
        if one.folder not in names:
            where = f"in the folder {one.folder}" if one.folder else "in no folder a class"
            raise InputError(
                f"--images must be in folders named as classes of the network, all or none, and {one.name} is {where}"
            )
    return np.array([_index(str(one.folder), names, f"the folder of {one.name}") for one in found], np.int32)


def labels_of_file(path: Path, found: Sequence[pictures.Picture], names: Sequence[str]) -> np.ndarray:
    """The class of each image by the CSV file.

    Raises:
        InputError: it cannot be read, a line names no image or no class, an image is there twice or not at all.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        columns = list(reader.fieldnames or ())
        lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--labels must be a CSV file that can be read, got {path}: {error}") from None
    if {"image", "label"} - set(columns):
        raise InputError(f"--labels must have the columns image,label, and {path} has {','.join(columns) or 'none'}")
    places = {one.name: place for place, one in enumerate(found)}
    if len(places) < len(found):
        twice = next(one.name for place, one in enumerate(found) if places[one.name] != place)
        raise InputError(f"--labels must tell the images apart, and --images has two that are called {twice}")
    by_name = all(line["label"] in names for line in lines)
    labels = np.full(len(found), -1, np.int32)
    for number, line in enumerate(lines, 2):
        where, image, label = f"{path} line {number}", line["image"] or "", line["label"] or ""
        if image not in places:
            raise InputError(f"--labels must name images of --images, as {found[0].name}, and {where} has {image!r}")
        if labels[places[image]] >= 0:
            raise InputError(f"--labels must give each image once, and {where} repeats {image}")
        if by_name:
            labels[places[image]] = _index(label, names, where)
        elif label.isascii() and label.isdecimal() and len(label) < 10 and int(label) < len(names):
            labels[places[image]] = int(label)
        else:
            rule = f"be names of classes, all of them, or numbers from 0 to {len(names) - 1}"
            raise InputError(f"--labels must {rule}, and {where} has {label!r}")
    for one, label in zip(found, labels, strict=True):
        if label < 0:
            raise InputError(f"--labels must give every image, and {path} lacks {one.name}")
    return labels


def _index(name: str, names: Sequence[str], where: str) -> int:
    if list(names).count(name) > 1:
        raise InputError(f"labels must be numbers for a name that several classes have, and {where} has {name!r}")
    return list(names).index(name)


def part_size(trained: Trained, views: str) -> int:
    """Images in a part of the work, so that their views stay within MOST_BYTES."""
    return max(1, min(1024, MOST_BYTES // (math.prod(trained.dataset.image_shape) * (10 if views == "ten" else 1))))


def make_say(trained: Trained, options: Options, images: Images) -> Any:
    """Returns the function from a slice of the images to what the network says of them."""
    shape = trained.dataset.image_shape
    many = options.views == "ten"
    at_once = max(1, min(MOST_AT_ONCE, MOST_PIXELS // math.prod(shape), len(images.names) * (10 if many else 1)))

    def outputs(variables: Any, pixels: Any) -> Any:
        maps = trained._replace(variables=variables).feature_maps(trained.preprocess(pixels))
        return list(maps.values())[-1]

    compiled = ops.jit(outputs)

    def say(rows: slice) -> dict[str, np.ndarray]:
        pixels = np.asarray(images.pixels[rows])
        if images.side is not None:
            pixels = fit_arrays(pixels, Fitting(images.side, interpolation=trained.config.data.interpolation))
        views = classification.ten_views(pixels, shape[0]) if many else pixels[:, None]
        probabilities = classification.mean_probabilities(partial(compiled, trained.variables), views, at_once)
        broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
        if broken.size:
            name = images.names[rows][broken[0]]
            raise InputError(f"--run must be a network whose outputs are numbers, and for image {name} they are not")
        classes = classification.most_probable(probabilities, options.top)
        found = {"classes": classes, "probabilities": np.take_along_axis(probabilities, classes, axis=1)}
        if images.labels is not None:
            labels = images.labels[rows]
            found["place"] = 1 + classification.ranks(probabilities, labels)
            found["answer"] = classification.answers(probabilities, labels)
        return found

    return say


def answer(images: Images, names: Sequence[str], table: dict[str, np.ndarray], row: int) -> figure.Answer:
    pixels = np.asarray(images.pixels[row])
    said = [names[int(label)] for label in table["classes"][row]]
    true = None if images.labels is None else names[int(images.labels[row])]
    place = None if images.labels is None else int(table["place"][row])
    return figure.Answer(pixels, images.names[row], said, table["probabilities"][row], true, place)


def cells(shown: figure.Answer) -> list[str]:
    """A row of the table on the terminal."""
    listed = zip(shown.classes, shown.probabilities, strict=True)
    said = [f"{shortened(name, 14)} {probability:.2f}" for name, probability in listed]
    return [shortened(shown.name, 20), shortened(shown.true or "", 14), *said]


def csv_text(images: Images, names: Sequence[str], table: dict[str, np.ndarray]) -> str:
    """A line an image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    count = table["classes"].shape[1]
    known = images.labels is not None
    ranked = [f"{what}_{number}" for number in range(1, 1 + count) for what in ("class", "probability")]
    writer.writerow(["image", *(["label", "place_of_label"] if known else []), *ranked])
    for row, name in enumerate(images.names):
        listed = zip(table["classes"][row], table["probabilities"][row], strict=True)
        said = [cell for label, probability in listed for cell in (names[label], f"{probability:.6g}")]
        true = [names[images.labels[row]], table["place"][row]] if images.labels is not None else []
        writer.writerow([name, *true, *said])
    return text.getvalue()


def note(images: Images, options: Options, trained: Trained) -> str:
    views = "ten views" if options.views == "ten" else "one view"
    return (
        f"{trained.config.model.name}, epoch {trained.epoch}: {images.of}, {len(images.names):,} in all, {views} each"
    )


def save_errors(
    trained: Trained, options: Options, images: Images, table: dict[str, np.ndarray], sha256: str, said: str
) -> tuple[Path, str]:
    """Writes the errors and the confusions; returns the picture of these, and the errors in words."""
    assert images.labels is not None
    names, ranks = trained.class_names, table["place"] - 1
    few = len(names) <= CHALLENGE
    errors = {
        "top1": classification.top_error(ranks, 1),
        "top5": None if few else classification.top_error(ranks, CHALLENGE),
        "classes": len(names),
        "images": len(ranks),
        "views": options.views,
        "epoch": trained.epoch,
        "of": images.of,
        "sha256": {"images": sha256, "labels": array_sha256(images.labels)},
    }
    write_text(trained.figures / ERRORS, json.dumps(errors, indent=1) + "\n")
    counts = classification.confusion(images.labels, table["answer"], len(names))
    pairs = list(zip(*(of.tolist() for of in classification.most_confused(counts, MOST_PAIRS)), strict=True))
    drawn = confusion_figure.draw(counts, names, pairs, said)
    picture = files.save(
        trained.figures / "confusion.png", drawn, counts=counts, class_names=names, pairs=pairs, note=said
    )
    top5 = (
        f"no top-5 error: there are only {len(names)} classes" if few else f"top-5 error {100 * errors['top5']:.2f} %"
    )
    return picture, f"top-1 error {100 * errors['top1']:.2f} %, {top5}, over {len(ranks):,} images"


if __name__ == "__main__":
    cli.run_options(main, Options())
