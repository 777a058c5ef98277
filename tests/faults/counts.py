"""What was tried and how it came out, for the table in docs/faults.md."""

import collections
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


def write(seed: int, page: Path = PAGE) -> None:
    """Puts the column of this seed into the table of the page, in the place of the one of the same seed."""
    columns = pages.columns_of(pages.between(page, "faults")) | {f"seed {seed}": column(COUNTS)}
    in_order = {name: columns[name] for name in sorted(columns, key=lambda name: int(name.split()[1]))}
    pages.write(page, "faults", pages.table_of("fault", in_order, ()))
