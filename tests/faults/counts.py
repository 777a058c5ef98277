"""What was tried and how it came out, for the table in README.md."""

import collections
import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
OUTCOMES = ("mended", "refused", "harmless")
COUNTS: dict[str, collections.Counter] = {}


def count(fault: str, outcome: str, times: int = 1) -> None:
    """`mended`: ended with the bits of the undisturbed run; `refused`: by one line; `harmless`: no value changed."""
    assert outcome in OUTCOMES
    COUNTS.setdefault(fault, collections.Counter())[outcome] += times


def table(seed: int) -> str:
    lines = [
        f"| fault (seed {seed}) | times | mended by the same command, bit for bit | refused by one line | harmless |",
        "| --- | --: | --: | --: | --: |",
    ]
    for fault, found in COUNTS.items():
        cells = [f"{found[outcome]:,}" if found[outcome] else "" for outcome in OUTCOMES]
        lines.append(f"| {fault} | {found.total():,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(seed: int) -> None:
    """Puts the table between the markers in README.md, in the place of the one of the same seed, beside the others."""
    before, between, after = re.split(
        r"(?<=<!-- faults -->\n)(.*)(?=<!-- /faults -->)", README.read_text(), flags=re.DOTALL
    )
    found = {title[1]: text for text in between.strip().split("\n\n") if (title := re.match(r".*\(seed (\d+)\)", text))}
    tables = found | {str(seed): table(seed)}
    README.write_text(before + "\n\n".join(tables[key] for key in sorted(tables, key=int)) + "\n" + after)
