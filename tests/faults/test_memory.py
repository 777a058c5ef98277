"""A network that does not fit into the memory: one line before it is trained, neither an abort nor a wait for ever."""

import re

import pytest

from tests.faults import runs
from tests.faults.counts import count


@pytest.mark.faults
@pytest.mark.parametrize("units", [8_000, 16_000])
def test_a_network_that_does_not_fit(new, units):
    workdir = new()
    script = ("tests.faults.limited", "AS", "3000000000", *runs.SCRIPT)
    said = runs.one_line(runs.end(runs.begin(workdir, "--model.dense", str(units), str(units), script=script)))
    assert "MB of memory more, and" in said
    assert [path.name for path in workdir.iterdir()] == ["lock"]  # another command may use the folder
    count("no memory for the network", "refused")


@pytest.mark.faults
def test_a_batch_that_does_not_fit_and_the_largest_that_does(new):
    more = ("--train.epochs", "1", "--data.image-size", "64", "--model.widths", "64", "64", "--train.batch-size")
    workdir = new()
    script = ("tests.faults.limited", "AS", "4000000000", *runs.SCRIPT)
    said = runs.one_line(runs.end(runs.begin(workdir, *more, "1400", script=script)))
    size = re.search(r"MB are left: (\d+) is the largest batch that fits; or train.accumulate [24]", said)
    assert size is not None and 350 <= int(size[1]) < 1400
    count("no memory for a batch", "refused, and what fits named")
