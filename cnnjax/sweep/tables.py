"""The tables of a sweep: members.csv, a row a member; curves.csv, a row a member, epoch and split."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnjax.atomic import read_text
from cnnjax.errors import InputError

if TYPE_CHECKING:
    from cnnjax.sweep.study import Result

SPLITS = ("train", "validation", "test")
MEASURES = ("loss", "error", "error_top5")


def members_table(results: Sequence["Result"]) -> str:
    """members.csv: the axes' values, what became of the member, its last numbers, and its test error by epoch.

    `state` is finished, stopped or diverged, the latter with the epoch and the step, counted from 1; what is final is
    of the last epoch that the member has reached. A number that there is not is empty.
    """
    epochs = sorted({line["epoch"] for result in results for line in result.metrics})
    known = {field for result in results for line in result.metrics for field in line}
    final = [name for split in SPLITS for measure in MEASURES if (name := f"{split}_{measure}") in known]
    header = ["member", *results[0].member.values, "state", "diverged_epoch", "diverged_step", "seconds", "final_epoch"]
    header += [*(f"final_{name}" for name in final), *(f"test_error_{epoch}" for epoch in epochs)]
    rows = []
    for result in results:
        last, errors = result.metrics[-1], {line["epoch"]: line.get("test_error") for line in result.metrics}
        row = [*_named(result), result.state.partition(" ")[0], *(result.diverged or ("", ""))]
        row += [f"{result.seconds:.2f}", last["epoch"], *(_number(last.get(name)) for name in final)]
        rows.append(row + [_number(errors.get(epoch)) for epoch in epochs])
    return _table(header, rows)


def curves_table(results: Sequence["Result"]) -> str:
    """curves.csv: the metrics of all members in long format; a split that a member's epoch has no number of is left
    out."""
    rows = []
    for result in results:
        for line in result.metrics:
            for split in SPLITS:
                numbers = [line.get(f"{split}_{measure}") for measure in MEASURES]
                if any(number is not None for number in numbers):
                    rows.append([*_named(result), line["epoch"], split, *map(_number, numbers)])
    return _table(["member", *results[0].member.values, "epoch", "split", *MEASURES], rows)


def read_curves(path: Path) -> dict[int, list[dict[str, Any]]]:
    """The lines of each member's metrics, by its number, from a curves.csv.

    Raises:
        InputError: it is not as `curves_table` writes it.
    """
    members: dict[int, dict[int, dict[str, Any]]] = {}
    try:
        for row in csv.DictReader(io.StringIO(read_text(path))):
            line = members.setdefault(int(row["member"]), {}).setdefault(
                int(row["epoch"]), {"epoch": int(row["epoch"])}
            )
            line |= {f"{row['split']}_{measure}": float(row[measure]) for measure in MEASURES if row[measure]}
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path} must be a table as experiments.sweep writes it: {error!r}") from None
    return {number: list(lines.values()) for number, lines in members.items()}


def _named(result: "Result") -> list[Any]:
    """The member's number, and its values as an axis takes them."""
    values = result.member.values.values()
    return [result.member.number, *("x".join(map(str, one)) if isinstance(one, tuple) else one for one in values)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()
