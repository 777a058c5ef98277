"""A network that does not fit into the memory: one line before it is trained, neither an abort nor a wait for ever."""

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
    assert not list(workdir.glob("checkpoints/epochs/*"))
    count("no memory for the network", "refused")
