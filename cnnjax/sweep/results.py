"""What a sweep says about its axes: pure functions of the members' values and errors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float


class AxisErrors(NamedTuple):
    """The errors of the members at each value of one axis; NaN where a member has none."""

    values: list[Any]
    mean: Float[np.ndarray, " values"]
    low: Float[np.ndarray, " values"]  # smallest of the members' errors
    high: Float[np.ndarray, " values"]


def value_order(values: Sequence[Any]) -> list[Any]:
    """The different values, None first, numbers and tuples in their order."""
    return sorted(set(values), key=order_key)


def order_key(value: Any) -> tuple:
    """What an axis's values are sorted by."""
    if value is None:
        return 0, 0, ""
    return (1, value, "") if isinstance(value, (int, float)) else (2, 0, value)


def errors_by_value(values: Sequence[Any], errors: Float[np.ndarray, " members"]) -> AxisErrors:
    """Mean, smallest and largest error over all members that share a value of an axis."""
    order = value_order(values)
    rows = [errors[[one == value for one in values]] for value in order]
    with np.errstate(invalid="ignore"):
        return AxisErrors(
            order,
            np.array([row.mean() for row in rows]),
            np.array([row.min() for row in rows]),
            np.array([row.max() for row in rows]),
        )


def heat_map(
    first: Sequence[Any], second: Sequence[Any], errors: Float[np.ndarray, " members"]
) -> tuple[list[Any], list[Any], Float[np.ndarray, "first second"]]:
    """The mean error of each combination of two axes' values, over everything else; NaN where there is none."""
    rows, columns = value_order(first), value_order(second)
    cells = np.full((len(rows), len(columns)), np.nan)
    for i, one in enumerate(rows):
        for j, other in enumerate(columns):
            here = [a == one and b == other for a, b in zip(first, second, strict=True)]
            if any(here):
                cells[i, j] = errors[here].mean()
    return rows, columns, cells


def importance(values: Sequence[Sequence[Any]], errors: Float[np.ndarray, " members"]) -> Float[np.ndarray, " axes"]:
    """For each axis the share of the errors' variance that lies between its values' means (its main effect).

    In a full grid the shares of all axes add up to at most 1; the rest is their interplay. An axis whose values are
    all different (a draw) is cut into five bins of equal count.

    Args:
        values: for each axis the members' values.
    """
    total = np.sum((errors - errors.mean()) ** 2)
    shares = []
    for axis in values:
        order = value_order(axis)
        labels = np.array([order.index(value) for value in axis])
        if len(order) == len(axis) > 5:
            labels = labels * 5 // len(axis)
        between = sum(
            np.sum(labels == label) * (errors[labels == label].mean() - errors.mean()) ** 2 for label in set(labels)
        )
        shares.append(between / total if total > 0 else 0.0)
    return np.array(shares)
