"""Asked to stop: the newest state is saved first."""

import signal
import time

import numpy as np
import pytest

from cnnjax.config import differences
from cnnjax.train import run as running
from cnnjax.train.checkpoints import KINDS, numbers, verify
from tests.faults import runs
from tests.faults.counts import count

NEVER = ("--train.save-every-seconds", "1e6")


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGTERM, 143, "terminated"), pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.faults)],
)
def test_the_newest_state_is_saved_within_ten_seconds(reference, new, number, status, word):
    """Nothing but the signal makes this run save a state within an epoch."""
    workdir = new()
    process = runs.begin(workdir, *NEVER)
    runs.wait_for((workdir / "checkpoints" / "epochs" / "0").exists, process)
    process.send_signal(number)
    ended = runs.end(process, within=10)
    assert ended.status == status and "Traceback" not in ended.error, ended.error
    assert f"{word}; the same command goes on from its newest checkpoint" in ended.error.splitlines()[-1]
    # Between two kept epochs, or behind the last, there is nothing more to save.
    for kind in KINDS:
        for step in numbers(workdir, kind):
            verify(workdir / "checkpoints" / kind / str(step))
    runs.finish(workdir, *NEVER)
    found = runs.everything(workdir)
    assert [name for name in found if found[name] != reference.everything[name]] == ["config.json"]
    theirs, ours = (running.read_config(folder / "config.json") for folder in (reference.workdir, workdir))
    assert differences(ours, theirs) == []  # save_every_seconds changes no result
    count(f"asked to stop ({number.name}) within an epoch", "mended")


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_at_any_time(reference, seconds, new, number):
    generator = np.random.default_rng(runs.SEED + number)

    def chain(times):
        workdir = new()
        for part in times:
            process = runs.begin(workdir)
            time.sleep(seconds * part)
            process.send_signal(number)
            ended = runs.end(process)
            # Before the script has begun, Python's own handlers answer.
            assert ended.status in (0, 143, 130, -number, 1), ended.error
        runs.finish(workdir)
        runs.same_end(workdir, reference)

    runs.two_at_once(chain, generator.uniform(0.4, 1, 6))
    count(f"asked to stop ({number.name}) at a random time", "mended", 6)
