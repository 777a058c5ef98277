"""Learning curves of several runs, or members of sweeps, on one figure; and in which fields they differ.

    python -m experiments.compare runs/digits runs/digits-longer
    python -m experiments.compare runs/digits-sweep:0 runs/digits-sweep:3 runs/digits --to runs/compare

DIR is a run's folder, finished or not, DIR:N member N of a sweep, and a sweep's folder all its members. What cannot be
compared is left out, and it is said why.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from cnnjax import cli
from cnnjax.cli import Progress
from cnnjax.config import Config, varying
from cnnjax.errors import InputError
from cnnjax.figures import curves, files, settings
from cnnjax.paths import expanded
from cnnjax.sweep import tables, widening
from cnnjax.train import run

MOST = 24  # trainings that can be told apart on one figure


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared, and where the figure goes."""

    trainings: tyro.conf.Positional[tuple[str, ...]] = ()  # DIR of a run, DIR:N of a member, or DIR of a whole sweep
    to: Path = Path("runs/compare")  # the folder of compare.png and compare.npz: made, or one that has them


class Training(NamedTuple):
    """A run, or a member of a sweep."""

    name: str
    config: Config
    data: str  # SHA-256 of its images and labels
    lines: Sequence[Mapping[str, Any]]  # of its metrics


def main(options: Options, progress: Progress) -> list[Path]:
    """Returns the pictures."""
    settings.check()
    check_folder(options.to)
    trainings = opened(options.trainings)
    fields = varying([one.config for one in trainings])
    if len({one.data for one in trainings}) > 1:
        fields["data (SHA-256)"] = [one.data[:12] for one in trainings]
    progress.say(f"they differ in {len(fields)} fields" if len(fields) != 1 else "they differ in 1 field")
    for field, values in fields.items():
        progress.say(said(field, values, trainings))
    drawn = [curves.curves_of(label(number, one, fields), one.lines) for number, one in enumerate(trainings)]
    measures, notes = comparable(fields, curves.measures_of(drawn))
    if not measures:
        raise InputError(f"DIR must be trainings of which an error is known, got {', '.join(options.trainings)}")
    figure = curves.draw(drawn, measures, "Learning curves", notes)
    options.to.mkdir(parents=True, exist_ok=True)
    picture = files.save(options.to / "compare.png", figure, **curves.arrays(drawn))
    for note in notes:
        progress.say(note)
    progress.say(f"figure in {picture}")
    return [picture]


def opened(names: Sequence[str]) -> list[Training]:
    """The trainings of these names; nothing is written.

    Raises:
        InputError: a name is not that of a training with metrics, or is there twice, or they are too few or too many.
    """
    found = [training for name in names for training in opened_one(name)]
    if not 2 <= len(found) <= MOST:
        raise InputError(f"DIR must be from 2 to {MOST} runs or members (of a sweep: DIR:N), got {len(found)}")
    if twice := [one.name for number, one in enumerate(found) if one.name in {other.name for other in found[:number]}]:
        raise InputError(f"DIR must be given once, got {twice[0]} twice")
    return found


def opened_one(name: str) -> list[Training]:
    """A run; of a sweep one member, or all."""
    path, mark, number = name.rpartition(":")
    if not (mark and number.isdecimal()) or Path(name).is_dir():
        path, number = name, ""
    try:
        folder = expanded(path)
        if not folder.is_dir():
            raise InputError(f"DIR must be the folder of a run or of a sweep, got {path!r}, which is none")
        if not number and (folder / "config.json").exists():
            return [of_run(path.rstrip(os.sep), folder)]
        if number or (folder / "sweep.json").exists():
            members = of_sweep(path.rstrip(os.sep), folder)
        else:
            raise InputError(f"DIR must be the folder of a run or of a sweep, and {path!r} has no config.json")
    except OSError as error:
        raise InputError(f"DIR must be a folder that can be read, got {path!r}: {error}") from None
    if not number:
        return list(members.values())
    if int(number) not in members:
        raise InputError(f"DIR:N must be a member from 0 to {max(members)}, got {name!r}")
    return [members[int(number)]]


def of_run(name: str, folder: Path) -> Training:
    config = run.read_config(folder / "config.json")
    record = run.read_sealed(folder / "config.json")
    assert record is not None  # else it could not be read
    lines = run.read_metrics(folder)
    if not lines:
        raise InputError(f"DIR must be a run with metrics, and {name!r} has none yet")
    return Training(name, config, record["data"]["sha256"], lines)


def of_sweep(name: str, folder: Path) -> dict[int, Training]:
    """The members, by number."""
    members, data = widening.recorded(folder)
    if not (folder / "curves.csv").exists():
        raise InputError(f"DIR must be a finished sweep, and {name!r} has no curves.csv: the same command makes it")
    lines = tables.read_curves(folder / "curves.csv")
    return {
        member.number: Training(f"{name}:{member.number}", member.config, data, lines[member.number])
        for member in members
        if member.number in lines
    }


def said(field: str, values: Sequence[str], trainings: Sequence[Training]) -> str:
    """One line: each value of the field, and of which trainings it is."""
    names = {value: [one.name for one, own in zip(trainings, values, strict=True) if own == value] for value in values}
    return f"{field}: " + "; ".join(f"{value} in {', '.join(of_value)}" for value, of_value in names.items())


def label(number: int, training: Training, fields: Mapping[str, Sequence[str]]) -> str:
    """For the legend: its name, and its values where they are few."""
    own = {field.removeprefix("hyper."): values[number] for field, values in fields.items()}
    if not 0 < len(own) <= 3:
        return training.name
    return "\n".join([training.name, ", ".join(f"{field} {value}" for field, value in own.items())])


def comparable(fields: Mapping[str, Sequence[str]], measures: Sequence[str]) -> tuple[list[str], list[str]]:
    """The measures that mean one thing in all of the trainings, and what is to be said of the others."""
    found, notes = list(measures), []
    of_loss = [field for field in ("train.loss", "hyper.label_smoothing") if field in fields]
    if of_loss and "loss" in found:
        found.remove("loss")
        notes.append(f"the losses are left out: {' and '.join(of_loss)} differ, so they are not of one kind")
    if "data (SHA-256)" in fields:
        notes.append("the trainings are on different data: their errors may be of other images")
    return found, notes


def check_folder(folder: Path) -> None:
    """Raises InputError where the folder is that of something else, or none; writes nothing."""
    try:
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("compare."))
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"--to must be a folder that can be read and written, got {folder}: {error}") from None
    if others:
        raise InputError(f"--to must be new, empty or that of a comparison, and {folder} has {others[0]}")


if __name__ == "__main__":
    cli.run_options(main, Options())
