"""Several processes: what is told wrongly is said in one line."""

import re

import pytest

from cnnjax.errors import InputError
from cnnjax.processes import Together, by_first, check_alike, is_first


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"coordinator": "a:1"}, "--coordinator goes with --distributed"),
        ({"process_id": 0}, "--process-id goes with --distributed"),
        (
            {"distributed": True, "coordinator": "a:1", "process_id": 0},
            "--num-processes must be given with --coordinator, --process-id",
        ),
        (
            {"distributed": True, "coordinator": "a", "num_processes": 2, "process_id": 0},
            "--coordinator must be HOST:PORT, got 'a'",
        ),
        (
            {"distributed": True, "coordinator": "a:1", "num_processes": 0, "process_id": 0},
            "--num-processes must be at least 1, got 0",
        ),
        (
            {"distributed": True, "coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "--process-id must be from 0 to 1, got 2",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(told, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        Together(**told)


def test_one_process_asks_nobody():
    assert is_first() and by_first(lambda: {"a": [1]}) == {"a": [1]}
    check_alike({"data": "x"})
    with pytest.raises(InputError, match="^no$"):
        by_first(lambda: (_ for _ in ()).throw(InputError("no")))
