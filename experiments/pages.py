"""The pages in docs that scripts write into: what stands between two markers is theirs, the rest is somebody's own."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cnnjax.atomic import write_text
from cnnjax.errors import InputError


def between(path: Path, name: str, option: str = "page") -> str:
    """What stands between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        InputError: the file cannot be read, or has not these two markers, each once and on a line of its own.
    """
    return _parts(path, name, option)[1]


def check(path: Path, name: str, option: str) -> None:
    """Raises InputError where `write` would, so that nothing is measured for a page that cannot take it.

    Args:
        option: as the command line calls the page.
    """
    if path.exists():
        _parts(path, name, option)
    elif not path.parent.is_dir():
        raise InputError(f"{option} must lie in a folder that is there, got {path}")


def write(path: Path, name: str, text: str, option: str = "page") -> None:
    """Puts `text` between the markers; a page that is not there yet is made of it."""
    before, _, after = _parts(path, name, option) if path.exists() else ("", "", "")
    if not path.exists():
        before, after = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    write_text(path, f"{before}{text.strip()}\n{after}")


def columns_of(table: str) -> dict[str, dict[str, str]]:
    """By column the cells that are not empty, by row, of a table that `table_of` made; none where there is no table."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    title, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] or [[], []]
    return {name: {row[0]: row[place] for row in rows if row[place]} for place, name in enumerate(title) if place}


def table_of(corner: str, columns: Mapping[str, Mapping[str, str]], rows: Sequence[str]) -> str:
    """A table in Markdown of those rows that any column has; what has not its place among `rows` comes behind them."""
    every = dict.fromkeys([*rows, *(row for column in columns.values() for row in column)])
    some = [row for row in every if any(row in column for column in columns.values())]
    lines = [[corner, *columns], ["---"] * (1 + len(columns))]
    lines += [[row, *(column.get(row, "") for column in columns.values())] for row in some]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _parts(path: Path, name: str, option: str) -> tuple[str, str, str]:
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise InputError(f"{option} must be a page that can be read, got {path}: {error}") from None
    found = re.fullmatch(rf"(.*^<!-- {name} -->\n)(.*?)(^<!-- /{name} -->\n.*)", text, re.DOTALL | re.MULTILINE)
    marks = [text.count(f"<!-- {mark} -->") for mark in (name, f"/{name}")]
    if found is None or marks != [1, 1]:
        raise InputError(f"{option} must have <!-- {name} --> and <!-- /{name} -->, each on a line, and {path} has not")
    return found[1], found[2], found[3]
