"""The ImageNet challenge by year: the top-5 error of its winners, of a person, and of your own networks beside them.

An image counts as wrong if its class is not among the five most probable ones. Own points are numbers that you give,
`--points NAME=PERCENT …`, or what `experiments.classify` has measured and kept for a run, `--runs DIR …`. They can be
compared with the challenge's where they were measured on ImageNet's 1000 classes; of fewer classes, five are a larger
share, and the note below each point says of how many.

Where the percentages come from stands beside each in the .npz and in docs/challenge.md.
"""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from cnnjax import cli
from cnnjax.atomic import read_text
from cnnjax.cli import Progress
from cnnjax.data.files import printable
from cnnjax.errors import InputError
from cnnjax.figures import challenge as figure
from cnnjax.figures import files, settings
from cnnjax.figures.challenge import Entry, Point
from cnnjax.figures.texts import shortened
from cnnjax.paths import expanded
from cnnjax.train.lock import locked

MOST_POINTS, LONGEST = 24, 60  # that a figure has room for: points, and characters of a name
ERRORS = "errors.json"  # what `experiments.classify` keeps


class Fact(NamedTuple):
    """An entry and where its percentage comes from."""

    entry: Entry
    source: str


_UNSEEN = "to be checked with the organizers' page image-net.org/challenges/LSVRC/{}/results"
_TABLE = "Zeiler & Fergus 2014, table 2"
FACTS = (
    Fact(Entry(2010, "NEC-UIUC", 28.2, "winner"), _UNSEEN.format(2010)),
    Fact(Entry(2011, "XRCE", 25.8, "winner"), _UNSEEN.format(2011)),
    Fact(Entry(2012, "SuperVision (AlexNet)", 16.4, "winner"), f"{_TABLE}: 5 networks of Krizhevsky et al. 2012"),
    Fact(Entry(2012, "SuperVision", 15.3, "extra"), f"Krizhevsky et al. 2012, abstract; {_TABLE}: 7 networks"),
    Fact(Entry(2012, "ISI", 26.2, "second"), f"Krizhevsky et al. 2012, abstract; {_TABLE}: Gunji et al. 2012"),
    Fact(Entry(2013, "Clarifai", 11.7, "winner"), _UNSEEN.format(2013)),
    Fact(Entry(2013, "Clarifai", 11.2, "extra"), _UNSEEN.format(2013)),
    Fact(Entry(2013, "ZF, entry", 13.5, "paper"), _UNSEEN.format(2013)),
    Fact(Entry(2013, "ZF, paper, images of 2012", 14.8, "paper"), f"{_TABLE}: 6 networks, test images of 2012"),
    Fact(Entry(2014, "GoogLeNet", 6.67, "winner"), "Szegedy et al. 2015: 7 networks; to be checked with that paper"),
    Fact(Entry(2014, "VGG", 7.3, "second"), "Simonyan & Zisserman 2015; to be checked with that paper"),
    Fact(Entry(2015, "MSRA (ResNet)", 3.57, "winner"), "He et al. 2016: 6 networks; to be checked with that paper"),
    Fact(Entry(2016, "Trimps-Soushen", 2.99, "winner"), _UNSEEN.format(2016)),
    Fact(Entry(2017, "WMW (SENet)", 2.25, "winner"), "Hu et al. 2018; to be checked with that paper"),
)
HUMAN = 5.1
HUMAN_SOURCE = (
    "Russakovsky et al. 2015: one annotator after 500 images for practice, on 1,500 test images; another one, after "
    "100, was wrong on 12.0 %; to be checked with that paper"
)
NOTE = (
    "Most winners are several networks together. That ZFNet won in 2013 with 11.2 %, as many pages have it, is wrong: "
    "that is Clarifai, Zeiler's company, with more training images; the paper's own best is 14.8 %."
)
FEWER = "Five guesses among fewer classes than the challenge's 1000 are an easier task."


@dataclasses.dataclass(frozen=True)
class Options:
    """Which points of your own."""

    points: tuple[str, ...] = ()  # NAME=PERCENT, a top-5 error that was measured elsewhere
    runs: tuple[str, ...] = ()  # folders of runs whose errors `experiments.classify` has measured
    out: Path = Path("runs/challenge")  # where the figure goes


def main(options: Options, progress: Progress) -> None:
    settings.check()
    points = [*map(point_of_text, options.points), *map(point_of_run, options.runs)]
    for place, point in enumerate(points):
        if point.name in [other.name for other in points[:place]]:
            raise InputError(f"--points and --runs must have different names, got {point.name!r} twice")
    if len(points) > MOST_POINTS:
        raise InputError(f"--points and --runs must be at most {MOST_POINTS} together, got {len(points)}")
    options.out.mkdir(parents=True, exist_ok=True)
    with locked(options.out):
        save(options.out / "challenge.png", points)
    rows = [(f"{entry.year} {entry.team}", f"{entry.percent:g}") for entry, _ in FACTS]
    rows += [("a person", f"about {HUMAN:g}"), *((of.name, f"{of.percent:.3g}") for of in points)]
    progress.say(cli.table("ImageNet challenge", ("", "top-5 error, %"), rows))
    progress.say(f"figure in {options.out / 'challenge.png'}")


def save(path: Path, points: list[Point]) -> None:
    """The chart with its numbers and their sources, into a folder that is there."""
    entries, sources = zip(*FACTS, strict=True)
    columns = {name: [getattr(entry, name) for entry in entries] for name in Entry._fields}
    own = {f"point_{name}": [getattr(point, name) for point in points] for name in Point._fields if points}
    drawn = figure.draw(entries, HUMAN, points, " ".join([NOTE, FEWER] if points else [NOTE]))
    files.save(path, drawn, **columns, source=sources, human=HUMAN, human_source=HUMAN_SOURCE, **own)


def point_of_text(text: str) -> Point:
    """NAME=PERCENT; the name may have an = itself."""
    name, sign, number = text.rpartition("=")
    try:
        percent = float(number)
    except ValueError:
        percent = math.nan
    if not sign or not 0 <= percent <= 100 or not re.fullmatch(r"[\d.eE+-]+", number.strip()):
        raise InputError(f"--points must be NAME=PERCENT with a number from 0 to 100, got {text!r}")
    name = name.strip()
    if not 1 <= len(name) <= LONGEST or not name.isprintable():
        raise InputError(f"--points must have names of 1 to {LONGEST} printable characters, got {name!r}")
    return Point(name, percent)


def point_of_run(folder: str) -> Point:
    """What `experiments.classify` measured, of the last epoch that it did.

    Raises:
        InputError: there is no such run, nothing was measured, or what was has no top-5 error.
    """
    path = expanded(folder)
    if not (path / "config.json").is_file():
        raise InputError(f"--runs must be folders of runs, and {folder} has no config.json")
    kept = {
        int(place.parent.name.removeprefix("epoch-")): place
        for place in path.glob(f"figures/epoch-*/{ERRORS}")
        if place.parent.name.removeprefix("epoch-").isdecimal()
    }
    if not kept:
        raise InputError(
            f"--runs must be runs whose errors are measured, and {folder} has none: "
            f"python -m experiments.classify --run {folder} measures them"
        )
    found = _read(kept[max(kept)])
    if found["top5"] is None:
        raise InputError(
            f"--runs must have a top-5 error, and the network of {folder} has only {found['classes']} classes"
        )
    note = f"{found['classes']:,} classes, {found['images']:,} images, {found['views']} views"
    name = shortened(printable(folder), LONGEST)  # as it was given: two runs may be called alike
    return Point(name, 100 * found["top5"], note.replace("centre views", "one view"))


def _read(path: Path) -> dict[str, Any]:
    rules = {"top5": (float, type(None)), "classes": (int,), "images": (int,), "views": (str,)}
    try:
        found = json.loads(read_text(path))
        sound = all(type(found[name]) in kinds for name, kinds in rules.items()) and found["views"] in ("centre", "ten")
        sound = sound and (found["top5"] is None or 0 <= found["top5"] <= 1) and found["classes"] > 0 < found["images"]
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise InputError(f"{path} must be as experiments.classify writes it, and is not; measure anew")
    return found


if __name__ == "__main__":
    cli.run_options(main, Options())
