"""A process killed anywhere, again and again: the same command ends with the bits of the run that was never killed."""

import signal
import time

import numpy as np
import pytest

from tests.faults import runs
from tests.faults.counts import count

LONG = pytest.mark.faults
FIGURES = ("experiments.filter_evolution",)


def operations(log):
    return log.read_text().splitlines()


def spread(operations, number, generator):
    """Numbers of operations: the first of every kind, then evenly over all; shuffled, so that chains differ."""
    first = [operations.index(kind) + 1 for kind in dict.fromkeys(operations)]
    rest = np.setdiff1d(np.linspace(1, len(operations), 2 * number, dtype=int), first)
    more = generator.permutation(rest)[: max(0, number - len(first))]
    return generator.permutation([*first, *more])[:number].tolist()


def killed_at(point, workdir, script=runs.SCRIPT):
    wrapped = ("tests.faults.killed_at", str(point), str(workdir.with_name("log")), *script)
    return runs.end(runs.begin(workdir, script=wrapped))


@pytest.mark.parametrize("number", [2, pytest.param(runs.times(90), marks=LONG)])
def test_killed_before_a_file_operation(reference, new, number):
    generator = np.random.default_rng(runs.SEED)
    workdir = new()
    assert killed_at(0, workdir).status == 0
    runs.same_end(workdir, reference)
    seen = operations(workdir.with_name("log"))

    def chain(points):
        workdir, kills = new(), 0
        for point in points:
            ended = killed_at(point, workdir)
            if ended.status == 0:  # the chain of kills has come to its end; this one begins the next
                runs.same_end(workdir, reference)
                workdir = new()
                ended = killed_at(point, workdir)
            assert ended.status in (0, -signal.SIGKILL), ended.error
            kills += ended.status != 0
        runs.finish(workdir)
        runs.same_end(workdir, reference)
        return kills

    kills = sum(runs.two_at_once(chain, spread(seen, number, generator)))
    assert kills >= 0.9 * number
    count("killed (SIGKILL) just before a file operation", "mended", kills)


@LONG
@pytest.mark.parametrize("number", [runs.times(24)])
def test_killed_at_any_time(reference, seconds, new, number):
    generator = np.random.default_rng(runs.SEED + 1)

    def killed(workdir, after):
        process = runs.begin(workdir)
        time.sleep(after)
        process.kill()
        return runs.end(process).status == -signal.SIGKILL

    def chain(times):
        workdir = new()
        for part in times:
            after = seconds * part
            while not killed(workdir, after):  # it had ended before
                runs.same_end(workdir, reference)
                workdir, after = new(), after / 2
        runs.finish(workdir)
        runs.same_end(workdir, reference)

    runs.two_at_once(chain, generator.uniform(0.4, 1, number))
    count("killed (SIGKILL) at a random time", "mended", number)


@LONG
def test_killed_while_figures_are_drawn(reference, new):
    """The script that trains and draws: the figures and the numbers behind them, byte for byte."""
    whole = new()
    assert killed_at(0, whole, FIGURES).status == 0
    drawn = runs.Reference(whole, runs.everything(whole))
    assert sum(name.startswith("figures/") for name in drawn.everything) >= 8
    assert {name: drawn.everything[name] for name in reference.everything} == reference.everything
    seen = operations(whole.with_name("log"))
    points = [number + 1 for number, line in enumerate(seen) if "figures" in line]

    def chain(points):
        workdir, kills = new(), 0
        for point in points:
            ended = killed_at(point, workdir, FIGURES)
            assert ended.status in (0, -signal.SIGKILL), ended.error
            kills += ended.status != 0
        runs.finish(workdir, script=FIGURES)
        runs.same_end(workdir, drawn)
        return kills

    kills = sum(runs.two_at_once(chain, np.random.default_rng(runs.SEED).permutation(points)[:8].tolist()))
    count("killed (SIGKILL) while figures are drawn", "mended", kills)
