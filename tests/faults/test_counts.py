"""The table of what was tried."""

import shutil

from experiments import pages
from tests.faults import counts


def test_a_seed_has_its_column_and_leaves_the_others(tmp_path, monkeypatch):
    page = tmp_path / "faults.md"
    shutil.copy(counts.PAGE, page)
    known = pages.columns_of(pages.between(page, "faults"))
    assert list(known) == ["seed 0", "seed 1"] and len(known["seed 0"]) > 20
    monkeypatch.setattr(counts, "COUNTS", {})
    counts.count("a bit flipped in a checkpoint", "mended", 1200)
    counts.count("a bit flipped in a checkpoint", "refused")
    counts.count("a fault that is new", "harmless")
    counts.write(1, page)
    found = pages.columns_of(pages.between(page, "faults"))
    new = {"a bit flipped in a checkpoint": "1,200 mended, 1 refused", "a fault that is new": "1 harmless"}
    assert found == known | {"seed 1": new}
    monkeypatch.setattr(counts, "COUNTS", {})
    counts.count("a full disk", "refused", 2)
    counts.write(10, page)
    counts.write(9, page)
    assert list(pages.columns_of(pages.between(page, "faults"))) == ["seed 0", "seed 1", "seed 9", "seed 10"]
