"""Which setting of a sweep is the best: members that differ in the seed only are one setting, and count by their mean.

A choice by the test error makes that error too good: the more members, the more. Where there are validation images,
members are ranked by these and the test images stay unseen.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from cnnjax.data.dataset import Dataset
from cnnjax.sweep.space import Member

if TYPE_CHECKING:
    from cnnjax.sweep.study import Result

_T = TypeVar("_T")


class Spread(NamedTuple):
    """Of numbers over seeds."""

    mean: float  # NaN of none
    deviation: float  # as a sample has it, with n - 1; NaN of fewer than two
    count: int

    def percent(self) -> str:
        """ "12.34 %", or "12.34 ± 0.56 %" of several."""
        return f"{100 * self.mean:.2f} %" if self.count < 2 else f"{100 * self.mean:.2f} ± {100 * self.deviation:.2f} %"


def spread(numbers: Sequence[float]) -> Spread:
    count = len(numbers)
    mean = float(np.mean(numbers)) if count else float("nan")
    return Spread(mean, float(np.std(numbers, ddof=1)) if count > 1 else float("nan"), count)


class Setting(NamedTuple):
    """The members that share all values but the seed."""

    values: dict[str, Any]  # by axis
    results: "list[Result]"  # the best first
    error: Spread  # by which it is ranked, of the members that finished

    @property
    def has_all(self) -> bool:
        """Whether all of its members finished."""
        return self.error.count == len(self.results)


def criterion(dataset: Dataset) -> str:
    """The field of the metrics that members are ranked by."""
    return "test_error" if dataset.validation is None else "validation_error"


def by_setting(things: Iterable[_T], member: Callable[[_T], Member]) -> list[list[_T]]:
    """Those whose members are of one setting together, in the order of the first of each."""
    settings: dict[Any, list[_T]] = {}
    for thing in things:
        values = {name: value for name, value in member(thing).values.items() if name != "seed"}
        settings.setdefault(tuple(values.items()), []).append(thing)
    return list(settings.values())


def ranked(results: "Sequence[Result]", criterion: str) -> list[Setting]:
    """The best setting first: those of which fewest members failed to finish, and of these the smallest mean error."""
    settings = []
    for own in by_setting(results, lambda result: result.member):
        own = sorted(own, key=lambda result: (result.state != "finished", result.metrics[-1][criterion]))
        errors = [result.metrics[-1][criterion] for result in own if result.state == "finished"]
        values = {name: value for name, value in own[0].member.values.items() if name != "seed"}
        settings.append(Setting(values, own, spread(errors)))

    return sorted(settings, key=order_key)


def order_key(setting: Setting) -> tuple[int, float]:
    """What settings are sorted by: how many of their members did not finish, then the mean error of the others."""
    return len(setting.results) - setting.error.count, setting.error.mean if setting.error.count else np.inf
