"""What is kept of a set: by several at once, damaged, and not at all where there is no place."""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor

from cnnjax.data.kept import kept

CONTENT = bytes(range(256)) * 1000


def test_several_at_once_keep_the_same_and_leave_nothing_else(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda _: kept(str(tmp_path), "mean-1.bin", "the mean", lambda: CONTENT), range(64))
        assert set(found) == {CONTENT}
    (file,) = (tmp_path / "cnnjax_cache").iterdir()
    assert file.name == "mean-1.bin" and file.read_bytes() == hashlib.sha256(CONTENT).digest() + CONTENT


def test_what_is_damaged_is_computed_again_and_kept(tmp_path):
    computed = []

    def compute():
        computed.append(1)
        return CONTENT

    file = tmp_path / "cnnjax_cache" / "mean-1.bin"
    for damaged, times in ((None, 1), (None, 1), (b"", 2), (CONTENT, 3)):
        if damaged is not None:
            file.write_bytes(damaged)
        assert kept(str(tmp_path), "mean-1.bin", "the mean", compute) == CONTENT and len(computed) == times
        assert file.read_bytes()[32:] == CONTENT


def test_where_there_is_no_place_it_is_computed_each_time_with_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert kept(str(tmp_path / "file"), "mean-1.bin", "the mean", lambda: CONTENT) == CONTENT
    (said,) = caplog.records
    assert "cannot keep the mean, to be computed anew each time" in said.getMessage()
