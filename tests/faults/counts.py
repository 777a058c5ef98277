"""What was tried and how it came out, for the table in docs/faults.md."""

import collections
import re
from pathlib import Path

from experiments import pages

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
OUTCOMES = ("mended", "refused", "harmless")
COUNTS: dict[str, collections.Counter] = {}


def count(fault: str, outcome: str, times: int = 1) -> None:
    """`mended`: ended with the bits of the undisturbed run; `refused`: by one line; `harmless`: no value changed."""
    assert outcome in OUTCOMES
    COUNTS.setdefault(fault, collections.Counter())[outcome] += times


def column(counts: dict[str, collections.Counter]) -> dict[str, str]:
    """By fault what became of it, as "3,405 refused, 595 harmless"."""
    return {
        fault: ", ".join(f"{found[outcome]:,} {outcome}" for outcome in OUTCOMES if found[outcome])
        for fault, found in counts.items()
    }


def columns_of(table: str) -> dict[int, dict[str, str]]:
    """The columns of a table that `table_of` made, by seed."""
    title, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    seeds = [int(re.fullmatch(r"seed (\d+)", cell)[1]) for cell in title[1:]]
    return {seed: {row[0]: row[place] for row in rows if row[place]} for place, seed in enumerate(seeds, 1)}


def table_of(columns: dict[int, dict[str, str]]) -> str:
    """A row a fault, a column a seed."""
    seeds, faults = sorted(columns), list(dict.fromkeys(fault for column in columns.values() for fault in column))
    lines = [f"| fault | {' | '.join(f'seed {seed}' for seed in seeds)} |", f"| {'--- | ' * (1 + len(seeds))}".rstrip()]
    lines += [f"| {fault} | {' | '.join(columns[seed].get(fault, '') for seed in seeds)} |" for fault in faults]
    return "\n".join(lines)


def write(seed: int, page: Path = PAGE) -> None:
    """Puts the column of this seed into the table of the page, in the place of the one of the same seed."""
    columns = columns_of(pages.between(page, "faults")) | {seed: column(COUNTS)}
    pages.write(page, "faults", table_of(columns))
