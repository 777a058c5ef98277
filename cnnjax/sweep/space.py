"""The members of a sweep: a grid of axes, random draws, or a file with one line a member."""

import csv
import dataclasses
import itertools
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjax.config import Config, Hyperparams, ModelConfig, TrainConfig, from_json, to_json
from cnnjax.errors import InputError

MOST_WITHOUT_CONSENT = 10**5
# What a sweep may vary besides the numbers in `Hyperparams`: each value is a program of its own.
_STATIC = {"model": ModelConfig, "train": TrainConfig}
_NOT_AXES = ("train.epochs", "train.keep_epochs", "train.save_every_seconds", "train.on_nan", "train.onednn")


class Member(NamedTuple):
    """One training of a sweep."""

    number: int
    values: dict[str, Any]  # by axis
    config: Config


def axes() -> dict[str, Any]:
    """What can be an axis, with the type of its values: hyperparameters by their name, other fields with their part."""
    numbers = {name: hint for name, hint in typing.get_type_hints(Hyperparams).items()}
    static = {
        f"{part}.{name}": hint
        for part, kind in _STATIC.items()
        for name, hint in typing.get_type_hints(kind).items()
        if f"{part}.{name}" not in _NOT_AXES
    }
    return numbers | static


def check_axis(name: str, option: str) -> None:
    """Raises InputError with the axes that there are."""
    if name not in axes():
        raise InputError(f"{option} must be one of {', '.join(axes())}, got {name!r}")


class Draw(NamedTuple):
    """An axis whose values are drawn at random, one a sample."""

    low: float
    high: float
    logarithmic: bool


def parse_axis(name: str, text: str) -> list[Any] | Draw:
    """The values of one axis.

    "1e-3,1e-2" is a list; "0:4" the whole numbers 0 to 3; "uniform:0:0.5" and "log:1e-4:1e-1" are drawn. A value of a
    tuple has its entries joined by "x": "8x16,16x32"; "none" is the network's own.

    Raises:
        InputError: no such axis, or a text that is none of these.
    """
    check_axis(name, "--sweep")
    hint = axes()[name]
    drawn = re.fullmatch(r"(uniform|log):([^:]+):([^:]+)", text)
    if drawn:
        low, high = (_value(name, float, part) for part in drawn.groups()[1:])
        if hint is not float or not -math.inf < low < high < math.inf or (drawn[1] == "log" and low <= 0):
            raise InputError(f"--sweep.{name} must be {drawn[1]}:LOW:HIGH of numbers LOW < HIGH, got {text!r}")
        return Draw(low, high, drawn[1] == "log")
    ranged = re.fullmatch(r"(-?\d+):(-?\d+)", text)
    if ranged:
        start, stop = (_value(name, int, part) for part in ranged.groups())
        if hint is not int or not 0 < stop - start <= 10**7:
            raise InputError(f"--sweep.{name} must be a rising range of whole numbers START:STOP, got {text!r}")
        return list(range(start, stop))
    return [_value(name, hint, part) for part in text.split(",")]


def _value(name: str, hint: Any, text: str) -> Any:
    text = text.strip()
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    try:
        if origin in (typing.Union, types.UnionType):
            inner = next(a for a in arguments if a is not type(None))
            if text.lower() == "none" and "none" not in typing.get_args(inner):  # no norm is "none" itself
                return None
            return _value(name, inner, text)
        if origin is typing.Literal:
            if text not in arguments:
                raise ValueError
            return text
        if origin is tuple:
            return tuple(arguments[0](part) for part in text.split("x"))
        return hint(text)
    except ValueError:
        wanted = " or ".join(map(str, arguments)) if origin is typing.Literal else getattr(hint, "__name__", str(hint))
        raise InputError(f"--sweep.{name} must be values of type {wanted}, got {text!r}") from None


def grid_and_draws(
    base: Config, axis_values: Mapping[str, list[Any] | Draw], samples: int, seed: int, consent: bool = False
) -> list[Member]:
    """Every combination of the listed values, `samples` times with the drawn axes drawn anew for each.

    Args:
        samples: how many draws, where there is a drawn axis.
        seed: of the draws.
        consent: to more than 100,000 members.
    """
    listed = {name: values for name, values in axis_values.items() if not isinstance(values, Draw)}
    drawn = {name: draw for name, draw in axis_values.items() if isinstance(draw, Draw)}
    if not axis_values:
        raise InputError(f"--sweep must be given an axis, one of {', '.join(axes())}, got none")
    if samples < 1:
        raise InputError(f"--samples must be at least 1, got {samples}")
    count = math.prod(len(values) for values in listed.values()) * (samples if drawn else 1)
    _check_count(count, consent)
    generator = np.random.default_rng(seed)
    draws = [
        {name: _draw(draw, generator.random()) for name, draw in drawn.items()} for _ in range(samples if drawn else 1)
    ]
    combinations = (dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values()))
    rows = [combination | draw for combination in combinations for draw in draws]
    return [member(number, {name: row[name] for name in axis_values}, base) for number, row in enumerate(rows)]


def _check_count(count: int, consent: bool) -> None:
    if count > MOST_WITHOUT_CONSENT and not consent:
        raise InputError(f"--yes must be given for more than {MOST_WITHOUT_CONSENT:,} members, got {count:,}")


def _draw(draw: Draw, share: float) -> float:
    if draw.logarithmic:
        return float(math.exp(math.log(draw.low) + share * (math.log(draw.high) - math.log(draw.low))))
    return draw.low + share * (draw.high - draw.low)


def read_members(base: Config, path: Path, consent: bool = False) -> list[Member]:
    """One member a line of a CSV file, whose first line names the axes.

    Raises:
        InputError: no such file, a column that is no axis, or a value of another type.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise InputError(f"--members must be a CSV file, got {path}, which is none")
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, line) for line in reader if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--members must be a CSV file, got {path}: {error}") from None
    if len(lines) < 2:
        raise InputError(f"--members must have a line of axes and a line a member, got {len(lines)} lines in {path}")
    names = [name.strip() for name in lines[0][1]]
    for name in names:
        check_axis(name, f"every column of {path}")
    if len(set(names)) < len(names):
        raise InputError(f"every column of {path} must be another axis, got {', '.join(names)}")
    _check_count(len(lines) - 1, consent)
    members = []
    for number, (place, line) in enumerate(lines[1:]):
        if len(line) != len(names):
            raise InputError(f"line {place} of {path} must have {len(names)} values, got {len(line)}")
        values = {name: _value(name, axes()[name], text) for name, text in zip(names, line, strict=True)}
        members.append(member(number, values, base))
    return members


def member(number: int, values: dict[str, Any], base: Config) -> Member:
    """One training: the base config with these values. Raises InputError naming the member and the field."""
    parts: dict[str, dict[str, Any]] = {"hyper": {}, "model": {}, "train": {}}
    for name, value in values.items():
        part, _, field = name.rpartition(".")
        parts[part or "hyper"][field] = value
    try:
        config = Config(
            base.data,
            *(dataclasses.replace(getattr(base, part), **parts[part]) for part in ("model", "train", "hyper")),
        )
    except InputError as error:
        raise InputError(f"member {number}: {error}") from None
    return Member(number, values, config)


def from_record(number: int, values: Any, base: Config) -> Member:
    """The member whose values a sweep has recorded as JSON has them.

    Raises:
        InputError: they are no values of a member.
    """
    tree = to_json(base)
    known = axes()
    if not isinstance(values, dict) or not values.keys() <= known.keys():
        raise InputError(f"member {number} must have values by axis, as a sweep writes them, got {str(values)[:200]}")
    for name, value in values.items():
        part, _, field = name.rpartition(".")
        tree[part or "hyper"][field] = value
    config = from_json(tree)
    parts = {name: name.rpartition(".") for name in values}
    own = {name: getattr(getattr(config, part or "hyper"), field) for name, (part, _, field) in parts.items()}
    return Member(number, own, config)


def by_program(members: Sequence[Member]) -> list[list[Member]]:
    """Members that one program can train: all but the numbers in `Hyperparams` is the same.

    Within a group those of one seed stand together, because they share their batches.
    """
    groups: dict[Any, list[Member]] = {}
    for member in members:
        groups.setdefault((member.config.data, member.config.model, member.config.train), []).append(member)
    return [sorted(group, key=lambda member: (member.config.hyper.seed, member.number)) for group in groups.values()]
