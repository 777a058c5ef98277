"""The table of what was tried."""

import collections
import shutil

from tests.faults import counts


def test_a_seed_has_its_column_and_leaves_the_others(tmp_path, monkeypatch):
    page = tmp_path / "faults.md"
    shutil.copy(counts.PAGE, page)
    known = counts.columns_of(counts.pages.between(page, "faults"))
    assert {0, 1} <= set(known) and len(known[0]) > 20
    monkeypatch.setattr(counts, "COUNTS", {})
    counts.count("a bit flipped in a checkpoint", "mended", 1200)
    counts.count("a bit flipped in a checkpoint", "refused")
    counts.count("a fault that is new", "harmless")
    counts.write(1, page)
    found = counts.columns_of(counts.pages.between(page, "faults"))
    new = {"a bit flipped in a checkpoint": "1,200 mended, 1 refused", "a fault that is new": "1 harmless"}
    assert found == known | {1: new}
    assert page.read_text().replace(counts.table_of(found), counts.table_of(known)) == counts.PAGE.read_text()


def test_a_table_is_read_as_it_was_written():
    columns = {
        seed: counts.column(
            {"one": collections.Counter(mended=seed), "two": collections.Counter(refused=1, harmless=2)}
        )
        for seed in (3, 11)
    }
    assert columns[3] == {"one": "3 mended", "two": "1 refused, 2 harmless"}
    assert counts.columns_of(counts.table_of(columns)) == columns
