"""Asked to stop: the newest state is saved first."""

import signal
import time

import numpy as np
import pytest

from cnnjax.config import differences
from cnnjax.train import run as running
from cnnjax.train.checkpoints import numbers, verify
from tests.faults import runs
from tests.faults.counts import count

NEVER = ("--train.save-every-seconds", "1e6")
FAR_APART = ("--train.batch-size", "2", "--train.epochs", "16", "--train.keep-epochs", "16")  # 719 steps an epoch


@pytest.mark.faults
@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_the_newest_state_is_saved_within_ten_seconds(new, number, status, word):
    """Nothing but the signal makes this run save a state between epoch 0 and the last."""
    undisturbed, workdir = new(), new()
    runs.finish(undisturbed, *FAR_APART)
    expected = runs.everything(undisturbed)
    process = runs.begin(workdir, *FAR_APART, *NEVER)
    metrics = workdir / "metrics.jsonl"
    runs.wait_for(lambda: metrics.exists() and '"epoch": 1,' in metrics.read_text(), process)
    process.send_signal(number)
    ended = runs.end(process, within=10)
    assert ended.status == status and "Traceback" not in ended.error, ended.error
    assert f"{word}; the same command goes on from its newest checkpoint" in ended.error.splitlines()[-1]
    (step,) = numbers(workdir, "latest")
    assert 0 < step < 16 * 719 and numbers(workdir, "epochs") == [0]
    verify(workdir / "checkpoints" / "latest" / str(step))
    runs.finish(workdir, *FAR_APART, *NEVER)
    found = runs.everything(workdir)
    assert [name for name in found if found[name] != expected[name]] == ["config.json"]
    theirs, ours = (running.read_config(folder / "config.json") for folder in (undisturbed, workdir))
    assert differences(ours, theirs) == []  # save_every_seconds changes no result
    count(f"asked to stop ({number.name}) between two kept epochs", "mended")


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
