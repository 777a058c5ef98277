"""Two processes that train one run, killed at any time: started again, they end with the same bits."""

import shutil
import signal
import time

import numpy as np
import pytest

from cnnjax.train.run import read_metrics
from tests.faults import runs
from tests.faults.counts import count
from tests.train.test_together import free_port

pytestmark = pytest.mark.faults


def begin(workdir):
    together = ("--distributed", "--coordinator", f"localhost:{free_port()}", "--num-processes", "2")
    return [runs.begin(workdir, *together, "--process-id", str(index)) for index in range(2)]


def finish(workdir):
    for ended in [runs.end(process) for process in begin(workdir)]:
        assert ended.status == 0, ended.error


def killed(workdir, after):
    """Whether both were killed before they had ended."""
    both = begin(workdir)
    time.sleep(after)
    for process in both:
        process.kill()
    statuses = [runs.end(process).status for process in both]
    return statuses == [-signal.SIGKILL] * 2


@pytest.mark.parametrize("number", [runs.times(20)])
def test_killed_at_any_time_two_go_on_and_so_does_one(new, number):
    undisturbed = new()
    finish(undisturbed)  # compiles
    began = time.monotonic()
    shutil.rmtree(undisturbed)
    finish(undisturbed)
    seconds = time.monotonic() - began
    reference = runs.Reference(undisturbed, runs.everything(undisturbed))
    workdir, kills, generator = new(), 0, np.random.default_rng(runs.SEED + 2)
    while kills < number:
        if killed(workdir, seconds * generator.uniform(0.2, 0.9)):
            kills += 1
        else:
            finish(workdir)
            runs.same_end(workdir, reference)
            workdir = new()
    alone = new()
    shutil.copytree(workdir, alone)
    finish(workdir)
    runs.same_end(workdir, reference)
    count("two processes of one run killed (SIGKILL) at a random time", "mended", kills)
    runs.finish(alone)
    for mine, theirs in zip(read_metrics(alone), read_metrics(undisturbed), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
